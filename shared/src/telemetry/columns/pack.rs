//! From JSON to columns.

use super::{
    ColumnsError, MAX_COLUMNS, MAX_DEPTH, NUMBERS, SAME, TEXT,
    number::{self, Coding, MAX_DECIMALS},
    paths::Paths,
};
use serde_json::Value;

pub(super) struct Packed {
    pub(super) shape: Vec<u8>,
    pub(super) numbers: Vec<u8>,
}

pub(super) fn pack(value: &Value) -> Result<Packed, ColumnsError> {
    let mut packer = Packer { paths: Paths::root(), keys: Vec::new(), columns: vec![Vec::new()] };
    packer.put(value, 0, 0)?;
    let Packer { keys, columns, .. } = packer;
    let (mut shape, mut numbers) = (Vec::new(), Vec::new());
    number::put(&mut shape, keys.len() as u64);
    for keys in keys {
        shape.extend(Value::from(keys).to_string().into_bytes());
        shape.push(b'\n');
    }
    number::put(&mut shape, columns.len() as u64);
    for column in columns {
        write(&column, &mut shape, &mut numbers);
    }
    Ok(Packed { shape, numbers })
}

struct Packer {
    paths: Paths,
    keys: Vec<Vec<String>>,
    columns: Vec<Vec<String>>,
}

impl Packer {
    fn put(&mut self, value: &Value, at: usize, depth: usize) -> Result<(), ColumnsError> {
        if depth > MAX_DEPTH {
            return Err(ColumnsError::Deep);
        }
        match value {
            Value::Object(fields) => {
                let known = self.keys.iter().position(|keys| keys.iter().eq(fields.keys()));
                let number = known.unwrap_or_else(|| {
                    self.keys.push(fields.keys().cloned().collect());
                    self.keys.len() - 1
                });
                self.columns[at].push(format!("{{{number}"));
                for (key, value) in fields {
                    let column = self.paths.field(at, key);
                    self.go_on(value, column, depth)?;
                }
            }
            Value::Array(items) => {
                self.columns[at].push(format!("[{}", items.len()));
                for (position, value) in items.iter().enumerate() {
                    let column = self.paths.item(at, position);
                    self.go_on(value, column, depth)?;
                }
            }
            scalar => self.columns[at].push(scalar.to_string()),
        }
        Ok(())
    }

    fn go_on(&mut self, value: &Value, column: usize, depth: usize) -> Result<(), ColumnsError> {
        if self.paths.len() > MAX_COLUMNS {
            return Err(ColumnsError::Wide);
        }
        self.columns.resize_with(self.paths.len(), Vec::new);
        self.put(value, column, depth + 1)
    }
}

fn write(tokens: &[String], shape: &mut Vec<u8>, numbers: &mut Vec<u8>) {
    let count = tokens.len() as u64;
    let line = |shape: &mut Vec<u8>, token: &String| {
        shape.extend(token.as_bytes());
        shape.push(b'\n');
    };
    if let Some(first) = tokens.first().filter(|first| tokens.iter().all(|token| token == *first)) {
        shape.push(SAME);
        number::put(shape, count);
        line(shape, first);
    } else if let Some((decimals, found)) = parsed(tokens) {
        let (coding, found) = number::smallest(&found);
        let kind = Coding::ALL.iter().position(|one| *one == coding).unwrap_or_default();
        shape.extend([NUMBERS + kind as u8, decimals as u8]);
        number::put(shape, count);
        found.iter().for_each(|n| number::put(numbers, number::zigzag(*n)));
    } else {
        shape.push(TEXT);
        number::put(shape, count);
        tokens.iter().for_each(|token| line(shape, token));
    }
}

/// Decimals and mantissas, if every token is a number that comes back as it was written.
fn parsed(tokens: &[String]) -> Option<(u32, Vec<i64>)> {
    let found: Option<Vec<u32>> = tokens.iter().map(|token| number::decimals(token)).collect();
    let (least, most) = found?.into_iter().fold((u32::MAX, 0), |(a, b), n| (a.min(n), b.max(n)));
    // Whole numbers and others look alike as mantissas: `1` and `1.0`.
    if most > MAX_DECIMALS || (least == 0) != (most == 0) {
        return None;
    }
    let mut scratch = String::new();
    let found: Option<Vec<i64>> =
        tokens.iter().map(|token| number::mantissa(token, most, &mut scratch)).collect();
    Some((most, found?))
}
