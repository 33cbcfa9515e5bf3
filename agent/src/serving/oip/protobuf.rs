//! Protocol buffers on the wire: just enough to read and write the messages of the inference service.
//!
//! Reading goes field by field over one buffer and copies nothing, so a reader decides how many fields it takes
//! before it allocates for them: a generated decoder would turn a few bytes into a large value each.
//! Source: "Encoding" in the documentation of Protocol Buffers; groups, long deprecated, are refused.

use super::OipError;
use bytes::Bytes;

/// One value as it stands on the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    /// Text, bytes, a message, or packed numbers: a slice of the buffer.
    Bytes(Bytes),
}

/// The fields of one message, in order.
#[derive(Clone, Debug)]
pub struct Fields(Bytes);

fn broken<T>(what: &str) -> Result<T, OipError> {
    Err(OipError::Bad(format!("the message is not a protocol buffer of the expected form: {what}")))
}

impl Fields {
    pub fn of(message: Bytes) -> Self {
        Self(message)
    }

    /// # Errors
    /// [`OipError::Bad`] if the message breaks off or is none.
    #[allow(clippy::should_implement_trait)] // an iterator could not end at the first error
    pub fn next(&mut self) -> Result<Option<(u32, Value)>, OipError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = varint(&mut self.0)?;
        let Ok(field) = u32::try_from(tag >> 3) else { return broken("a field number is too large") };
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut self.0)?),
            1 => Value::Fixed64(fixed(&mut self.0)?),
            2 => {
                let length = varint(&mut self.0)?;
                match usize::try_from(length) {
                    Ok(length) if length <= self.0.len() => Value::Bytes(self.0.split_to(length)),
                    _ => return broken("a field is longer than the message"),
                }
            }
            5 => Value::Fixed32(fixed(&mut self.0)?),
            kind => return broken(&format!("field {field} has the unknown kind {kind}")),
        };
        if field == 0 {
            return broken("a field has the number 0");
        }
        Ok(Some((field, value)))
    }
}

/// Takes one number off the front.
///
/// # Errors
/// [`OipError::Bad`] if it breaks off or has more than 64 bits.
pub fn varint(rest: &mut Bytes) -> Result<u64, OipError> {
    let mut value = 0u64;
    for (at, byte) in rest.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            break;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            bytes::Buf::advance(rest, at + 1);
            return Ok(value);
        }
    }
    broken("a number breaks off or is too large")
}

fn fixed<const N: usize>(rest: &mut Bytes) -> Result<[u8; N], OipError> {
    match rest.first_chunk::<N>().copied() {
        Some(value) => {
            bytes::Buf::advance(rest, N);
            Ok(value)
        }
        None => broken("a number breaks off"),
    }
}

impl Value {
    /// # Errors
    /// As all of these: [`OipError::Bad`] if the field holds something else.
    pub fn number(&self) -> Result<u64, OipError> {
        match self {
            Self::Varint(value) => Ok(*value),
            _ => broken("a number was expected"),
        }
    }
    /// # Errors
    /// See [`Value::number`].
    pub fn flag(&self) -> Result<bool, OipError> {
        self.number().map(|value| value != 0)
    }
    /// # Errors
    /// See [`Value::number`].
    pub fn bytes(self) -> Result<Bytes, OipError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => broken("text, bytes or a message was expected"),
        }
    }
    /// # Errors
    /// See [`Value::number`]; also if it is not UTF-8.
    pub fn text(self) -> Result<String, OipError> {
        String::from_utf8(self.bytes()?.to_vec()).or_else(|_| broken("text is not UTF-8"))
    }
    /// # Errors
    /// See [`Value::number`].
    pub fn message(self) -> Result<Fields, OipError> {
        self.bytes().map(Fields::of)
    }
    /// Reads a repeated number, packed or not, into `list`.
    ///
    /// # Errors
    /// See [`Value::number`]; also if `list` would have more than `most`.
    pub fn numbers(self, list: &mut Vec<i64>, most: usize) -> Result<(), OipError> {
        let mut take = |value: u64| {
            if list.len() == most {
                return Err(OipError::Bad(format!("at most {most} dimensions are taken")));
            }
            list.push(value.cast_signed());
            Ok(())
        };
        match self {
            Self::Varint(value) => take(value),
            Self::Bytes(mut packed) => {
                while !packed.is_empty() {
                    take(varint(&mut packed)?)?;
                }
                Ok(())
            }
            _ => broken("numbers were expected"),
        }
    }
}

