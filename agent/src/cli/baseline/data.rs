//! Held-out rows from a file, as requests of one row each.

use super::{super::npy, csv, zip};
use crate::{
    monitor::profile::baseline::Row,
    serving::oip::{InferRequest, NoMemory},
};
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    digest::BlobDigest,
    tensor::{Datatype, Tensor},
};
use serde_json::Value;
use std::{collections::BTreeMap, io::Read as _, path::Path};

/// As much as a request over HTTP may have.
const MAX_DATA_BYTES: u64 = 1 << 30;
/// Rows that are run; a baseline of more is not better.
const MAX_ROWS: usize = 200_000;
/// Where labels are if nobody says.
const LABELS: [&str; 2] = ["label", "labels"];

/// The rows, and the digest of the file.
pub(super) fn read(
    path: &Path,
    labels: Option<&str>,
    interface: &Interface,
) -> anyhow::Result<(Vec<Row>, BlobDigest)> {
    let bytes = bytes_of(path)?;
    let digest = BlobDigest::of(&bytes);
    let file = labels.map(Path::new).filter(|path| path.is_file());
    let named: Vec<&str> = match (labels, file) {
        (Some(_), Some(_)) => vec![],
        (Some(name), None) => vec![name],
        (None, _) => {
            LABELS.into_iter().filter(|name| interface.inputs.iter().all(|i| i.name != *name)).collect()
        }
    };
    let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
    let mut rows = match kind {
        "npz" => arrays(&bytes, &named, interface)?,
        "csv" => table(&bytes, &named, interface)?,
        "jsonl" | "ndjson" => requests(&bytes, &named, interface)?,
        other => bail!("`.{other}` is none of .npz, .csv and .jsonl"),
    };
    ensure!(rows.len() <= MAX_ROWS, "it has {} rows, at most {MAX_ROWS} are used", rows.len());
    if let Some(file) = file {
        let text = String::from_utf8(bytes_of(file)?.to_vec()).context("the labels are not UTF-8")?;
        let lines: Vec<&str> = text.lines().collect();
        ensure!(lines.len() == rows.len(), "there are {} labels for {} rows", lines.len(), rows.len());
        for (row, line) in rows.iter_mut().zip(lines) {
            row.label = Some(line.trim().to_owned()).filter(|label| !label.is_empty());
        }
    }
    let labelled = rows.iter().any(|row| row.label.is_some());
    ensure!(labels.is_none() || labelled, "there are no labels `{}`", labels.unwrap_or_default());
    Ok((rows, digest))
}

fn bytes_of(path: &Path) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_DATA_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_DATA_BYTES, "it has more than {MAX_DATA_BYTES} bytes");
    Ok(bytes.into())
}

/// One row's tensor of `spec`, which holds `elements`.
fn tensor(spec: &TensorSpec, elements: usize, data: Vec<u8>) -> anyhow::Result<Tensor> {
    let mut shape: Vec<usize> = Vec::new();
    let batched = spec.shape.first() == Some(&-1);
    if batched {
        shape.push(1);
    }
    let row = if batched { &spec.shape[1..] } else { &spec.shape[..] };
    let fixed: usize = row.iter().filter(|dim| **dim >= 0).map(|dim| *dim as usize).product();
    let open = row.iter().filter(|dim| **dim < 0).count();
    ensure!(open <= 1, "input `{}` has {open} open dimensions; use .jsonl", spec.name);
    shape.extend(row.iter().map(|dim| usize::try_from(*dim).unwrap_or(elements / fixed.max(1))));
    Ok(Tensor::new(&spec.name, spec.datatype, shape, data.into())?)
}

/// Writes one number as an element of `datatype`.
fn push(datatype: Datatype, x: f64, out: &mut Vec<u8>) -> anyhow::Result<()> {
    macro_rules! whole {
        ($kind:ty) => {{
            ensure!(
                x.fract() == 0.0 && (<$kind>::MIN as f64..=<$kind>::MAX as f64).contains(&x),
                "{x} is no {datatype}"
            );
            out.extend((x as $kind).to_le_bytes())
        }};
    }
    match datatype {
        Datatype::Fp64 => out.extend(x.to_le_bytes()),
        Datatype::Fp32 => out.extend((x as f32).to_le_bytes()),
        Datatype::Fp16 => out.extend(half::f16::from_f64(x).to_le_bytes()),
        Datatype::Bf16 => out.extend(half::bf16::from_f64(x).to_le_bytes()),
        Datatype::Bool => out.push(u8::from(x != 0.0)),
        Datatype::Uint8 => whole!(u8),
        Datatype::Uint16 => whole!(u16),
        Datatype::Uint32 => whole!(u32),
        Datatype::Uint64 => whole!(u64),
        Datatype::Int8 => whole!(i8),
        Datatype::Int16 => whole!(i16),
        Datatype::Int32 => whole!(i32),
        Datatype::Int64 => whole!(i64),
        Datatype::Bytes => bail!("{x} is a number, not a text"),
    }
    Ok(())
}

