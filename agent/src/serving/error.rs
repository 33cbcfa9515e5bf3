//! Errors as clients see them: a status and a text. Over HTTP that is `{"error": text}`; gRPC has codes of its own.

use super::oip::OipError;
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None }
    }
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }
    /// 503; `after` becomes whole seconds, at least one.
    pub(super) fn busy(message: impl Into<String>, after: Duration) -> Self {
        Self { retry_after: Some(after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }
}

impl ApiError {
    pub(super) fn message(&self) -> &str {
        &self.message
    }
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl From<OipError> for ApiError {
    fn from(error: OipError) -> Self {
        match error {
            OipError::Bad(message) => Self::bad(message),
            OipError::Unsupported(message) => Self::unsupported(message),
            OipError::Forbidden(message) => Self::new(StatusCode::FORBIDDEN, message),
            OipError::Busy(message) => Self::busy(message, Duration::from_secs(1)),
            OipError::Model(message) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(serde_json::json!({ "error": self.message }))).into_response();
        if let Some(after) = self.retry_after {
            let secs = (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
