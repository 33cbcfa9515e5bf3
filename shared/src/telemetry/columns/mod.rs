//! JSON turned on its side: what one field holds over all records lies together, the names are said once.
//!
//! Records of a message resemble one another. As rows every one of them repeats the names of its fields and puts a
//! counter between a time and a sketch; as columns equals follow equals, and zstd is left with the news: half of the
//! bytes. The idea is Dremel's (Melnik et al., VLDB 2010), without its schema: values tell their own shape, so records
//! of later versions pass through.
//!
//! A walk from the root gives every path a column, in the order in which it meets them, so columns need no names. The
//! elements of an array have one path; those of an array right within an array, a tuple, have one for each position.
//! A column is a list of tokens: a scalar as JSON has it, `{K` for an object with the K-th list of keys, `[N` for an
//! array of N elements. Columns of numbers are stored as such ([`number`]): as they are, as differences, or by their
//! distance from a middle, whichever is shortest.
//!
//! ```text
//! payload = 1, varint(length of shape), zstd(shape, with dictionary), zstd(numbers)
//! shape   = varint(lists of keys), each as JSON and a line feed, varint(columns), columns
//! column  = 0, varint(n), token, line feed             n times the same token
//!         | 1, varint(n), n tokens with line feeds
//!         | 2 + coding, decimals, varint(n)            n numbers, in `numbers`
//! numbers = of each such column, in order: (middle, of coding 2) and n numbers, varint(zigzag)
//! ```
//!
//! Shape and numbers are compressed each by itself: their bytes have nothing in common.

mod number;
mod pack;
mod paths;
#[cfg(test)]
mod tests;
mod unpack;

use serde_json::Value;
use zstd::bulk::{Compressor, Decompressor};

/// The first byte of a payload: no zstd frame begins with it.
const FORMAT: u8 = 1;
/// What shapes have in common. Part of the format: another one is another [`FORMAT`].
const DICTIONARY: &[u8] = include_bytes!("dictionary-1.txt");
/// Of zstd. Messages are a few KB and few: 2 % are worth a millisecond.
const LEVEL: i32 = 19;
/// Columns of one payload.
const MAX_COLUMNS: usize = 1 << 16;
/// Deepest nesting.
const MAX_DEPTH: usize = 24;

/// Kinds of columns.
const SAME: u8 = 0;
const TEXT: u8 = 1;
/// And one more for each [`number::Coding`].
const NUMBERS: u8 = 2;

/// Why a payload is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ColumnsError {
    #[error("zstd: {reason}")]
    Compression { reason: String },
    #[error("columns end too early")]
    Short,
    #[error("column {column} goes on behind its last value")]
    Long { column: usize },
    #[error("an object names keys that are not listed")]
    UnknownKeys,
    #[error("a list of keys is no JSON list of texts")]
    Keys,
    #[error("column {column} is malformed")]
    Column { column: usize },
    #[error("values nest deeper than {MAX_DEPTH}")]
    Deep,
    #[error("there are more than {MAX_COLUMNS} columns")]
    Wide,
    #[error("columns unpack to more than {limit} bytes")]
    Large { limit: usize },
}

fn compression(error: &std::io::Error) -> ColumnsError {
    ColumnsError::Compression { reason: error.to_string() }
}

/// Whether a payload is in columns.
pub(super) fn is_packed(payload: &[u8]) -> bool {
    payload.first() == Some(&FORMAT)
}

/// # Errors
/// [`ColumnsError::Deep`], [`ColumnsError::Wide`], [`ColumnsError::Compression`].
pub(super) fn to_payload(value: &Value) -> Result<Vec<u8>, ColumnsError> {
    let pack::Packed { shape, numbers } = pack::pack(value)?;
    let mut with_words = Compressor::with_dictionary(LEVEL, DICTIONARY).map_err(|e| compression(&e))?;
    let shape = with_words.compress(&shape).map_err(|e| compression(&e))?;
    let numbers = zstd::bulk::compress(&numbers, LEVEL).map_err(|e| compression(&e))?;
    let mut payload = vec![FORMAT];
    number::put(&mut payload, shape.len() as u64);
    payload.extend(shape);
    payload.extend(numbers);
    Ok(payload)
}

/// The JSON of a payload, of at most `limit` bytes. What tokens hold is not looked at: it is JSON's to refuse.
///
/// # Errors
/// [`ColumnsError`]; never allocates more than three times `limit`.
pub(super) fn to_json(payload: &[u8], limit: usize) -> Result<String, ColumnsError> {
    let mut rest = payload.strip_prefix(&[FORMAT]).ok_or(ColumnsError::Short)?;
    let length = number::take(&mut rest).and_then(|n| usize::try_from(n).ok()).ok_or(ColumnsError::Short)?;
    let (shape, numbers) = rest.split_at_checked(length).ok_or(ColumnsError::Short)?;
    let mut with_words = Decompressor::with_dictionary(DICTIONARY).map_err(|e| compression(&e))?;
    let shape = with_words.decompress(shape, limit).map_err(|e| compression(&e))?;
    let numbers = zstd::bulk::decompress(numbers, limit).map_err(|e| compression(&e))?;
    unpack::unpack(&shape, &numbers, limit)
}