/// Writes one message. Values that are the default of their kind are left away, as the format says.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    /// The head of a field of `length` bytes, which the caller puts behind it.
    pub fn head(&mut self, field: u32, length: usize) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(length as u64);
    }
    pub fn uint(&mut self, field: u32, value: u64) -> &mut Self {
        if value != 0 {
            self.choice(field, value);
        }
        self
    }
    /// A member of a `oneof`, which is written even if it is 0.
    pub fn choice(&mut self, field: u32, value: u64) -> &mut Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }
    pub fn flag(&mut self, field: u32, value: bool) -> &mut Self {
        self.uint(field, u64::from(value))
    }
    pub fn text(&mut self, field: u32, value: &str) -> &mut Self {
        if !value.is_empty() {
            self.element(field, value);
        }
        self
    }
    /// An element of a repeated text, or a member of a `oneof`, which is written even if it is empty.
    pub fn element(&mut self, field: u32, value: &str) -> &mut Self {
        self.head(field, value.len());
        self.0.extend_from_slice(value.as_bytes());
        self
    }
    pub fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::new();
        write(&mut inner);
        self.head(field, inner.0.len());
        self.0.extend_from_slice(&inner.0);
        self
    }
    /// Packed numbers.
    pub fn numbers(&mut self, field: u32, values: impl Iterator<Item = i64>) -> &mut Self {
        let mut packed = Self::new();
        values.for_each(|value| packed.varint(value.cast_unsigned()));
        if !packed.0.is_empty() {
            self.head(field, packed.0.len());
            self.0.extend_from_slice(&packed.0);
        }
        self
    }
    /// An entry of a map from text.
    pub fn entry(&mut self, field: u32, key: &str, value: impl FnOnce(&mut Self)) -> &mut Self {
        self.message(field, |entry| {
            entry.text(1, key);
            entry.message(2, value);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_fields_or_an_error(raw in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut fields = Fields::of(raw.into());
            while let Ok(Some((_, value))) = fields.next() {
                if let Ok(mut inner) = value.message() {
                    while let Ok(Some(_)) = inner.next() {}
                }
            }
        }

        #[test]
        fn what_is_written_reads_back(number in any::<u64>(), text in ".{0,40}", dims in prop::collection::vec(any::<i64>(), 0..8)) {
            let mut writer = Writer::new();
            writer.choice(1, number).element(2, &text).numbers(3, dims.iter().copied());
            writer.entry(4, "k", |value| { value.flag(1, true); });
            let mut fields = Fields::of(writer.finish().into());
            prop_assert_eq!(fields.next().unwrap().unwrap(), (1, Value::Varint(number)));
            prop_assert_eq!(fields.next().unwrap().unwrap().1.text().unwrap(), text);
            let mut found = vec![];
            let mut next = fields.next().unwrap().unwrap();
            if next.0 == 3 {
                next.1.numbers(&mut found, 8).unwrap();
                next = fields.next().unwrap().unwrap();
            }
            prop_assert_eq!(found, dims);
            let mut entry = next.1.message().unwrap();
            prop_assert_eq!(entry.next().unwrap().unwrap().1.text().unwrap(), "k");
            prop_assert!(fields.next().unwrap().is_none());
        }
    }

    #[test]
    fn lengths_and_numbers_that_lie_are_refused() {
        for raw in [
            &b"\x0a\x05abc"[..],
            b"\x08",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x0d\0\0",
            b"\x0b",
            b"\x02\0",
        ] {
            assert!(Fields::of(Bytes::copy_from_slice(raw)).next().is_err(), "{raw:?}");
        }
    }
}
