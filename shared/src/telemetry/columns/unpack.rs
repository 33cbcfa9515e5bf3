//! From columns to JSON. Whoever sent them may have meant ill: counts are claims.

use super::{
    ColumnsError, MAX_COLUMNS, MAX_DEPTH, NUMBERS, SAME, TEXT,
    number::{self, Coding, MAX_DECIMALS},
    paths::Paths,
};
use serde_json::Value;
use std::fmt::Write as _;

pub(super) fn unpack(shape: &[u8], numbers: &[u8], limit: usize) -> Result<String, ColumnsError> {
    let (mut shape, mut numbers) = (shape, numbers);
    let lists = number::take(&mut shape).ok_or(ColumnsError::Short)?;
    let mut keys = Vec::new();
    for _ in 0..lists {
        let line = line(&mut shape).ok_or(ColumnsError::Short)?;
        let list: Vec<String> = serde_json::from_str(line).map_err(|_| ColumnsError::Keys)?;
        keys.push(list);
    }
    let count = number::take(&mut shape).ok_or(ColumnsError::Short)?;
    if count > MAX_COLUMNS as u64 {
        return Err(ColumnsError::Wide);
    }
    let mut columns = Vec::new();
    for _ in 0..count {
        let column = columns.len();
        columns.push(Column::read(&mut shape, &mut numbers).ok_or(ColumnsError::Column { column })?);
    }
    if !shape.is_empty() || !numbers.is_empty() {
        return Err(ColumnsError::Long { column: columns.len() });
    }
    let mut unpacker = Unpacker { paths: Paths::root(), keys: &keys, columns, out: String::new(), limit };
    unpacker.value(0, 0)?;
    match unpacker.columns.iter().position(|column| column.left > 0) {
        Some(column) => Err(ColumnsError::Long { column }),
        None => Ok(unpacker.out),
    }
}

fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..end]).ok()?;
    *bytes = &bytes[end + 1..];
    Some(line)
}

struct Column<'a> {
    left: u64,
    tokens: Tokens<'a>,
}

enum Tokens<'a> {
    Same(&'a str),
    Text(&'a [u8]),
    Numbers { coding: Coding, decimals: u32, bytes: &'a [u8], last: i64 },
}

impl<'a> Column<'a> {
    fn read(shape: &mut &'a [u8], numbers: &mut &'a [u8]) -> Option<Self> {
        let (kind, rest) = shape.split_first()?;
        *shape = rest;
        match *kind {
            SAME => {
                let left = number::take(shape)?;
                Some(Self { left, tokens: Tokens::Same(line(shape)?) })
            }
            TEXT => {
                let left = number::take(shape)?;
                let all = *shape;
                for _ in 0..left {
                    line(shape)?;
                }
                Some(Self { left, tokens: Tokens::Text(&all[..all.len() - shape.len()]) })
            }
            kind => {
                let coding = *Coding::ALL.get(usize::from(kind - NUMBERS))?;
                let (decimals, rest) = shape.split_first()?;
                *shape = rest;
                let decimals = u32::from(*decimals);
                if decimals > MAX_DECIMALS {
                    return None;
                }
                let left = number::take(shape)?;
                let last = match coding {
                    Coding::Middle => number::unzigzag(number::take(numbers)?),
                    Coding::Plain | Coding::Steps => 0,
                };
                let all = *numbers;
                for _ in 0..left {
                    number::take(numbers)?;
                }
                let bytes = &all[..all.len() - numbers.len()];
                Some(Self { left, tokens: Tokens::Numbers { coding, decimals, bytes, last } })
            }
        }
    }
}

struct Unpacker<'a> {
    paths: Paths,
    keys: &'a [Vec<String>],
    columns: Vec<Column<'a>>,
    out: String,
    limit: usize,
}

impl<'a> Unpacker<'a> {
    /// The next token of a column; `None`: it was a number and is written.
    fn next(&mut self, at: usize) -> Result<Option<&'a str>, ColumnsError> {
        let odd = ColumnsError::Column { column: at };
        let column = self.columns.get_mut(at).filter(|column| column.left > 0).ok_or(ColumnsError::Short)?;
        column.left -= 1;
        match &mut column.tokens {
            Tokens::Same(token) => Ok(Some(token)),
            Tokens::Text(rest) => line(rest).map(Some).ok_or(odd),
            Tokens::Numbers { coding, decimals, bytes, last } => {
                let n = number::take(bytes).map(number::unzigzag);
                let n = match coding {
                    Coding::Plain => n,
                    Coding::Steps | Coding::Middle => n.and_then(|n| last.checked_add(n)),
                };
                let n = n.ok_or(odd)?;
                if *coding == Coding::Steps {
                    *last = n;
                }
                number::render(&mut self.out, n, *decimals);
                Ok(None)
            }
        }
    }

    fn value(&mut self, at: usize, depth: usize) -> Result<(), ColumnsError> {
        if depth > MAX_DEPTH {
            return Err(ColumnsError::Deep);
        }
        let odd = ColumnsError::Column { column: at };
        match self.next(at)? {
            None => {}
            Some(token) => {
                if let Some(number) = token.strip_prefix('{') {
                    let keys = self.keys;
                    let number: usize = number.parse().map_err(|_| odd)?;
                    let keys = keys.get(number).ok_or(ColumnsError::UnknownKeys)?;
                    self.out.push('{');
                    for (position, key) in keys.iter().enumerate() {
                        let comma = if position > 0 { "," } else { "" };
                        let _ = write!(self.out, "{comma}{}:", Value::from(key.as_str())); // a String takes everything
                        let column = self.paths.field(at, key);
                        self.value(column, depth + 1)?;
                    }
                    self.out.push('}');
                } else if let Some(length) = token.strip_prefix('[') {
                    let length: usize = length.parse().map_err(|_| odd)?;
                    self.out.push('[');
                    for position in 0..length {
                        if position > 0 {
                            self.out.push(',');
                        }
                        let column = self.paths.item(at, position);
                        self.value(column, depth + 1)?;
                    }
                    self.out.push(']');
                } else {
                    self.out.push_str(token);
                }
            }
        }
        // However much is claimed: every value writes something, and this ends it.
        match self.out.len() > self.limit {
            true => Err(ColumnsError::Large { limit: self.limit }),
            false => Ok(()),
        }
    }
}
