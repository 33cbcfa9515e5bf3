//! A data set as files: inputs as NumPy arrays or as the pictures they were, an index as JSON Lines and as CSV. Pure;
//! the command line writes them.

use super::{
    record::DatasetRow,
    view::{picture_kind, texts},
};
use edgefleet_shared::{
    capture::Capture,
    tensor::{Datatype, Tensor},
};

/// A file of the export, its path relative to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedFile {
    pub path: String,
    pub bytes: Vec<u8>,
}

/// The files of one row's inputs, in the order of the inputs.
pub fn files(row: &DatasetRow, capture: &Capture) -> Vec<ExportedFile> {
    let stem = row.capture.to_hex();
    let each = capture.inputs.iter().enumerate();
    each.map(|(at, tensor)| {
        let (bytes, ending) = content(tensor);
        ExportedFile { path: format!("inputs/{}.{at}-{}.{ending}", &stem[..16], plain(tensor.name())), bytes }
    })
    .collect()
}

/// Names of tensors come from devices: only what is a harmless part of a file name stays.
fn plain(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    name.chars().take(40).map(keep).collect()
}

fn content(tensor: &Tensor) -> (Vec<u8>, &'static str) {
    if tensor.datatype() == Datatype::Bytes {
        let mut all = texts(tensor);
        if let (Some(only), None) = (all.next(), all.next())
            && let Some((_, ending)) = picture_kind(only)
        {
            return (only.to_vec(), ending);
        }
        return (tensor.data().to_vec(), "bytes");
    }
    (npy(tensor), "npy")
}

/// NumPy's format, version 1: source numpy.lib.format. BF16 has no type there and is written as its 16 bits.
pub fn npy(tensor: &Tensor) -> Vec<u8> {
    let descr = match tensor.datatype() {
        Datatype::Bool => "|b1",
        Datatype::Uint8 | Datatype::Bytes => "|u1",
        Datatype::Uint16 | Datatype::Bf16 => "<u2",
        Datatype::Uint32 => "<u4",
        Datatype::Uint64 => "<u8",
        Datatype::Int8 => "|i1",
        Datatype::Int16 => "<i2",
        Datatype::Int32 => "<i4",
        Datatype::Int64 => "<i8",
        Datatype::Fp16 => "<f2",
        Datatype::Fp32 => "<f4",
        Datatype::Fp64 => "<f8",
    };
    let shape: String = tensor.shape().iter().map(|dim| format!("{dim}, ")).collect();
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    // Magic, version, length and header fill whole lines of 64 bytes.
    let used = 6 + 2 + 2 + header.len() + 1;
    header.push_str(&" ".repeat(used.next_multiple_of(64) - used));
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes()); // at most 16 dimensions: short
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(tensor.data());
    file
}

/// Columns of the index.
const COLUMNS: [&str; 12] = [
    "capture",
    "label",
    "predicted",
    "confidence",
    "inclusion",
    "audit_share",
    "reasons",
    "bundle",
    "device",
    "prediction",
    "at",
    "files",
];

pub fn csv_header() -> String {
    COLUMNS.join(",") + "\n"
}

/// One line of the CSV index.
pub fn csv_line(row: &DatasetRow, files: &[ExportedFile]) -> String {
    let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    let cells = [
        row.capture.to_string(),
        row.label.clone(),
        row.predicted.clone().unwrap_or_default(),
        number(row.confidence),
        number(row.inclusion),
        number(row.audit_share),
        row.reasons.clone(),
        row.bundle.clone(),
        row.device.clone(),
        row.prediction.clone(),
        row.at.to_string(),
        paths.join(" "),
    ];
    cells.map(|cell| quoted(&cell)).join(",") + "\n"
}

/// RFC 4180; and nothing that a spreadsheet would run as a formula.
fn quoted(cell: &str) -> String {
    let cell = match cell.chars().next() {
        Some('=' | '+' | '@' | '\t' | '\r') => format!("'{cell}"),
        Some('-') if cell.parse::<f64>().is_err() => format!("'{cell}"),
        _ => cell.to_owned(),
    };
    match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell,
    }
}

/// One line of the JSON Lines index: the row and its files.
pub fn json_line(row: &DatasetRow, files: &[ExportedFile]) -> String {
    let mut line = serde_json::to_value(row).unwrap_or_default(); // plain data: cannot fail
    line["files"] = files.iter().map(|file| file.path.as_str()).collect();
    line.to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn arrays_are_as_numpy_writes_them() {
        let tensor = Tensor::new("x", Datatype::Fp32, vec![2, 1], Bytes::from_static(&[0; 8])).unwrap();
        let file = npy(&tensor);
        let header = std::str::from_utf8(&file[10..file.len() - 8]).unwrap();
        assert_eq!(header.trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1,), }");
        assert_eq!((file.len() - 8) % 64, 0);
        let scalar = Tensor::new("x", Datatype::Uint8, vec![], Bytes::from_static(&[1])).unwrap();
        assert!(String::from_utf8_lossy(&npy(&scalar)).contains("'shape': ()"));
    }

    #[test]
    fn cells_are_quoted_and_never_formulas() {
        for (cell, wanted) in [
            ("seven", "seven"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("=1+1", "'=1+1"),
            ("-0.5", "-0.5"),
            ("-x", "'-x"),
        ] {
            assert_eq!(quoted(cell), wanted);
        }
        assert_eq!(plain("../a b/é"), "___a_b__");
    }
}
