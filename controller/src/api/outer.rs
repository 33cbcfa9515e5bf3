//! Around every request: its id, its line in the log, its count, and problems with the id inside.

use super::{metrics::Metrics, problem::Problem};
use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::Response,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::Instrument;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Slower ones are worth a line.
const SLOW: Duration = Duration::from_secs(5);

pub(super) async fn around(metrics: Arc<Metrics>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = crate::fleet::secret::random_id("").unwrap_or_else(|_| "unknown".into());
    let method = method_label(request.method());
    let matched = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = matched.unwrap_or_else(|| "unmatched".to_owned());
    let span = tracing::info_span!("http.request", request_id = %id, method, route);
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let rendered = problem.render(Some(&id));
        let (parts, body) = rendered.into_parts();
        *response.body_mut() = body;
        // The old length is that of the body without the id.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response
            .headers_mut()
            .extend(parts.headers.into_iter().filter_map(|(name, value)| Some((name?, value))));
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    let took = started.elapsed();
    let status = response.status().as_u16();
    metrics.record(method, &route, status, took);
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| match status {
        500.. => tracing::warn!(status, ms, "answered"),
        _ if took > SLOW => tracing::warn!(status, ms, "answered slowly"),
        _ => tracing::debug!(status, ms, "answered"),
    });
    response
}

/// Clients may invent methods; labels may not grow with them.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
