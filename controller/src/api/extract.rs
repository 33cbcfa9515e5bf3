//! Reading requests: bounded, strict, and with problems that name the mistake.

use super::problem::Problem;
use crate::store::Revision;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Request, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::de::DeserializeOwned;
use std::{str::FromStr, time::Duration};

/// Longest time a client may take to send a small body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries of a page: what is given when nothing is asked for, and at most.
pub const DEFAULT_LIMIT: usize = 100;
pub const MAX_LIMIT: usize = 1_000;

/// A JSON body of at most the router's body limit.
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for ApiJson<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or("").split(';').next().unwrap_or("").trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let detail = format!("the body must be application/json, not `{}`", kind.escape_debug());
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", detail));
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await;
        let body = body.map_err(|_| {
            let detail = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", detail)
        })?;
        let body = body.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(_) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the body is too large")
            }
            _ => Problem::bad_request("body-unreadable", "the body could not be read"),
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            Problem::bad_request("json-invalid", format!("the body is not acceptable: {error}"))
        })
    }
}

/// A path parameter that parses as `T`.
pub struct ApiPath<T>(pub T);

impl<T, S> FromRequestParts<S> for ApiPath<T>
where
    T: FromStr + Send,
    T::Err: std::fmt::Display,
    S: Send + Sync,
{
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::bad_request("path-invalid", error.to_string()))?;
        let parsed =
            text.parse().map_err(|error| Problem::bad_request("path-invalid", format!("{error}")))?;
        Ok(Self(parsed))
    }
}

/// Query parameters as they came, keys possibly repeated.
pub struct Pairs(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Pairs {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        query
            .map(|query| Self(query.0))
            .map_err(|error| Problem::bad_request("query-invalid", error.body_text()))
    }
}

impl Pairs {
    /// Refuses parameters that are not `known`: a misspelt filter must not list everything.
    ///
    /// # Errors
    /// A problem naming the first stranger.
    pub fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.0.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => {
                let key: String = key.chars().take(40).collect();
                let detail = format!("unknown parameter `{key}`; known are {}", known.join(", "));
                Err(Problem::bad_request("query-invalid", detail))
            }
        }
    }

    /// Every value of `key`, parsed.
    ///
    /// # Errors
    /// A problem naming the first value that does not parse.
    pub fn all<T: FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<Vec<T>, Problem> {
        let values = self.0.iter().filter(|(found, _)| found == key);
        let bad = |error| Problem::bad_request("query-invalid", format!("parameter `{key}`: {error}"));
        values.map(|(_, value)| value.parse().map_err(bad)).collect()
    }

    /// The value of `key`, if given once.
    ///
    /// # Errors
    /// A problem if it does not parse or comes twice.
    pub fn one<T: FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<Option<T>, Problem> {
        let mut all = self.all(key)?;
        if all.len() > 1 {
            return Err(Problem::bad_request("query-invalid", format!("parameter `{key}` is given twice")));
        }
        Ok(all.pop())
    }

    /// The page asked for by `cursor` and `limit`: where it starts, and how many entries it has at most.
    ///
    /// # Errors
    /// A problem for a damaged cursor or a limit outside 1 to 1,000.
    pub fn page<T: FromStr>(&self) -> Result<(Option<T>, usize), Problem> {
        let limit = self.one::<usize>("limit")?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            let detail = format!("parameter `limit` is {limit}, 1 to {MAX_LIMIT} are allowed");
            return Err(Problem::bad_request("query-invalid", detail));
        }
        let Some(cursor) = self.one::<String>("cursor")? else { return Ok((None, limit)) };
        let after = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|raw| String::from_utf8(raw).ok());
        match after.and_then(|text| text.parse().ok()) {
            Some(after) => Ok((Some(after), limit)),
            None => Err(Problem::bad_request("cursor-invalid", "the cursor is not one this server gave out")),
        }
    }
}

/// What to send as `cursor` for the page after the entry `id`.
pub fn cursor(id: &str) -> String {
    URL_SAFE_NO_PAD.encode(id)
}

/// The entity tag of a document's revision.
pub fn etag(revision: Revision) -> HeaderValue {
    // Digits in quotes are always a legal header value.
    HeaderValue::from_str(&format!("\"{}\"", revision.0)).unwrap_or(HeaderValue::from_static("\"0\""))
}

/// The revision in `If-Match`; `None` without the header or with `*`.
///
/// # Errors
/// A problem for anything that is not one of our entity tags.
pub fn if_match(headers: &HeaderMap) -> Result<Option<Revision>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let bad = || {
        Problem::bad_request("if-match-invalid", "`If-Match` must hold the one ETag of this resource, or `*`")
    };
    let text = value.to_str().map_err(|_| bad())?.trim();
    if text == "*" {
        return Ok(None);
    }
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).ok_or_else(bad)?;
    digits.parse().map(|revision| Some(Revision(revision))).map_err(|_| bad())
}
