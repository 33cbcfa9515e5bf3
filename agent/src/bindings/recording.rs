//! Inputs recorded with their times, one JSON object a line. Pure.
//!
//! `{"at_ms": 1700000000123, "request": {"inputs": [...]}}`, `{"at_ms": 40, "bytes": "base64"}`, or a bare request.
//! `at_ms` counts from anywhere; without it an entry belongs to the one before.

use crate::serving::local::Body;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;

/// One recorded input.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Since the recording's own beginning of time.
    pub at: Option<Duration>,
    pub body: Body,
}

#[derive(Deserialize)]
struct Wire<'a> {
    at_ms: Option<f64>,
    #[serde(borrow)]
    request: Option<&'a RawValue>,
    bytes: Option<String>,
    #[serde(borrow)]
    inputs: Option<&'a RawValue>,
}

/// Reads one line, whose length the caller has bounded.
///
/// # Errors
/// What is wrong with it, without its number.
pub fn parse(line: &Bytes) -> Result<Entry, String> {
    let wire: Wire<'_> = serde_json::from_slice(line).map_err(|e| format!("is no entry in JSON: {e}"))?;
    let at = match wire.at_ms {
        None => None,
        Some(ms) => Some(Duration::try_from_secs_f64(ms / 1e3).map_err(|_| format!("`at_ms` is {ms}"))?),
    };
    let body = match (wire.request, wire.bytes, wire.inputs) {
        (Some(request), None, None) => Body::Json(Bytes::copy_from_slice(request.get().as_bytes())),
        (None, Some(text), None) => {
            let raw = STANDARD.decode(text).map_err(|e| format!("`bytes` is no base64: {e}"))?;
            Body::Raw(raw.into())
        }
        (None, None, Some(_)) => Body::Json(line.clone()),
        _ => return Err("needs one of `request`, `bytes` and `inputs`".into()),
    };
    Ok(Entry { at, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_a_time_and_one_input() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let json = |text: &'static str| Body::Json(Bytes::from_static(text.as_bytes()));
        for (line, at, body) in [
            (r#"{"at_ms": 1500, "request": {"inputs": []}}"#, ms(1_500), json(r#"{"inputs": []}"#)),
            (r#"{"bytes":"/9j/","at_ms":0.5,"camera":3}"#, Some(Duration::from_micros(500)), {
                Body::Raw(Bytes::from_static(b"\xff\xd8\xff"))
            }),
            (r#"{"id":"7","inputs":[]}"#, None, json(r#"{"id":"7","inputs":[]}"#)),
        ] {
            let found = parse(&Bytes::from_static(line.as_bytes())).unwrap();
            assert_eq!(found, Entry { at, body }, "{line}");
        }
        for (line, why) in [
            ("[]", "is no entry in JSON"),
            (r#"{"at_ms":1}"#, "needs one of"),
            (r#"{"request":{},"bytes":"AA=="}"#, "needs one of"),
            (r#"{"bytes":"%"}"#, "is no base64"),
            (r#"{"at_ms":-1,"inputs":[]}"#, "`at_ms` is -1"),
            (r#"{"at_ms":1e300,"inputs":[]}"#, "`at_ms` is"),
            (r#"{"at_ms":"x","inputs":[]}"#, "is no entry in JSON"),
        ] {
            let found = parse(&Bytes::from_static(line.as_bytes())).unwrap_err();
            assert!(found.contains(why), "{line}: {found}");
        }
    }
}
