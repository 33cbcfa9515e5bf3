//! Who may see a page or send its form. Runs before every one of them.

use super::{
    Web,
    answer::{PageError, see_other},
    words::encoded,
};
use crate::{
    api::{
        access::{Access, Caller},
        problem::Problem,
    },
    fleet::roles::Permission,
};
use axum::{
    Form,
    extract::{FromRequest, FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// `__Host-`: browsers take it over TLS only, for this host only, whatever another page of the domain does.
pub(super) const COOKIE: &str = "__Host-edgefleet";
/// The field of every form that carries the session's word.
pub(super) const CSRF_FIELD: &str = "csrf";
/// Longest time for a form to arrive.
const FORM_TIMEOUT: Duration = Duration::from_secs(30);

/// The person behind a session, for handlers.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    pub(super) caller: Caller,
    pub(super) csrf: String,
}

impl Visitor {
    pub(super) fn can(&self, permission: Permission) -> bool {
        self.caller.can(permission)
    }
}

/// What a form said.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(BTreeMap<String, String>);

impl Fields {
    /// What was entered, without spaces around it; empty if nothing was.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |value| value.trim())
    }
}

/// Runs before every page.
pub(super) async fn guard(
    State(web): State<Arc<Web>>,
    matched: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    match admit(&web, matched.as_str(), request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal,
    }
}

async fn admit(web: &Web, path: &str, mut request: Request) -> Result<Request, Response> {
    // A HEAD is answered by the GET handler.
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let access = web.rules.get(&(path.to_owned(), method.clone())).copied();
    let is_form = method != Method::GET;
    if is_form && !is_from_here(request.headers(), request.uri()) {
        return Err(forged("the form comes from another site"));
    }
    let session = secret(request.headers()).and_then(|secret| web.sessions.find(&secret, web.now()));
    let visitor = session.and_then(|session| {
        let token = web.operations.fleet.usable_token(&session.token)?;
        Some(Visitor { caller: Caller(token), csrf: session.csrf })
    });
    let permission = match access {
        Some(Access::Public) => None,
        Some(Access::Token(permission)) => Some(permission),
        // No page is for devices; one without a rule is for nobody.
        Some(Access::Device) | None => {
            return Err(refuse(StatusCode::FORBIDDEN, "no-rule", "nobody may see this", ""));
        }
    };
    if let Some(permission) = permission {
        let Some(visitor) = &visitor else {
            let back = if is_form { String::new() } else { wanted(request.uri()) };
            return Err(see_other(&format!("/sign-in{back}")));
        };
        if !visitor.can(permission) {
            let token = &visitor.caller.0;
            let detail = format!("role {} of token `{}` lacks `{permission}`", token.role, token.name);
            let hint = "ask an administrator for a token with another role, and sign in with that";
            return Err(refuse(StatusCode::FORBIDDEN, "permission-denied", &detail, hint));
        }
    }
    if is_form {
        let (fields, rest) = fields(request).await?;
        request = rest;
        let is_right = visitor.as_ref().is_some_and(|visitor| same(fields.text(CSRF_FIELD), &visitor.csrf));
        if permission.is_some() && !is_right {
            return Err(forged("the form does not carry the word of your session"));
        }
        request.extensions_mut().insert(fields);
    }
    if let Some(visitor) = visitor {
        request.extensions_mut().insert(visitor);
    }
    Ok(request)
}

fn refuse(status: StatusCode, code: &'static str, detail: &str, hint: &str) -> Response {
    let problem = Problem::new(status, code, detail);
    PageError::from(if hint.is_empty() { problem } else { problem.hint(hint) }).into_response()
}

fn forged(detail: &str) -> Response {
    refuse(StatusCode::FORBIDDEN, "form-forged", detail, "go back, load the page again, and repeat")
}

/// Where to go after signing in, as a query.
fn wanted(uri: &Uri) -> String {
    match uri.path_and_query().map(|path| path.as_str()) {
        None | Some("/") => String::new(),
        Some(path) => format!("?next={}", encoded(path)),
    }
}

/// The secret of the session's cookie.
pub(super) fn secret(headers: &HeaderMap) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

/// Whether a browser sent this from one of our own pages, as far as it says. Programs say nothing.
fn is_from_here(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site") {
        return matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text("origin") else { return true };
    let host = text("host").or_else(|| uri.authority().map(|authority| authority.as_str()));
    origin.strip_prefix("https://") == host
}

/// Takes the same time for all texts of one length.
fn same(a: &str, b: &str) -> bool {
    let differs = a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differs) == 0
}

async fn fields(request: Request) -> Result<(Fields, Request), Response> {
    let (parts, body) = request.into_parts();
    let whole = Request::from_parts(parts.clone(), body);
    let read = Form::<Vec<(String, String)>>::from_request(whole, &());
    let read = tokio::time::timeout(FORM_TIMEOUT, read).await.map_err(|_| {
        refuse(StatusCode::REQUEST_TIMEOUT, "body-timeout", "the form did not arrive in time", "")
    })?;
    let Form(pairs) = read.map_err(|error| refuse(error.status(), "form-invalid", &error.body_text(), ""))?;
    Ok((Fields(pairs.into_iter().collect()), Request::from_parts(parts, axum::body::Body::empty())))
}

/// Extensions that only [`guard`] sets.
macro_rules! from_guard {
    ($($kind:ty),*) => {$(
        impl<S: Sync> FromRequestParts<S> for $kind {
            type Rejection = PageError;
            async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, PageError> {
                let found = parts.extensions.get::<Self>().cloned();
                found.ok_or_else(|| {
                    Problem::new(StatusCode::FORBIDDEN, "no-rule", "nobody may see this").into()
                })
            }
        }
    )*};
}
from_guard!(Visitor, Fields);

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), axum::http::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn forms_of_other_sites_are_known_by_what_browsers_say() {
        let uri = Uri::from_static("/sign-in");
        for (pairs, is_ours) in [
            (vec![], true),
            (vec![("sec-fetch-site", "same-origin")], true),
            (vec![("sec-fetch-site", "same-site")], false),
            (vec![("sec-fetch-site", "cross-site"), ("origin", "https://a:1"), ("host", "a:1")], false),
            (vec![("origin", "https://a:1"), ("host", "a:1")], true),
            (vec![("origin", "https://a:2"), ("host", "a:1")], false),
            (vec![("origin", "http://a:1"), ("host", "a:1")], false),
            (vec![("origin", "null"), ("host", "a:1")], false),
        ] {
            assert_eq!(is_from_here(&headers(&pairs), &uri), is_ours, "{pairs:?}");
        }
        let uri = Uri::from_static("https://a:1/sign-in");
        assert!(is_from_here(&headers(&[("origin", "https://a:1")]), &uri), "HTTP/2 has no Host");
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let found = |text: &'static str| secret(&headers(&[("cookie", text)]));
        assert_eq!(found("a=b; __Host-edgefleet=s3cret; c=d"), Some("s3cret".to_owned()));
        assert_eq!(found("__Host-edgefleetx=1; edgefleet=2"), None);
        assert!(same("abc", "abc") && !same("abc", "abd") && !same("", "a") && !same("abc", ""));
    }
}
