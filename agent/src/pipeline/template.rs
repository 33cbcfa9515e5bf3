//! Text from tensors: one line for each row, `{name}` replaced by what the tensor holds there.
//!
//! `{name}` writes a number or text, a list where a row has several; `{name[2]}` one of them; `{name:.3}`
//! three decimals; `{name:json}` a quoted and escaped text. `{{` and `}}` are braces.

use super::{
    error::Fault,
    kind::Kind,
    step::{Around, Built, Compiled, Run},
    value::{Array, Data, Value},
};
use bytes::Bytes;
use edgefleet_shared::tensor::Datatype;

/// Most bytes of one row's text.
const MAX_ROW_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Field { input: usize, element: Option<usize>, format: Format },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Plain,
    Decimals(usize),
    Json,
}

/// Parts of a text and the tensors it names, in order.
pub(super) struct Template {
    parts: Vec<Part>,
    pub names: Vec<String>,
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parsed = Self { parts: vec![], names: vec![] };
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, tail) = rest.split_at(at);
            literal.push_str(before);
            if tail.starts_with("{{") || tail.starts_with("}}") {
                literal.push_str(&tail[..1]);
                rest = &tail[2..];
                continue;
            }
            let Some(end) = tail.find('}').filter(|end| *end > 0) else {
                return Err(format!("`text` has a single brace at byte {}", text.len() - tail.len()));
            };
            let field = parsed.field(&tail[1..end])?;
            parsed.parts.push(Part::Text(std::mem::take(&mut literal)));
            parsed.parts.push(field);
            rest = &tail[end + 1..];
        }
        literal.push_str(rest);
        parsed.parts.push(Part::Text(literal));
        if parsed.names.is_empty() {
            return Err("`text` names no tensor".into());
        }
        Ok(parsed)
    }

    fn field(&mut self, text: &str) -> Result<Part, String> {
        let wrong =
            || format!("`{{{text}}}` is no field: `{{name}}`, `{{name[0]}}`, `{{name:.3}}`, `{{name:json}}`");
        let (place, format) = match text.rsplit_once(':') {
            None => (text, Format::Plain),
            Some((place, "json")) => (place, Format::Json),
            Some((place, decimals)) => {
                let decimals = decimals.strip_prefix('.').and_then(|n| n.parse().ok()).filter(|n| *n <= 17);
                (place, Format::Decimals(decimals.ok_or_else(wrong)?))
            }
        };
        let (name, element) = match place.strip_suffix(']').and_then(|place| place.split_once('[')) {
            None => (place, None),
            Some((name, element)) => (name, Some(element.parse().map_err(|_| wrong())?)),
        };
        if name.is_empty() {
            return Err(wrong());
        }
        let known = self.names.iter().position(|known| known == name);
        let input = known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        Ok(Part::Field { input, element, format })
    }

    pub(super) fn compile(self, inputs: &[Kind]) -> Built {
        let mut rows = -1;
        for kind in inputs {
            let (_, shape) = kind.as_array()?;
            rows = rows.max(shape.first().copied().unwrap_or(1));
        }
        Compiled::one(Kind::array(Datatype::Bytes, vec![rows]), self)
    }

    fn row(&self, inputs: &[Array], rows: usize, row: usize) -> Result<Bytes, Fault> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Field { input, element, format } => {
                    let array = inputs.get(*input).ok_or_else(|| Fault::shape("a field has no tensor"))?;
                    let width = array.len() / rows.max(1);
                    match element {
                        Some(element) if *element >= width => {
                            let name = &self.names[*input];
                            return Err(Fault::shape(format!("`{name}[{element}]` of a row of {width}")));
                        }
                        Some(element) => write(&mut text, array, row * width + element, *format),
                        None if width == 1 && array.shape.len() <= 1 => write(&mut text, array, row, *format),
                        None => {
                            text.push('[');
                            for i in 0..width {
                                text.push_str(if i == 0 { "" } else { ", " });
                                write(&mut text, array, row * width + i, *format);
                                if text.len() > MAX_ROW_BYTES {
                                    break;
                                }
                            }
                            text.push(']');
                        }
                    }
                }
            }
            if text.len() > MAX_ROW_BYTES {
                let (found, limit) = (text.len() as u64, MAX_ROW_BYTES as u64);
                return Err(Fault::TooLarge { what: "bytes of a text", found, limit });
            }
        }
        Ok(text.into())
    }
}

fn write(out: &mut String, array: &Array, at: usize, format: Format) {
    let float = |v: f64, shortest: String| match format {
        Format::Json if !v.is_finite() => "null".to_owned(),
        Format::Decimals(decimals) => format!("{v:.decimals$}"),
        Format::Plain | Format::Json => shortest,
    };
    let whole = |v: i64| match format {
        Format::Decimals(decimals) => format!("{:.decimals$}", v as f64),
        Format::Plain | Format::Json => v.to_string(),
    };
    let shown = match &array.data {
        Data::U8(data) if array.datatype == Datatype::Bool => {
            data.get(at).map(|v| if *v == 0 { "false".to_owned() } else { "true".to_owned() })
        }
        Data::U8(data) => data.get(at).map(|v| whole(i64::from(*v))),
        Data::I64(data) => data.get(at).map(|v| whole(*v)),
        Data::F32(data) => data.get(at).map(|v| float(f64::from(*v), v.to_string())),
        Data::F64(data) => data.get(at).map(|v| float(*v, v.to_string())),
        Data::Text(data) => data.get(at).map(|v| {
            let text = String::from_utf8_lossy(v);
            if format == Format::Json { serde_json::Value::from(text).to_string() } else { text.into_owned() }
        }),
    };
    out.push_str(&shown.unwrap_or_default());
}

impl Run for Template {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let mut fields = Vec::new();
        for input in inputs {
            match input {
                Value::Array(array) => fields.push(array),
                Value::Images(_) => return Err(Fault::shape("images cannot be written as text")),
            }
        }
        let rows_of = |array: &Array| array.shape.first().copied().unwrap_or(1);
        let rows = fields.first().map_or(0, rows_of);
        if let Some(other) = fields.iter().map(rows_of).find(|other| *other != rows) {
            return Err(Fault::shape(format!("its tensors have {rows} and {other} rows")));
        }
        let mut texts = Vec::new();
        let mut bytes = 0;
        for row in 0..rows {
            let text = self.row(&fields, rows, row)?;
            bytes += text.len() + size_of::<Bytes>();
            super::value::room(&[bytes], 1)?;
            texts.push(text);
        }
        Ok(vec![Value::Array(Array::texts(vec![rows], texts))])
    }
}
