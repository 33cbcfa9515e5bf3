//! Refusals as gRPC tells them: a code and a text, after the message or instead of it.

use super::{BUNDLE, frame::KIND};
use crate::serving::error::ApiError;
use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};

pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Bytes of a text that travel; header lists are bounded.
const LONGEST: usize = 4_096;

/// The canonical code for what HTTP would answer.
pub(super) fn code(status: StatusCode) -> u8 {
    match status {
        StatusCode::OK => 0,
        StatusCode::BAD_REQUEST => 3,            // INVALID_ARGUMENT
        StatusCode::REQUEST_TIMEOUT => 4,        // DEADLINE_EXCEEDED
        StatusCode::GATEWAY_TIMEOUT => 4,        // DEADLINE_EXCEEDED
        StatusCode::NOT_FOUND => 5,              // NOT_FOUND
        StatusCode::CONFLICT => 6,               // ALREADY_EXISTS
        StatusCode::FORBIDDEN => 7,              // PERMISSION_DENIED
        StatusCode::PAYLOAD_TOO_LARGE => 8,      // RESOURCE_EXHAUSTED
        StatusCode::NOT_IMPLEMENTED => 12,       // UNIMPLEMENTED
        StatusCode::METHOD_NOT_ALLOWED => 12,    // UNIMPLEMENTED
        StatusCode::INTERNAL_SERVER_ERROR => 13, // INTERNAL
        StatusCode::SERVICE_UNAVAILABLE => 14,   // UNAVAILABLE
        StatusCode::UNAUTHORIZED => 16,          // UNAUTHENTICATED
        _ => 2,                                  // UNKNOWN
    }
}

pub(super) fn too_late() -> ApiError {
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the deadline of the call has passed")
}

pub(super) fn fill(headers: &mut HeaderMap, outcome: Result<(), &ApiError>) {
    let number = outcome.map_or_else(|error| code(error.status), |()| 0);
    headers.insert(STATUS, HeaderValue::from(u16::from(number)));
    if let Err(error) = outcome
        && let Ok(text) = HeaderValue::from_bytes(&escaped(error.message()))
    {
        headers.insert(MESSAGE, text);
    }
}

/// An answer without a message.
pub(super) fn refusal(error: &ApiError, bundle: Option<&str>) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, KIND);
    headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity,deflate,gzip"));
    fill(headers, Err(error));
    if let Some(bundle) = bundle.and_then(|bundle| HeaderValue::from_str(bundle).ok()) {
        headers.insert(BUNDLE, bundle);
    }
    response
}

/// `grpc-message`: printable ASCII, the rest and `%` as `%XX`.
fn escaped(text: &str) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if escaped.len() > LONGEST {
            break;
        }
        match byte {
            b' '..=b'~' if byte != b'%' => escaped.push(byte),
            _ => escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_survive_as_header_values() {
        assert_eq!(escaped("100 % of `x`"), b"100 %25 of `x`");
        assert_eq!(escaped("ü\n"), b"%C3%BC%0A");
        assert!(escaped(&"ü".repeat(10_000)).len() <= LONGEST + 3);
    }
}
