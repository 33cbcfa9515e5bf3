//! Errors as `application/problem+json` (RFC 9457) with a code for programs and a hint for people.

use crate::{
    blobs::BlobError,
    fleet::{Class, FleetError},
};
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

pub const PROBLEM_JSON: &str = "application/problem+json";

/// One refusal or failure, as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// A word for programs; never changes once given out.
    pub code: &'static str,
    pub detail: String,
    pub hint: Option<String>,
    pub retry_after_secs: Option<u64>,
}

/// The body of every error answer.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ProblemBody {
    /// `urn:edgefleet:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:edgefleet:problem:invite-expired")]
    pub kind: String,
    /// The code in words.
    #[schema(example = "invite expired")]
    pub title: String,
    #[schema(example = 403)]
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// A word for programs.
    #[schema(example = "invite-expired")]
    pub code: String,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Names this answer: `urn:edgefleet:request:` and the id that the log and the header `x-request-id` have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), hint: None, retry_after_secs: None }
    }
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }
    /// For what people cannot help: the cause goes to the log only.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        let chain: Vec<String> = chain.map(ToString::to_string).collect();
        tracing::error!(error = %chain.join(": "), "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the controller failed to do this")
            .hint("the controller's log has the cause under the request id")
    }

    /// The answer; `request_id` as in the log.
    pub(super) fn render(&self, request_id: Option<&str>) -> Response {
        let body = ProblemBody {
            kind: format!("urn:edgefleet:problem:{}", self.code),
            title: self.code.replace('-', " "),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code.to_owned(),
            hint: self.hint.clone(),
            instance: request_id.map(|id| format!("urn:edgefleet:request:{id}")),
        };
        let body = serde_json::to_vec(&body).unwrap_or_default(); // plain texts: cannot fail
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// The outermost layer renders it again, with the request's id.
    fn into_response(self) -> Response {
        let mut response = self.render(None);
        response.extensions_mut().insert(self);
        response
    }
}

impl From<FleetError> for Problem {
    fn from(error: FleetError) -> Self {
        let status = match error.class() {
            Class::Invalid => StatusCode::BAD_REQUEST,
            Class::Forbidden => StatusCode::FORBIDDEN,
            Class::NotFound => StatusCode::NOT_FOUND,
            Class::Conflict => StatusCode::CONFLICT,
            Class::Stale => StatusCode::PRECONDITION_FAILED,
            Class::TooMany { retry_after_secs } => {
                let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, error.code(), error.to_string());
                problem.hint = error.hint().map(str::to_owned);
                problem.retry_after_secs = Some(retry_after_secs);
                return problem;
            }
            Class::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Class::Internal => return Self::internal(&error),
        };
        let mut problem = Self::new(status, error.code(), error.to_string());
        problem.hint = error.hint().map(str::to_owned);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            tracing::error!(error = %error, "a request could not be served");
            problem.retry_after_secs = Some(5);
        }
        problem
    }
}

impl From<BlobError> for Problem {
    fn from(error: BlobError) -> Self {
        match &error {
            BlobError::NotFound { .. } => Self::not_found("blob-unknown", error.to_string()),
            BlobError::OutOfRange { .. } => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", error.to_string())
            }
            BlobError::TooLarge { .. } | BlobError::ReadTooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "blob-too-large", error.to_string())
            }
            BlobError::DigestMismatch { .. } => Self::bad_request("digest-mismatch", error.to_string()),
            BlobError::DiskFull { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "the controller's disk is full")
            }
            BlobError::Io { .. } => Self::internal(&error),
        }
    }
}
