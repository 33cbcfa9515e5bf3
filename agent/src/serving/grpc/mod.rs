//! gRPC: `inference.GRPCInferenceService` as the stock Triton client has it, over the HTTP/2 of hyper.
//!
//! The framing is small and the messages are few, so both are read and written here, under the same limits as HTTP:
//! sizes are known before anything is allocated. What a call does is shared with HTTP: slots, queue, counts, errors.
//! Source: "gRPC over HTTP2" in the gRPC repository, and `grpc_service.proto` of the client.

mod admin;
mod describe;
mod frame;
mod infer;
mod status;
#[cfg(test)]
pub(super) mod tests;

use super::{
    budget::Share,
    error::ApiError,
    http::{access::admit, body::Coding},
    listen::Came,
    state::ServingState,
};
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    response::Response,
};
use bytes::Bytes;
use frame::{Messages, Wait};
use std::time::{Duration, Instant};

const SERVICE: &str = "/inference.GRPCInferenceService/";
/// Bytes of every message but those of inferences: they hold names and settings.
const SMALL: usize = 64 * 1024;
/// Which bundle answered; also on errors.
const BUNDLE: &str = "x-edgefleet-bundle";

/// Whether a request is for gRPC.
pub(super) fn is_meant(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// One call, and where it came from.
struct Call {
    state: ServingState,
    came: Came,
    head: Parts,
    coding: Coding,
    started: Instant,
    deadline: Option<Instant>,
}

/// What a call is answered with: the message in pieces, the bundle that made it, and the memory it holds.
struct Reply {
    chunks: Vec<Bytes>,
    bundle: Option<String>,
    share: Option<Share>,
}

impl From<Vec<u8>> for Reply {
    fn from(message: Vec<u8>) -> Self {
        Self { chunks: vec![message.into()], bundle: None, share: None }
    }
}

/// A refusal, the bundle that was asked, and the id of the request within a stream.
struct Refused {
    error: ApiError,
    bundle: Option<String>,
    id: Option<String>,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self { error, bundle: None, id: None }
    }
}

pub(super) async fn answer(state: ServingState, came: Came, request: Request) -> Response {
    let counting = state.clone();
    let (answer, status) = match begin(state, came, request).await {
        Ok(answer) => (answer, StatusCode::OK),
        Err(Refused { error, bundle, .. }) => (status::refusal(&error, bundle.as_deref()), error.status),
    };
    counting.count_response(status.as_u16());
    answer
}

async fn begin(state: ServingState, came: Came, request: Request) -> Result<Response, Refused> {
    let started = Instant::now();
    let (head, body) = request.into_parts();
    admit(&state.0.config, &head.headers, &head.uri, head.version, &came)?;
    if head.method != Method::POST {
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "gRPC calls are POST requests").into());
    }
    let coding = coding_of(&head.headers)?;
    let deadline = timeout_of(&head.headers)?.and_then(|timeout| started.checked_add(timeout));
    let method = head.uri.path().strip_prefix(SERVICE).unwrap_or_default().to_owned();
    let call = Call { state, came, head, coding, started, deadline };
    if method == "ModelStreamInfer" {
        return Ok(infer::stream(call, body));
    }
    let at = call.deadline;
    let answering = unary(&call, &method, body);
    let reply = match at {
        None => answering.await,
        Some(at) => match tokio::time::timeout_at(at.into(), answering).await {
            Ok(reply) => reply,
            Err(_) => Err(status::too_late().into()),
        },
    };
    Ok(frame::respond(reply?))
}

async fn unary(call: &Call, method: &str, body: Body) -> Result<Reply, Refused> {
    let is_inference = method == "ModelInfer";
    let limit = if is_inference { call.state.0.config.body_limit_bytes } else { SMALL };
    let mut messages = Messages::new(body, call.coding, limit, &call.state.0.config);
    let mut share = Share::new(&call.state);
    let Some(message) = messages.next(&mut share, Wait::Impatient).await? else {
        return Err(ApiError::bad("the call has no message").into());
    };
    if is_inference {
        return infer::infer(call, message, share, false).await;
    }
    let reply = match method {
        "ServerLive" => describe::truth(true),
        "ServerReady" => describe::truth(call.state.is_ready()),
        "ModelReady" => describe::model_ready(&call.state, message)?,
        "ServerMetadata" => describe::server(&call.state),
        "ModelMetadata" => describe::model(&call.state, message)?,
        "ModelConfig" => describe::config(&call.state, message)?,
        "ModelStatistics" => describe::statistics(&call.state, message)?,
        "RepositoryIndex" => describe::index(&call.state, message)?,
        "RepositoryModelLoad" => admin::set_available(call, message, true)?,
        "RepositoryModelUnload" => admin::set_available(call, message, false)?,
        "SystemSharedMemoryStatus" => admin::memory_status(call, message)?,
        "SystemSharedMemoryRegister" => admin::register_memory(call, message)?,
        "SystemSharedMemoryUnregister" => admin::unregister_memory(call, message)?,
        "TraceSetting" => admin::trace(message)?,
        "LogSettings" => admin::logging(message)?,
        "CudaSharedMemoryStatus" | "CudaSharedMemoryRegister" | "CudaSharedMemoryUnregister" => {
            let why = "CUDA shared memory is not supported; use system shared memory or send tensors";
            return Err(ApiError::unsupported(why).into());
        }
        _ => {
            let path: String = call.head.uri.path().chars().take(200).collect();
            return Err(ApiError::unsupported(format!("there is no method {path} here")).into());
        }
    };
    Ok(reply.into())
}

/// How messages that say so are packed.
fn coding_of(headers: &HeaderMap) -> Result<Coding, ApiError> {
    match headers.get("grpc-encoding").map(|coding| coding.as_bytes()) {
        None | Some(b"identity") => Ok(Coding::Identity),
        Some(b"gzip") => Ok(Coding::Gzip),
        Some(b"deflate") => Ok(Coding::Deflate),
        Some(other) => {
            let other = String::from_utf8_lossy(&other[..other.len().min(40)]).into_owned();
            let why =
                format!("messages packed with `{other}` are not understood; use gzip, deflate or identity");
            Err(ApiError::unsupported(why))
        }
    }
}

/// `grpc-timeout`: at most eight digits and a unit.
fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let text = value.to_str().unwrap_or("?");
    let unit = text.as_bytes().last().copied();
    let digits = &text.get(..text.len().saturating_sub(1)).unwrap_or_default();
    let number = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8 && !digits.starts_with('+'));
    let timeout = number.zip(unit).and_then(|(number, unit)| match unit {
        b'H' => Some(Duration::from_secs(number * 3_600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    });
    match timeout {
        Some(timeout) => Ok(Some(timeout)),
        None => {
            let shown: String = text.chars().take(40).collect();
            Err(ApiError::bad(format!("grpc-timeout is {shown:?}, not a time such as `500m`")))
        }
    }
}
