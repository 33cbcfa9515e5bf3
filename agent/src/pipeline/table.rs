//! Columns: select, concat, impute, category_map, one_hot. The last axis is the columns.

use super::{
    error::Fault,
    kind::{Kind, per_element},
    step::{Around, Built, Compiled, OnArray, Run},
    value::{Array, Data, Held, Value, held, room},
};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::pipeline::{Op, op::Category},
    tensor::Datatype,
};
use std::collections::HashMap;

/// What `concat` reads, in order.
pub(super) fn concat(parts: &[Kind]) -> Built {
    let mut width = 0i64;
    let mut whole: Option<(Datatype, Vec<i64>)> = None;
    for part in parts {
        let (datatype, shape) = part.as_array()?;
        let (last, rest) = shape.split_last().ok_or("joins columns, but one part has no dimension")?;
        match &whole {
            Some((first, lead)) => {
                let alike = lead.len() == rest.len()
                    && lead.iter().zip(rest).all(|(a, b)| a == b || *a == -1 || *b == -1);
                if held(*first) != held(datatype) || !alike {
                    return Err(format!("cannot join {first} {lead:?} + columns with {part}"));
                }
                // Numbers are held alike, but not every one is a truth value.
                if (*first == Datatype::Bool) != (datatype == Datatype::Bool) {
                    return Err(format!("cannot join {first} columns with {part}; put `cast` before it"));
                }
            }
            None => whole = Some((datatype, rest.to_vec())),
        }
        width = if *last < 0 || width < 0 { -1 } else { width + last };
    }
    let (datatype, mut shape) = whole.ok_or("joins nothing")?;
    shape.push(width);
    Compiled::one(Kind::array(datatype, shape), Concat)
}

struct Concat;
impl Run for Concat {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let mut parts = Vec::new();
        for input in inputs {
            let Value::Array(array) = input else { return Err(Fault::shape("joins tensors, not images")) };
            parts.push(array);
        }
        let lead = |array: &Array| array.shape.split_last().map(|(last, rest)| (*last, rest.to_vec()));
        let first = parts.first().and_then(lead).ok_or_else(|| Fault::shape("joins nothing"))?.1;
        let mut widths = Vec::new();
        for part in &parts {
            match lead(part) {
                Some((last, rest)) if rest == first => widths.push(last),
                _ => {
                    let shape = &part.shape;
                    return Err(Fault::shape(format!("cannot join rows of {first:?} with {shape:?}")));
                }
            }
        }
        let rows = first.iter().product();
        let width = widths.iter().fold(0usize, |sum, width| sum.saturating_add(*width));
        let mut shape = first;
        shape.push(width);
        room(&shape, size_of::<Bytes>())?;
        fn join<T: Clone>(parts: &[(&[T], usize)], rows: usize) -> Vec<T> {
            let mut done = Vec::new();
            for row in 0..rows {
                for (part, width) in parts {
                    done.extend_from_slice(&part[row * width..(row + 1) * width]);
                }
            }
            done
        }
        macro_rules! joined {
            ($held:ident) => {{
                let mut all = Vec::new();
                for (part, width) in parts.iter().zip(&widths) {
                    match &part.data {
                        Data::$held(data) => all.push((&data[..], *width)),
                        _ => return Err(Fault::shape("cannot join columns of different types")),
                    }
                }
                Data::$held(join(&all, rows))
            }};
        }
        let datatype = parts[0].datatype;
        let data = match held(datatype) {
            Held::U8 => joined!(U8),
            Held::I64 => joined!(I64),
            Held::F32 => joined!(F32),
            Held::F64 => joined!(F64),
            Held::Text => joined!(Text),
        };
        Ok(vec![Value::Array(Array { datatype, shape, data, placements: None })])
    }
}

