//! Typed tensor contents of gRPC (`InferTensorContents`), which most clients leave for raw ones, as raw bytes.

use super::{
    OipError,
    fit::{Memory, bad},
    protobuf::{Fields, Value, varint},
};
use bytes::Bytes;
use edgefleet_shared::tensor::{Datatype, element_count};

/// Field of `InferTensorContents` that holds elements of `datatype`; `None` for 16-bit floats, which have none.
fn field_of(datatype: Datatype) -> Option<u32> {
    match datatype {
        Datatype::Bool => Some(1),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => Some(2),
        Datatype::Int64 => Some(3),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => Some(4),
        Datatype::Uint64 => Some(5),
        Datatype::Fp32 => Some(6),
        Datatype::Fp64 => Some(7),
        Datatype::Bytes => Some(8),
        Datatype::Fp16 | Datatype::Bf16 => None,
    }
}

/// Reads the elements of tensor `name` as its raw bytes.
///
/// # Errors
/// [`OipError::Bad`] names the tensor and the element; [`OipError::Busy`] if there is no room for what they decode to.
pub(super) fn read_contents(
    name: &str,
    datatype: Datatype,
    shape: &[usize],
    contents: Bytes,
    memory: &mut dyn Memory,
) -> Result<Vec<u8>, OipError> {
    let Some(field) = field_of(datatype) else {
        return bad(format!("input `{name}`: {datatype} has no typed contents; send raw_input_contents"));
    };
    let least = match datatype {
        Datatype::Fp32 => 4,
        Datatype::Fp64 => 8,
        Datatype::Bytes => 2,
        _ => 1,
    };
    let wanted = element_count(shape).filter(|count| *count <= contents.len() / least);
    let Some(wanted) = wanted else {
        let found = contents.len();
        return bad(format!(
            "input `{name}`: shape {shape:?} needs more elements than fit into {found} bytes"
        ));
    };
    // A byte may become eight; a text gets its length in front.
    let decoded = match datatype.size() {
        Some(size) => wanted.saturating_mul(size),
        None => wanted.saturating_mul(4).saturating_add(contents.len()),
    };
    memory.charge(decoded)?;
    let mut elements = Elements { name, datatype, wanted, count: 0, out: Vec::with_capacity(decoded) };
    let mut fields = Fields::of(contents);
    while let Some((found, value)) = fields.next()? {
        if found == field {
            elements.take(value)?;
        } else if (1..=8).contains(&found) {
            return bad(format!("input `{name}` is {datatype}, but its contents are of another type"));
        }
    }
    if elements.count != wanted {
        let count = elements.count;
        return bad(format!(
            "input `{name}`: shape {shape:?} needs {wanted} elements, the contents have {count}"
        ));
    }
    Ok(elements.out)
}

struct Elements<'a> {
    name: &'a str,
    datatype: Datatype,
    wanted: usize,
    count: usize,
    out: Vec<u8>,
}

