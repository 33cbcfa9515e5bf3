//! JSON collections with a limit, so that a small body cannot become a large value: `[{},{},...]`
//! of 64 MiB would otherwise grow to gigabytes.

use super::request::Parameter;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use std::{collections::BTreeMap, fmt, marker::PhantomData};

/// At most `N` elements.
pub(super) struct List<T, const N: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Elements<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Elements<T, N> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {N} elements")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if list.len() == N {
                        return Err(de::Error::invalid_length(N + 1, &self));
                    }
                    list.push(element);
                }
                Ok(list)
            }
        }
        d.deserialize_seq(Elements::<T, N>(PhantomData)).map(Self)
    }
}

/// Parameters of one object.
pub(super) const MAX_PARAMETERS: usize = 64;

/// Parameters by name: at most 64, each a string, number or truth value.
#[derive(Default)]
pub(super) struct Parameters(pub(super) BTreeMap<String, Parameter>);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = BTreeMap<String, Parameter>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of at most 64 parameters")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    if entries.len() == MAX_PARAMETERS {
                        return Err(de::Error::invalid_length(MAX_PARAMETERS + 1, &self));
                    }
                    entries.insert(name, value);
                }
                Ok(entries)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(BTreeMap::new())
            }
        }
        d.deserialize_any(Entries).map(Self)
    }
}

/// By hand, because an untagged enum would first copy whatever stands there.
impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Parameter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number, true or false")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Parameter, E> {
                Ok(Parameter::Bool(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Parameter, E> {
                Ok(Parameter::Unsigned(value))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Parameter, E> {
                Ok(Parameter::OtherNumber)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Parameter, E> {
                Ok(Parameter::OtherNumber)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Parameter, E> {
                Ok(Parameter::Text(text.to_owned()))
            }
        }
        d.deserialize_any(Scalar)
    }
}
