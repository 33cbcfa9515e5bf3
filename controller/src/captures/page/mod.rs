//! The labelling page: three files of our own, nothing from elsewhere. It uses the API with a token like any client.

use axum::{
    http::{HeaderName, header},
    response::IntoResponse,
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Nothing but our own script, style and API; pictures only from memory.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(page)).routes(routes!(script)).routes(routes!(style))
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

/// The page on which people label captures.
#[utoipa::path(get, path = "/label", tag = "captures", security(()),
    responses((status = 200, description = "HTML", content_type = "text/html", body = String)))]
async fn page() -> impl IntoResponse {
    file("text/html; charset=utf-8", include_str!("index.html"))
}

/// Its script.
#[utoipa::path(get, path = "/label/app.js", tag = "captures", security(()),
    responses((status = 200, description = "JavaScript", content_type = "text/javascript", body = String)))]
async fn script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", include_str!("app.js"))
}

/// Its style.
#[utoipa::path(get, path = "/label/style.css", tag = "captures", security(()),
    responses((status = 200, description = "CSS", content_type = "text/css", body = String)))]
async fn style() -> impl IntoResponse {
    file("text/css; charset=utf-8", include_str!("style.css"))
}
