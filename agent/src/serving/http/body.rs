//! Reads bodies under limits: by announced length before the first byte, by count while reading,
//! by time against slow senders, and by the sum over all requests.

use super::{ApiError, ServingState};
use crate::serving::budget::Share;
use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use futures::StreamExt;
use std::{
    io::Read,
    time::{Duration, Instant},
};

/// Bodies above this are unpacked and parsed away from the threads that serve connections.
pub(in crate::serving) const OFF_THREAD: usize = 256 * 1024;
/// How much of a refused body is read, so that the client gets to see the answer.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(2);

fn too_large(found: Option<u64>, limit: usize) -> ApiError {
    let found = found.map_or("more".to_owned(), |found| format!("{found} bytes"));
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has {found}, {limit} bytes are allowed"))
}

/// Swallows a little of a body that nobody reads: closing at once would reset the connection and
/// the client would lose the answer that says why.
pub(in crate::serving) fn linger(body: Body) {
    tokio::spawn(async move {
        let mut stream = body.into_data_stream();
        let mut left = LINGER_BYTES;
        let drain = async {
            while let Some(Ok(chunk)) = stream.next().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, drain).await; // either way the body is dropped now
    });
}

/// The body as sent.
///
/// # Errors
/// 413 above `limit`, 408 if it comes too slowly, 503 beyond the budget, 400 if it breaks off.
pub(in crate::serving) async fn read(
    share: &mut Share,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        // A client that waits for `100 Continue` has sent nothing and must not be told to.
        if !headers.contains_key(header::EXPECT) {
            linger(body);
        }
        return Err(too_large(announced, limit));
    }
    let config = share.state.0.config.clone();
    let deadline = Instant::now() + config.body_timeout;
    let mut stream = body.into_data_stream();
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    loop {
        let wait = config.body_pause.min(deadline.saturating_duration_since(Instant::now()));
        let chunk = match tokio::time::timeout(wait, stream.next()).await {
            Err(_) => {
                let had = first.len() + whole.len();
                let why = format!("the body stopped coming after {had} bytes");
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, why));
            }
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(ApiError::bad(format!("the body broke off: {error}"))),
            Ok(Some(Ok(chunk))) => chunk,
        };
        let size = first.len() + whole.len() + chunk.len();
        if size > limit {
            linger(Body::from_stream(stream));
            return Err(too_large(None, limit));
        }
        share.grow(chunk.len())?;
        // One chunk is passed on as it is; only further ones cost a copy.
        if first.is_empty() && whole.is_empty() {
            first = chunk;
        } else {
            if whole.is_empty() {
                // The length is a claim: believe at most a mebibyte of it ahead of the bytes.
                let claim = announced.map_or(size * 2, |length| length as usize);
                whole.reserve(claim.min(1 << 20).max(size));
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&chunk);
        }
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serving) enum Coding {
    Identity,
    Gzip,
    /// zlib framing, as the registry means it.
    Deflate,
}

/// # Errors
/// 415 for any other coding.
pub(in crate::serving) fn coding_of(headers: &HeaderMap) -> Result<Coding, ApiError> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(Coding::Identity) };
    match value.to_str().unwrap_or("?").trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Coding::Identity),
        "gzip" | "x-gzip" => Ok(Coding::Gzip),
        "deflate" => Ok(Coding::Deflate),
        other => {
            let other: String = other.chars().take(40).collect();
            let why = format!("content encoding `{other}` is not understood; use gzip, deflate or none");
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
        }
    }
}

/// The coding a client explicitly offers to read, gzip first.
pub(in crate::serving) fn coding_wanted(headers: &HeaderMap) -> Coding {
    let offers = |wanted: &str| {
        headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).any(|list| {
            list.split(',').any(|offer| {
                let (name, quality) = offer.split_once(';').unwrap_or((offer, ""));
                let refused = matches!(quality.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
                name.trim().eq_ignore_ascii_case(wanted) && !refused
            })
        })
    };
    if offers("gzip") {
        Coding::Gzip
    } else if offers("deflate") {
        Coding::Deflate
    } else {
        Coding::Identity
    }
}

/// Unpacks at most `limit` bytes.
///
/// # Errors
/// 400 if the body is not of that coding, 413 above `limit`, 503 beyond the budget.
pub(in crate::serving) fn unpack(
    share: &mut Share,
    body: Bytes,
    coding: Coding,
    limit: usize,
) -> Result<Bytes, ApiError> {
    let mut reader: Box<dyn Read> = match coding {
        Coding::Identity => return Ok(body),
        Coding::Gzip => Box::new(MultiGzDecoder::new(&body[..])),
        Coding::Deflate => Box::new(ZlibDecoder::new(&body[..])),
    };
    let mut out = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = reader
            .read(&mut chunk)
            .map_err(|error| ApiError::bad(format!("the body is not {coding:?} as announced: {error}")))?;
        if n == 0 {
            return Ok(Bytes::from(out));
        }
        if out.len() + n > limit {
            return Err(too_large(None, limit));
        }
        share.grow(n)?;
        out.extend_from_slice(&chunk[..n]);
    }
}

/// Reads, unpacks and parses a small JSON document; an empty body is an empty object.
///
/// # Errors
/// As [`read`] and [`unpack`], and 400 if it is no JSON of the wanted form.
pub(in crate::serving) async fn read_json<T: serde::de::DeserializeOwned>(
    state: &ServingState,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<T, ApiError> {
    let coding = coding_of(headers)?;
    let mut share = Share::new(state);
    let raw = read(&mut share, headers, body, limit).await?;
    let raw = unpack(&mut share, raw, coding, limit)?;
    let json = if raw.is_empty() { &b"{}"[..] } else { &raw[..] };
    serde_json::from_slice(json)
        .map_err(|error| ApiError::bad(format!("the body is not JSON of the expected form: {error}")))
}