fn push_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(text);
}

/// `.npz`: arrays named like the inputs, the first dimension counts rows; of any type of number.
fn arrays(bytes: &Bytes, labels: &[&str], interface: &Interface) -> anyhow::Result<Vec<Row>> {
    let files = zip::files(bytes)?;
    let array = |name: &str| files.get(&format!("{name}.npy")).map(npy::array);
    let mut rows: Option<Vec<Row>> = None;
    for spec in &interface.inputs {
        let found = array(&spec.name).with_context(|| format!("it has no array `{}`", spec.name))?;
        let found = found.map_err(|e| anyhow::anyhow!("array `{}`: {e}", spec.name))?;
        let count = *found.shape().first().with_context(|| format!("array `{}` has no rows", spec.name))?;
        let rows = rows.get_or_insert_with(|| vec![Row { inputs: vec![], label: None }; count]);
        ensure!(rows.len() == count, "array `{}` has {count} rows, not {}", spec.name, rows.len());
        let inner = found.len() / count.max(1);
        for (number, row) in rows.iter_mut().enumerate() {
            let mut data = Vec::new();
            for index in number * inner..(number + 1) * inner {
                match found.get(index) {
                    npy::Element::Number(x) => push(spec.datatype, x, &mut data)
                        .with_context(|| format!("array `{}`, row {number}", spec.name))?,
                    npy::Element::Text(text) if spec.datatype == Datatype::Bytes => {
                        push_text(&text, &mut data)
                    }
                    npy::Element::Text(_) => {
                        bail!("array `{}` holds texts, not {}", spec.name, spec.datatype)
                    }
                }
            }
            row.inputs.push(tensor(spec, inner, data)?);
        }
    }
    let mut rows = rows.context("the model has no inputs")?;
    for name in labels {
        let Some(found) = array(name) else { continue };
        let found = found.map_err(|e| anyhow::anyhow!("array `{name}`: {e}"))?;
        ensure!(
            found.len() == rows.len(),
            "array `{name}` has {} labels for {} rows",
            found.len(),
            rows.len()
        );
        for (index, row) in rows.iter_mut().enumerate() {
            row.label = Some(match found.get(index) {
                npy::Element::Number(x) => x.to_string(),
                npy::Element::Text(text) => String::from_utf8_lossy(&text).into_owned(),
            });
        }
    }
    Ok(rows)
}

