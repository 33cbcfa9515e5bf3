//! A protocol buffer taken apart without loss: fields in their order, unknown ones kept as they are. What is
//! not understood of a model comes out of a rewrite byte for byte.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Most fields of one message: a list of them takes some 48 bytes each, however small the field. A graph has
/// one for each node and weight; only weights written number by number, which nobody does, have more.
const MAX_FIELDS: usize = 1 << 20;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a protocol buffer that is read here")]
pub(super) struct NotWire;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// A string, bytes, a message or packed numbers: shares the memory of the file.
    Bytes(Bytes),
}

/// One message: `(field number, value)` in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message(pub(super) Vec<(u32, Value)>);

impl Message {
    /// Copies nothing; makes a list of at most [`MAX_FIELDS`].
    pub(super) fn parse(mut bytes: Bytes) -> Result<Self, NotWire> {
        let mut fields = Vec::new();
        while bytes.has_remaining() {
            let key = varint(&mut bytes)?;
            let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0).ok_or(NotWire)?;
            let value = match key & 7 {
                0 => Value::Varint(varint(&mut bytes)?),
                1 if bytes.remaining() >= 8 => Value::Fixed64(bytes.get_u64_le()),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).map_err(|_| NotWire)?;
                    if length > bytes.remaining() {
                        return Err(NotWire);
                    }
                    Value::Bytes(bytes.split_to(length))
                }
                5 if bytes.remaining() >= 4 => Value::Fixed32(bytes.get_u32_le()),
                // Groups are gone since before ONNX.
                _ => return Err(NotWire),
            };
            if fields.len() == MAX_FIELDS {
                return Err(NotWire);
            }
            fields.push((number, value));
        }
        Ok(Self(fields))
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        for (number, value) in &self.0 {
            let key = u64::from(*number) << 3;
            match value {
                Value::Varint(value) => {
                    put_varint(&mut out, key);
                    put_varint(&mut out, *value);
                }
                Value::Fixed64(value) => {
                    put_varint(&mut out, key | 1);
                    out.put_u64_le(*value);
                }
                Value::Bytes(value) => {
                    put_varint(&mut out, key | 2);
                    put_varint(&mut out, value.len() as u64);
                    out.extend_from_slice(value);
                }
                Value::Fixed32(value) => {
                    put_varint(&mut out, key | 5);
                    out.put_u32_le(*value);
                }
            }
        }
        out.freeze()
    }

    pub(super) fn all(&self, number: u32) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |(at, _)| *at == number).map(|(_, value)| value)
    }

    /// Every value of a repeated message or string field.
    pub(super) fn bytes(&self, number: u32) -> impl Iterator<Item = &Bytes> {
        self.all(number).filter_map(|value| match value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        })
    }

    /// Texts of a repeated string field. What is no UTF-8 is no message.
    pub(super) fn texts(&self, number: u32) -> Result<Vec<String>, NotWire> {
        self.bytes(number).map(|bytes| String::from_utf8(bytes.to_vec()).map_err(|_| NotWire)).collect()
    }

    /// The last text of a field; empty where there is none.
    pub(super) fn text(&self, number: u32) -> Result<String, NotWire> {
        Ok(self.texts(number)?.pop().unwrap_or_default())
    }

    /// The last varint of a field.
    pub(super) fn int(&self, number: u32) -> Option<i64> {
        let found = self.all(number).filter_map(|value| match value {
            Value::Varint(value) => Some(value.cast_signed()),
            _ => None,
        });
        found.last()
    }

    /// The last 32-bit float of a field.
    pub(super) fn float(&self, number: u32) -> Option<f32> {
        let found = self.all(number).filter_map(|value| match value {
            Value::Fixed32(bits) => Some(f32::from_bits(*bits)),
            _ => None,
        });
        found.last()
    }

    /// A repeated integer field, packed or not.
    pub(super) fn ints(&self, number: u32) -> Result<Vec<i64>, NotWire> {
        let mut found = Vec::new();
        for value in self.all(number) {
            match value {
                Value::Varint(value) => found.push(value.cast_signed()),
                Value::Bytes(packed) => {
                    let mut packed = packed.clone();
                    while packed.has_remaining() {
                        if found.len() == MAX_FIELDS {
                            return Err(NotWire);
                        }
                        found.push(varint(&mut packed)?.cast_signed());
                    }
                }
                Value::Fixed32(_) | Value::Fixed64(_) => return Err(NotWire),
            }
        }
        Ok(found)
    }

    pub(super) fn push_text(&mut self, number: u32, text: &str) {
        self.0.push((number, Value::Bytes(Bytes::copy_from_slice(text.as_bytes()))));
    }

    pub(super) fn push_message(&mut self, number: u32, message: &Self) {
        self.0.push((number, Value::Bytes(message.to_bytes())));
    }

    pub(super) fn push_int(&mut self, number: u32, value: i64) {
        self.0.push((number, Value::Varint(value.cast_unsigned())));
    }
}

fn varint(bytes: &mut Bytes) -> Result<u64, NotWire> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        if !bytes.has_remaining() {
            return Err(NotWire);
        }
        let byte = bytes.get_u8();
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(NotWire);
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(NotWire)
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_can_be_parsed_comes_back_with_the_same_meaning(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            if let Ok(message) = Message::parse(bytes.into()) {
                // A varint may be written longer than needed; the second writing is the first.
                let again = Message::parse(message.to_bytes()).unwrap();
                prop_assert_eq!(&again, &message);
            }
        }
    }

    #[test]
    fn lengths_beyond_the_end_and_endless_varints_are_refused() {
        for bytes in [&[0x0a, 0x05, 1][..], &[0xff; 12], &[0x08], &[0x0b], &[0x00, 0x00], &[0x0d, 1, 2]] {
            assert!(Message::parse(Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
        // A length near 2^64 asks for nothing.
        let huge = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Message::parse(Bytes::copy_from_slice(&huge)), Err(NotWire));
    }
}
