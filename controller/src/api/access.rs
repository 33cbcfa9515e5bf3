//! Who may call what. A route's OpenAPI `security` is the rule, and the same text is what is enforced, so the
//! document cannot say one thing and the server do another:
//!
//! | `security(...)` in `#[utoipa::path]` | who |
//! |---|---|
//! | `(())` | anybody |
//! | `("bearer" = ["devices:write"])` | a token whose role has that one [`Permission`] |
//! | `("device" = [])` | an enrolled device with its certificate |
//!
//! A route without `security` stops the start.

use super::{peer::Peer, problem::Problem};
use crate::fleet::{Actor, Fleet, certificate::DeviceCertificate, roles::Permission, tokens::Token};
use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::Response,
};
use std::{collections::BTreeMap, sync::Arc};
use utoipa::openapi::{OpenApi, path::Operation};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Public,
    Token(Permission),
    Device,
}

/// One route with its rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    pub method: Method,
    /// As in OpenAPI and axum: `/api/v1/devices/{id}`.
    pub path: String,
    pub access: Access,
}

/// A route whose `security` says nothing that can be enforced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route {method} {path} has no usable `security`: {reason}")]
pub struct RuleError {
    pub method: Method,
    pub path: String,
    pub reason: String,
}

/// The rules of every route in the document, in the order of their paths.
///
/// # Errors
/// [`RuleError`] for the first route without a rule.
pub fn rules_of(document: &OpenApi) -> Result<Vec<RouteRule>, RuleError> {
    let mut rules = Vec::new();
    for (path, item) in &document.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let access = access_of(operation).map_err(|reason| RuleError {
                method: method.clone(),
                path: path.clone(),
                reason,
            })?;
            rules.push(RouteRule { method, path: path.clone(), access });
        }
    }
    Ok(rules)
}

fn access_of(operation: &Operation) -> Result<Access, String> {
    // The requirement's fields are private; its JSON form is the standard's own.
    let json = serde_json::to_value(&operation.security).map_err(|error| error.to_string())?;
    let requirements: Vec<BTreeMap<String, Vec<String>>> =
        serde_json::from_value(json).map_err(|_| "it is missing".to_owned())?;
    let [requirement] = requirements.as_slice() else {
        return Err(format!("{} requirements, not one", requirements.len()));
    };
    let mut schemes = requirement.iter();
    match (schemes.next(), schemes.next()) {
        (None, _) => Ok(Access::Public),
        (Some((scheme, scopes)), None) => match (scheme.as_str(), scopes.as_slice()) {
            ("bearer", [permission]) => permission.parse().map(Access::Token).map_err(|e| format!("{e}")),
            ("device", []) => Ok(Access::Device),
            (scheme, scopes) => Err(format!("`{scheme}` with {scopes:?}")),
        },
        _ => Err("several schemes at once".into()),
    }
}

/// The rules by route, and who knows the callers.
pub(super) struct Guard {
    pub(super) fleet: Arc<Fleet>,
    rules: BTreeMap<(String, String), Access>,
}

impl Guard {
    pub(super) fn new(fleet: Arc<Fleet>, rules: &[RouteRule]) -> Self {
        let key = |rule: &RouteRule| (rule.path.clone(), rule.method.to_string());
        Self { fleet, rules: rules.iter().map(|rule| (key(rule), rule.access)).collect() }
    }

    fn rule(&self, path: &str, method: &Method) -> Option<Access> {
        // A HEAD is answered by the GET handler.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.rules.get(&(path.to_owned(), method.to_string())).copied()
    }
}

/// The person or program behind a token, for handlers.
#[derive(Clone, Debug)]
pub struct Caller(pub Token);

impl Caller {
    pub fn actor(&self) -> Actor {
        Actor::token(&self.0.id, &self.0.name)
    }
    pub fn can(&self, permission: Permission) -> bool {
        self.0.role.has(permission)
    }
}

/// The device behind a client certificate, admitted at this request.
#[derive(Clone, Debug)]
pub struct DevicePeer(pub Arc<DeviceCertificate>);

/// Runs before every matched route.
pub(super) async fn guard(
    State(guard): State<Arc<Guard>>,
    matched: MatchedPath,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let access = guard.rule(matched.as_str(), request.method()).ok_or_else(|| {
        tracing::error!(path = matched.as_str(), method = %request.method(), "a route has no rule");
        Problem::new(StatusCode::FORBIDDEN, "no-rule", "nobody may call this")
    })?;
    match access {
        Access::Public => {}
        Access::Token(permission) => {
            let caller = caller(&guard.fleet, &request)?;
            if !caller.can(permission) {
                let detail =
                    format!("role {} of token `{}` lacks `{permission}`", caller.0.role, caller.0.name);
                return Err(Problem::new(StatusCode::FORBIDDEN, "permission-denied", detail)
                    .hint("ask an administrator for a token with another role"));
            }
            request.extensions_mut().insert(caller);
        }
        Access::Device => {
            let device = device(&guard.fleet, &request)?;
            request.extensions_mut().insert(device);
        }
    }
    Ok(next.run(request).await)
}

fn caller(fleet: &Fleet, request: &Request) -> Result<Caller, Problem> {
    let refused = |code, detail: &str| {
        Problem::new(StatusCode::UNAUTHORIZED, code, detail).hint(
            "send `Authorization: Bearer TOKEN`; the first token lies in the data folder, file `admin-token`",
        )
    };
    let header = request.headers().get(header::AUTHORIZATION);
    let header = header.ok_or_else(|| refused("token-missing", "this needs a token"))?;
    let text = header.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let text =
        text.ok_or_else(|| refused("token-malformed", "the Authorization header is not `Bearer TOKEN`"))?;
    let token = fleet.authenticate(text);
    token.map(Caller).ok_or_else(|| refused("token-refused", "the token is unknown, expired or revoked"))
}

fn device(fleet: &Fleet, request: &Request) -> Result<DevicePeer, Problem> {
    let certificate = request.extensions().get::<Peer>().and_then(|peer| peer.certificate.clone());
    let certificate = certificate.ok_or_else(|| {
        let detail = "this needs the certificate of an enrolled device";
        Problem::new(StatusCode::UNAUTHORIZED, "device-certificate-required", detail)
            .hint("enrol the device with `edgefleet-agent enroll CODE`")
    })?;
    if let Err(reason) = fleet.admits(&certificate.device, &certificate.serial) {
        tracing::warn!(device = %certificate.device, reason, "a device's certificate was refused");
        let detail = format!("device {} is not admitted", certificate.device);
        return Err(Problem::new(StatusCode::FORBIDDEN, "device-refused", detail));
    }
    Ok(DevicePeer(certificate))
}

/// Extensions that only [`guard`] sets: missing means that the route's rule is of another kind.
macro_rules! from_guard {
    ($($kind:ty),*) => {$(
        impl<S: Sync> FromRequestParts<S> for $kind {
            type Rejection = Problem;
            async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
                parts.extensions.get::<Self>().cloned().ok_or_else(|| {
                    tracing::error!(uri = %parts.uri, "the route's `security` does not fit its handler");
                    Problem::new(StatusCode::FORBIDDEN, "no-rule", "nobody may call this")
                })
            }
        }
    )*};
}
from_guard!(Caller, DevicePeer);
