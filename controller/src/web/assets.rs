//! Our own script and style. Their addresses carry a digest, so browsers may keep them for ever.

use super::Table;
use axum::{
    http::{HeaderName, Method, header},
    response::IntoResponse,
};
use edgefleet_shared::digest::BlobDigest;
use std::sync::LazyLock;

const SCRIPT: &str = include_str!("assets/app.js");
const STYLE: &str = include_str!("assets/style.css");

fn address(path: &str, text: &str) -> String {
    let digest = BlobDigest::of(text.as_bytes()).to_hex();
    let short: String = digest.chars().take(12).collect();
    format!("{path}?v={short}")
}

pub(super) static SCRIPT_ADDRESS: LazyLock<String> = LazyLock::new(|| address("/assets/app.js", SCRIPT));
pub(super) static STYLE_ADDRESS: LazyLock<String> = LazyLock::new(|| address("/assets/style.css", STYLE));

pub(super) fn routes(table: Table) -> Table {
    table.open(Method::GET, "/assets/app.js", script).open(Method::GET, "/assets/style.css", style)
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &'static str); 2] =
        [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
    (headers, text)
}

async fn script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", SCRIPT)
}

async fn style() -> impl IntoResponse {
    file("text/css; charset=utf-8", STYLE)
}