impl Elements<'_> {
    fn take(&mut self, value: Value) -> Result<(), OipError> {
        match (self.datatype, value) {
            (Datatype::Bytes, Value::Bytes(element)) => {
                let length = u32::try_from(element.len()).unwrap_or(u32::MAX).to_le_bytes();
                self.one(&length)?;
                self.out.extend_from_slice(&element);
                Ok(())
            }
            (Datatype::Fp32, Value::Fixed32(element)) => self.one(&element),
            (Datatype::Fp64, Value::Fixed64(element)) => self.one(&element),
            (Datatype::Fp32, Value::Bytes(packed)) => self.packed::<4>(&packed),
            (Datatype::Fp64, Value::Bytes(packed)) => self.packed::<8>(&packed),
            (Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes, _) => self.odd(),
            (_, Value::Varint(element)) => self.whole(element),
            (_, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    let element = varint(&mut packed)?;
                    self.whole(element)?;
                }
                Ok(())
            }
            (_, Value::Fixed32(_) | Value::Fixed64(_)) => self.odd(),
        }
    }

    fn odd(&self) -> Result<(), OipError> {
        bad(format!("input `{}`: its contents are no {}", self.name, self.datatype))
    }

    fn one(&mut self, raw: &[u8]) -> Result<(), OipError> {
        if self.count == self.wanted {
            return bad(format!(
                "input `{}`: the contents have more than {} elements",
                self.name, self.wanted
            ));
        }
        self.count += 1;
        self.out.extend_from_slice(raw);
        Ok(())
    }

    fn packed<const N: usize>(&mut self, packed: &[u8]) -> Result<(), OipError> {
        let (elements, rest) = packed.as_chunks::<N>();
        if !rest.is_empty() {
            return self.odd();
        }
        elements.iter().try_for_each(|element| self.one(element))
    }

    fn whole(&mut self, element: u64) -> Result<(), OipError> {
        let signed = element.cast_signed();
        let fits = match self.datatype {
            Datatype::Bool => element <= 1,
            Datatype::Int8 => i8::try_from(signed).is_ok(),
            Datatype::Int16 => i16::try_from(signed).is_ok(),
            Datatype::Int32 => i32::try_from(signed).is_ok(),
            Datatype::Uint8 => u8::try_from(element).is_ok(),
            Datatype::Uint16 => u16::try_from(element).is_ok(),
            Datatype::Uint32 => u32::try_from(element).is_ok(),
            _ => true,
        };
        if !fits {
            let at = self.count;
            return bad(format!("input `{}` element {at} does not fit {}", self.name, self.datatype));
        }
        // Little endian: a narrower number is the beginning of a wider one.
        let width = self.datatype.size().unwrap_or(8);
        self.one(&element.to_le_bytes()[..width])
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{NoMemory, protobuf::Writer},
        *,
    };

    fn packed(field: u32, elements: &[i64]) -> Bytes {
        let mut writer = Writer::new();
        writer.numbers(field, elements.iter().copied());
        writer.finish().into()
    }

    #[test]
    fn whole_numbers_become_little_endian_and_must_fit() {
        for (datatype, field, elements, raw) in [
            (Datatype::Bool, 1, vec![1, 0], Some(vec![1u8, 0])),
            (Datatype::Bool, 1, vec![2], None),
            (Datatype::Int8, 2, vec![-1, 127], Some(vec![255, 127])),
            (Datatype::Int8, 2, vec![128], None),
            (Datatype::Int16, 2, vec![-2], Some(vec![254, 255])),
            (Datatype::Int32, 2, vec![i64::from(i32::MIN)], Some(vec![0, 0, 0, 128])),
            (Datatype::Int64, 3, vec![-1], Some(vec![255; 8])),
            (Datatype::Uint8, 4, vec![255], Some(vec![255])),
            (Datatype::Uint8, 4, vec![-1], None),
            (Datatype::Uint16, 4, vec![256], Some(vec![0, 1])),
            (Datatype::Uint32, 4, vec![1], Some(vec![1, 0, 0, 0])),
            (Datatype::Uint64, 5, vec![-1], Some(vec![255; 8])),
            (Datatype::Uint64, 4, vec![1], None),
            (Datatype::Fp16, 2, vec![1], None),
        ] {
            let found =
                read_contents("x", datatype, &[elements.len()], packed(field, &elements), &mut NoMemory);
            assert_eq!(found.ok(), raw, "{datatype} {elements:?}");
        }
    }

    #[test]
    fn floats_and_bytes_may_come_packed_or_one_by_one() {
        let mut raw = b"\x32\x08".to_vec();
        raw.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
        raw.extend(b"\x35");
        raw.extend(3.0f32.to_le_bytes());
        let wanted: Vec<u8> = [1.5f32, -2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            read_contents("x", Datatype::Fp32, &[3], raw.clone().into(), &mut NoMemory).unwrap(),
            wanted
        );
        for shape in [2, 4, usize::MAX] {
            assert!(
                read_contents("x", Datatype::Fp32, &[shape], raw.clone().into(), &mut NoMemory).is_err(),
                "{shape}"
            );
        }
        let texts = Bytes::from_static(b"\x42\x02ab\x42\x00");
        let raw = read_contents("x", Datatype::Bytes, &[1, 2], texts, &mut NoMemory).unwrap();
        assert_eq!(raw, b"\x02\0\0\0ab\0\0\0\0");
    }
}