pub(super) fn compile(op: &Op, input: &Kind) -> Built {
    let (datatype, shape) = input.as_array()?;
    let axis = shape.len().checked_sub(1);
    match op {
        Op::Select { columns } => {
            let last = axis.ok_or("selects columns of a tensor without dimensions")?;
            if let Some(beyond) =
                columns.iter().find(|c| shape[last] >= 0 && **c as u64 >= shape[last].cast_unsigned())
            {
                return Err(format!("column {beyond} of {input}, which has {}", shape[last]));
            }
            let mut selected = shape.to_vec();
            selected[last] = columns.len() as i64;
            let columns = columns.clone();
            Compiled::one(Kind::array(datatype, selected), OnArray(move |array| select(array, &columns)))
        }
        Op::Impute { value, missing } => {
            input.as_numbers()?;
            let (values, missing) = (value.as_slice().to_vec(), *missing);
            if values.len() > 1 {
                per_element("value", values.len(), shape, axis.ok_or("has no columns")?)?;
            }
            let kind = Kind::array(Datatype::Fp32, shape.to_vec());
            Compiled::one(kind, OnArray(move |array| impute(array, &values, missing)))
        }
        Op::CategoryMap { values, other } => {
            if !matches!(held(datatype), Held::Text | Held::I64 | Held::U8) {
                return Err(format!("maps texts or integers, not {input}"));
            }
            let text = held(datatype) == Held::Text;
            let mut map = CategoryMap { texts: HashMap::new(), numbers: HashMap::new(), other: *other };
            for (index, value) in values.iter().enumerate() {
                match value {
                    Category::Text(value) if text => {
                        map.texts.insert(value.clone().into_bytes().into(), index as i64);
                    }
                    Category::Number(value) if !text => {
                        map.numbers.insert(*value, index as i64);
                    }
                    wrong => return Err(format!("`values` holds {wrong:?}, but it maps {input}")),
                }
            }
            let kind = Kind::array(Datatype::Int64, shape.to_vec());
            Compiled::one(kind, OnArray(move |array| map.apply(array)))
        }
        Op::OneHot { depth, zeros } => {
            if !matches!(held(datatype), Held::I64 | Held::U8) {
                return Err(format!("needs indexes, not {input}; put `category_map` or `cast` before it"));
            }
            let (depth, zeros) = (*depth, *zeros);
            let mut hot = shape.to_vec();
            hot.push(depth as i64);
            let kind = Kind::array(Datatype::Fp32, hot);
            Compiled::one(kind, OnArray(move |array| one_hot(array, depth, zeros)))
        }
        other => Err(format!("`{}` is no operation on columns", other.name())),
    }
}

fn select(array: Array, columns: &[usize]) -> Result<Array, Fault> {
    let Array { datatype, mut shape, data, .. } = array;
    let width = shape.last().copied().unwrap_or(0);
    if let Some(beyond) = columns.iter().find(|column| **column >= width) {
        return Err(Fault::shape(format!("column {beyond} of {width}")));
    }
    if let Some(last) = shape.last_mut() {
        *last = columns.len();
    }
    room(&shape, size_of::<Bytes>())?;
    fn pick<T: Clone>(data: &[T], width: usize, columns: &[usize]) -> Vec<T> {
        data.chunks_exact(width).flat_map(|row| columns.iter().map(|column| row[*column].clone())).collect()
    }
    let data = match &data {
        Data::U8(data) => Data::U8(pick(data, width, columns)),
        Data::I64(data) => Data::I64(pick(data, width, columns)),
        Data::F32(data) => Data::F32(pick(data, width, columns)),
        Data::F64(data) => Data::F64(pick(data, width, columns)),
        Data::Text(data) => Data::Text(pick(data, width, columns)),
    };
    Ok(Array { datatype, shape, data, placements: None })
}

fn impute(array: Array, values: &[f64], missing: Option<f64>) -> Result<Array, Fault> {
    let (shape, mut data) = array.into_f32()?;
    let width = shape.last().copied().unwrap_or(1);
    if values.len() > 1 && values.len() != width {
        return Err(Fault::shape(format!("has {width} columns, `value` has {} numbers", values.len())));
    }
    let missing = missing.map(|missing| missing as f32);
    for (index, value) in data.iter_mut().enumerate() {
        if value.is_nan() || Some(*value) == missing {
            *value = if values.len() == 1 { values[0] } else { values[index % width] } as f32;
        }
    }
    Ok(Array::floats(shape, data))
}

struct CategoryMap {
    texts: HashMap<Bytes, i64>,
    numbers: HashMap<i64, i64>,
    other: Option<i64>,
}

impl CategoryMap {
    fn apply(&self, array: Array) -> Result<Array, Fault> {
        let index = |found: Option<&i64>, shown: &dyn Fn() -> String| {
            found.copied().or(self.other).ok_or_else(|| {
                Fault::value(format!(
                    "{} is none of the {} categories",
                    shown(),
                    self.texts.len() + self.numbers.len()
                ))
            })
        };
        if let Data::Text(texts) = &array.data {
            room(&array.shape, 8)?;
            let shown = |text: &Bytes| {
                let text = String::from_utf8_lossy(&text[..text.len().min(64)]).into_owned();
                format!("{text:?}")
            };
            let found = texts.iter().map(|text| index(self.texts.get(text), &|| shown(text)));
            let data = found.collect::<Result<_, _>>()?;
            return Ok(Array::longs(array.shape, data));
        }
        let (shape, data) = array.into_i64()?;
        let found = data.iter().map(|value| index(self.numbers.get(value), &|| value.to_string()));
        Ok(Array::longs(shape, found.collect::<Result<_, _>>()?))
    }
}

fn one_hot(array: Array, depth: usize, zeros: bool) -> Result<Array, Fault> {
    let (mut shape, indexes) = array.into_i64()?;
    shape.push(depth);
    let mut data = vec![0f32; room(&shape, 4)?];
    for (row, index) in data.chunks_exact_mut(depth.max(1)).zip(indexes) {
        match usize::try_from(index).ok().and_then(|index| row.get_mut(index)) {
            Some(hot) => *hot = 1.0,
            None if zeros => {}
            None => return Err(Fault::value(format!("index {index} is outside of 0 to {}", depth - 1))),
        }
    }
    Ok(Array::floats(shape, data))
}