/// `.csv`: a column named like an input of one element; `NAME/0`, `NAME/1`, ... for one of several, or, where only
/// one input has several, the columns that are left, in their order.
fn table(bytes: &Bytes, labels: &[&str], interface: &Interface) -> anyhow::Result<Vec<Row>> {
    let mut lines = csv::records(std::str::from_utf8(bytes).context("it is not UTF-8")?)?.into_iter();
    let header = lines.next().context("it has no header")?;
    let at = |name: &str| header.iter().position(|column| column == name);
    let label = labels.iter().find_map(|name| at(name));
    let width = |spec: &TensorSpec| -> anyhow::Result<usize> {
        let row = if spec.shape.first() == Some(&-1) { &spec.shape[1..] } else { &spec.shape[..] };
        ensure!(row.iter().all(|dim| *dim > 0), "input `{}` has no fixed number of columns", spec.name);
        Ok(row.iter().product::<i64>() as usize)
    };
    let mut columns: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut open = Vec::new();
    for spec in &interface.inputs {
        let width = width(spec)?;
        let numbered: Option<Vec<usize>> = (0..width).map(|n| at(&format!("{}/{n}", spec.name))).collect();
        match (width, at(&spec.name), numbered) {
            (1, Some(column), _) => drop(columns.insert(&spec.name, vec![column])),
            (_, _, Some(numbered)) => drop(columns.insert(&spec.name, numbered)),
            _ => open.push((spec, width)),
        }
    }
    let used: Vec<usize> = columns.values().flatten().copied().chain(label).collect();
    let left: Vec<usize> = (0..header.len()).filter(|column| !used.contains(column)).collect();
    match open[..] {
        [] => {}
        [(spec, width)] if left.len() == width => drop(columns.insert(&spec.name, left)),
        [(spec, width), ..] => {
            bail!(
                "input `{}` needs {width} columns, `{}/0` and so on; {} are left",
                spec.name,
                spec.name,
                left.len()
            )
        }
    }
    let mut rows = Vec::new();
    for (number, record) in lines.enumerate() {
        ensure!(
            record.len() == header.len(),
            "row {number} has {} cells, not {}",
            record.len(),
            header.len()
        );
        let mut row =
            Row { inputs: vec![], label: label.map(|at| record[at].clone()).filter(|l| !l.is_empty()) };
        for spec in &interface.inputs {
            let cells = &columns[spec.name.as_str()];
            let mut data = Vec::new();
            for column in cells {
                let cell = record[*column].trim();
                if spec.datatype == Datatype::Bytes {
                    push_text(cell.as_bytes(), &mut data);
                    continue;
                }
                let missing = matches!(cell, "" | "NA" | "NaN" | "nan" | "null");
                let x = if missing { Ok(f64::NAN) } else { cell.parse() };
                let x = x.map_err(|_| {
                    anyhow::anyhow!("row {number}, column `{}`: {cell:?} is no number", header[*column])
                })?;
                push(spec.datatype, x, &mut data)?;
            }
            row.inputs.push(tensor(spec, cells.len(), data)?);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// `.jsonl`: a request a line, of one row, the label beside the inputs.
fn requests(bytes: &Bytes, labels: &[&str], interface: &Interface) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut start = 0;
    for line in bytes.split(|byte| *byte == b'\n') {
        let span = bytes.slice(start..start + line.len());
        start += line.len() + 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let number = rows.len();
        let mut value: Value = serde_json::from_slice(&span).with_context(|| format!("row {number}"))?;
        let label =
            value.as_object_mut().and_then(|object| labels.iter().find_map(|name| object.remove(*name)));
        let label = label.map(|label| label.as_str().map_or_else(|| label.to_string(), str::to_owned));
        let body = serde_json::to_vec(&value)?;
        let request = InferRequest::parse(body.into(), None, interface, 1, &mut NoMemory)
            .with_context(|| format!("row {number} is no request of one row"))?;
        rows.push(Row { inputs: request.inputs, label });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> Interface {
        let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
            name: name.into(),
            datatype,
            shape: shape.into(),
        };
        Interface {
            inputs: vec![spec("colour", Datatype::Bytes, &[-1]), spec("x", Datatype::Fp32, &[-1, 2])],
            outputs: vec![],
        }
    }
    fn rows(name: &str, content: &[u8], labels: Option<&str>) -> anyhow::Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        read(&path, labels, &interface()).map(|(rows, _)| rows)
    }
    fn floats(row: &Row) -> Vec<f32> {
        row.inputs[1].data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn a_table_and_requests_say_the_same() {
        let table = "a,colour,b,label\n1.5,\"red, dark\",2,yes\n,blue,4,\n";
        let requests = concat!(
            r#"{"label": "yes", "inputs": [{"name": "colour", "datatype": "BYTES", "shape": [1], "data": ["red, dark"]}, {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]}]}"#,
            "\n\n",
        );
        let from_table = rows("t.csv", table.as_bytes(), None).unwrap();
        let from_requests = rows("t.jsonl", requests.as_bytes(), None).unwrap();
        assert_eq!(from_table[0].inputs, from_requests[0].inputs);
        assert_eq!((&from_table[0].label, &from_table[1].label), (&Some("yes".to_owned()), &None));
        assert!(floats(&from_table[1])[0].is_nan() && floats(&from_table[1])[1] == 4.0);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (name, content, wanted) in [
            ("t.csv", "colour,a\nred,1\n", "input `x` needs 2 columns, `x/0` and so on; 1 are left"),
            ("t.csv", "colour,a,b\nred,1,x\n", "row 0, column `b`: \"x\" is no number"),
            ("t.csv", "colour,a,b\nred,1\n", "row 0 has 2 cells, not 3"),
            ("t.jsonl", "{\"inputs\": []}\n", "row 0 is no request of one row"),
            ("t.parquet", "", "`.parquet` is none of .npz, .csv and .jsonl"),
            ("t.npz", "PK", "it is no .npz file"),
        ] {
            let found = rows(name, content.as_bytes(), None).unwrap_err().to_string();
            assert!(found.starts_with(wanted), "{found}");
        }
        let found = rows("t.csv", b"colour,a,b\nred,1,2\n", Some("truth")).unwrap_err().to_string();
        assert_eq!(found, "there are no labels `truth`");
    }
}
