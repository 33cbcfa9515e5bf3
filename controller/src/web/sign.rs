//! Signing in with an API token, and out.

use super::{
    Table, Web,
    answer::{self, PageError, see_other},
    guard::{COOKIE, Fields, Visitor, secret},
    layout,
    session::LONGEST,
};
use crate::{
    api::{extract::Pairs, problem::Problem},
    fleet::roles::Permission,
};
use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use maud::{Markup, html};
use std::sync::Arc;

/// Longest path that is remembered over signing in.
const MAX_NEXT: usize = 1_000;

pub(super) fn routes(table: Table) -> Table {
    table.open(Method::GET, "/sign-in", form).open(Method::POST, "/sign-in", enter).post(
        "/sign-out",
        Permission::Read,
        leave,
    )
}

async fn form(query: Pairs) -> Result<Response, PageError> {
    let next = query.one::<String>("next")?.unwrap_or_default();
    Ok(answer::page(StatusCode::OK, sign_in(safe(&next), None)))
}

async fn enter(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, PageError> {
    let next = safe(fields.text("next"));
    let Some(token) = web.operations.fleet.authenticate(fields.text("token")) else {
        let refused = "This token is unknown, expired or revoked.";
        return Ok(answer::page(StatusCode::FORBIDDEN, sign_in(next, Some(refused))));
    };
    let secret = web.sessions.begin(&token.id, web.now()).map_err(|error| Problem::internal(&error))?;
    tracing::info!(token = token.id, name = token.name, "web.sign_in");
    let mut response = see_other(next);
    set_cookie(&mut response, &secret, LONGEST.as_secs());
    Ok(response)
}

async fn leave(State(web): State<Arc<Web>>, _: Visitor, headers: HeaderMap) -> Response {
    if let Some(secret) = secret(&headers) {
        web.sessions.end(&secret);
    }
    let mut response = see_other("/sign-in");
    set_cookie(&mut response, "", 0);
    response
}

fn set_cookie(response: &mut Response, secret: &str, seconds: u64) {
    let cookie = format!("{COOKIE}={secret}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={seconds}");
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

/// A path of ours, or the first page: nobody is sent elsewhere from here.
fn safe(next: &str) -> &str {
    let mut chars = next.chars();
    let is_path = chars.next() == Some('/') && !matches!(chars.next(), Some('/' | '\\'));
    let is_plain = next.len() <= MAX_NEXT && next.chars().all(|c| c.is_ascii_graphic() && c != '\\');
    if is_path && is_plain { next } else { "/" }
}

fn sign_in(next: &str, refused: Option<&str>) -> Markup {
    layout::alone(
        "Sign in",
        html! {
            h1 { "Edgefleet" }
            form .card method="post" action="/sign-in" {
                input type="hidden" name="next" value=(next);
                @if let Some(refused) = refused { p .notice role="alert" { (refused) } }
                label for="token" { "API token" }
                input #token name="token" type="password" autocomplete="current-password" required autofocus
                    aria-describedby="token-help";
                p #token-help .faint {
                    "The first token lies in the controller's data folder, file " code { "admin-token" }
                    ". More come from " code { "edgefleet token create" } "."
                }
                button .primary type="submit" { "Sign in" }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_never_leads_elsewhere() {
        for (next, safe_one) in [
            ("/fleet?selector=site%3Da", "/fleet?selector=site%3Da"),
            ("", "/"),
            ("https://evil.example", "/"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("/a\r\nset-cookie: x", "/"),
            ("javascript:alert(1)", "/"),
        ] {
            assert_eq!(safe(next), safe_one, "{next:?}");
        }
    }
}
