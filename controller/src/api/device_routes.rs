//! What devices call themselves: enrolment, renewal, blobs.

use super::{
    ApiState,
    access::DevicePeer,
    extract::{ApiJson, ApiPath},
    peer::Peer,
    problem::Problem,
    range::{Wanted, wanted},
    views,
};
use crate::{
    blobs::{BlobError, BlobStore},
    fleet::FleetError,
    registry::BUNDLE_BLOB,
};
use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use edgefleet_shared::{
    digest::BlobDigest,
    enroll::{EnrollRequest, EnrollResponse, RenewRequest, RenewResponse},
};
use std::sync::Arc;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Bytes read at once while a blob is sent: what one slow device holds in memory.
const CHUNK: u64 = 128 * 1024;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(enroll))
        .routes(routes!(renew_expired))
        .routes(routes!(renew))
        .routes(routes!(blob))
}

/// Lets a device in that holds the secret of an invite.
#[utoipa::path(post, path = "/api/v1/enroll", tag = "device", security(()),
    request_body = views::EnrollRequest,
    responses((status = 200, description = "Enrolled", body = views::EnrollResponse),
        (status = 202, description = "Waits for approval", body = views::EnrollResponse)))]
async fn enroll(
    State(state): State<ApiState>,
    peer: Peer,
    ApiJson(request): ApiJson<EnrollRequest>,
) -> Result<impl IntoResponse, Problem> {
    let response = state.fleet.enroll(&request, peer.address.ip()).await?;
    let status = match &response {
        EnrollResponse::Enrolled(_) => StatusCode::OK,
        EnrollResponse::Pending { .. } => StatusCode::ACCEPTED,
    };
    Ok((status, Json(response)))
}

/// A new certificate for a device whose old one expired, against proof that it still has the key.
#[utoipa::path(post, path = "/api/v1/renew-expired", tag = "device", security(()),
    request_body = views::RenewRequest,
    responses((status = 200, description = "Renewed", body = views::RenewResponse)))]
async fn renew_expired(
    State(state): State<ApiState>,
    peer: Peer,
    ApiJson(request): ApiJson<RenewRequest>,
) -> Result<Json<RenewResponse>, Problem> {
    Ok(Json(state.fleet.renew_expired(&request, peer.address.ip()).await?))
}

/// A new certificate for the device that calls, over the same key.
#[utoipa::path(post, path = "/api/v1/device/renew", tag = "device", security(("device" = [])),
    request_body = views::RenewRequest,
    responses((status = 200, description = "Renewed", body = views::RenewResponse)))]
async fn renew(
    State(state): State<ApiState>,
    device: DevicePeer,
    ApiJson(request): ApiJson<RenewRequest>,
) -> Result<Json<RenewResponse>, Problem> {
    Ok(Json(state.fleet.renew(&device.0, &request).await?))
}

/// Bytes of a blob of an accepted bundle, whole or one range of them.
#[utoipa::path(get, path = "/api/v1/device/blobs/{digest}", tag = "device", security(("device" = [])),
    params(("digest" = String, Path, description = "`sha256:` and 64 hexadecimal digits"),
        ("range" = Option<String>, Header, description = "One range: `bytes=0-1023`")),
    responses((status = 200, description = "All of it", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "The range", content_type = "application/octet-stream", body = Vec<u8>)))]
async fn blob(
    State(state): State<ApiState>,
    _device: DevicePeer,
    ApiPath(digest): ApiPath<BlobDigest>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // As over MQTT: every enrolled device may have any accepted bundle, and nothing else that lies here.
    let offered = state.fleet.store().get(BUNDLE_BLOB, &digest.to_hex()).await.map_err(FleetError::from)?;
    if offered.is_none() {
        return Err(BlobError::NotFound { digest }.into());
    }
    let size = state.blobs.size(&digest).await?;
    let tag = format!("\"{digest}\"");
    let (status, start, len) = match wanted(&headers, &tag, size) {
        Wanted::All => (StatusCode::OK, 0, size),
        Wanted::Part { start, len } => (StatusCode::PARTIAL_CONTENT, start, len),
        Wanted::Nothing => {
            let detail = format!("blob {digest} has {size} bytes, the range asks for others");
            let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", detail);
            return Ok(([(header::CONTENT_RANGE, format!("bytes */{size}"))], problem).into_response());
        }
    };
    let mut response = Response::new(stream(Arc::clone(&state.blobs), digest, start, len));
    *response.status_mut() = status;
    let answer = response.headers_mut();
    let text = |text: String| HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, immutable, max-age=31536000"));
    answer.insert(header::ETAG, text(tag));
    if status == StatusCode::PARTIAL_CONTENT {
        answer.insert(header::CONTENT_RANGE, text(format!("bytes {start}-{}/{size}", start + len - 1)));
    }
    Ok(response)
}

/// Reads as fast as the other side takes. An error cuts the body off, which the length makes visible.
pub(super) fn stream(blobs: Arc<dyn BlobStore>, digest: BlobDigest, start: u64, len: u64) -> Body {
    let chunks = futures::stream::try_unfold((start, len), move |(offset, left)| {
        let blobs = Arc::clone(&blobs);
        async move {
            if left == 0 {
                return Ok::<_, BlobError>(None);
            }
            let now = left.min(CHUNK);
            let bytes = blobs.read_range(&digest, offset, now).await.inspect_err(|error| {
                tracing::error!(%digest, offset, error = %error, "a blob could not be sent to its end");
            })?;
            Ok(Some((bytes, (offset + now, left - now))))
        }
    });
    Body::from_stream(chunks)
}
