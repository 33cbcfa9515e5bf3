//! Who may call: programs on this machine, not web pages (DECISIONS 13), and the local token.
//!
//! A page in a browser can send requests to loopback addresses. Such requests carry `Origin` or
//! `Sec-Fetch-Site`, or after DNS rebinding a foreign `Host`; all of these are refused.

use super::{ApiError, ServingConfig, ServingState};
use crate::serving::listen::Came;
use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::net::IpAddr;

pub(super) async fn guard(
    State(state): State<ServingState>,
    Extension(came): Extension<Came>,
    request: Request,
    next: Next,
) -> Response {
    match admit(&state.0.config, request.headers(), request.uri(), request.version(), &came) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// # Errors
/// 400 and 403 for what no program sends, 401 and 403 without the token that other machines need.
pub(in crate::serving) fn admit(
    config: &ServingConfig,
    headers: &HeaderMap,
    uri: &Uri,
    version: Version,
    came: &Came,
) -> Result<(), ApiError> {
    check(headers, uri, version, came, &config.host_names)?;
    match &config.remote_token {
        Some(token) if !came.is_local() => check_bearer(headers, token, "other machines need a token"),
        _ => Ok(()),
    }
}

fn check(
    headers: &HeaderMap,
    uri: &Uri,
    version: Version,
    came: &Came,
    names: &[String],
) -> Result<(), ApiError> {
    let forbidden = |what: String| Err(ApiError::new(StatusCode::FORBIDDEN, what));
    let shown = |value: &[u8]| String::from_utf8_lossy(&value[..value.len().min(100)]).into_owned();
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = shown(origin.as_bytes());
        return forbidden(format!(
            "requests of web pages are refused: this one has the header Origin {origin:?}; \
             call this API from a program on the device"
        ));
    }
    if headers.get("sec-fetch-site").is_some_and(|site| site != "none") {
        return forbidden("requests of web pages are refused: this one has the header Sec-Fetch-Site".into());
    }
    let mut hosts: Vec<&[u8]> = headers.get_all(header::HOST).iter().map(|host| host.as_bytes()).collect();
    if hosts.len() > 1 {
        return Err(ApiError::bad("a request has one Host header"));
    }
    if hosts.is_empty() && version == Version::HTTP_11 {
        return Err(ApiError::bad("a request needs a Host header"));
    }
    // HTTP/2 has it in its address.
    hosts.extend(uri.authority().map(|authority| authority.as_str().as_bytes()));
    if hosts.is_empty() && version > Version::HTTP_11 {
        return Err(ApiError::bad("a request needs an authority"));
    }
    let local = match came {
        Came::Tcp { local, .. } => local.ip(),
        Came::Socket { .. } => return Ok(()), // no browser reaches a socket file, and clients name what they like
    };
    match hosts.into_iter().find(|host| !is_ours(host, local, names)) {
        None => Ok(()),
        Some(host) => {
            let host = shown(host);
            forbidden(format!(
                "host {host:?} is not a name of this device; use a loopback address or add the name to the configuration"
            ))
        }
    }
}

fn is_ours(host: &[u8], local: IpAddr, names: &[String]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let bare = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if port.is_empty() || is_port(port) => address,
            _ => return false,
        },
        None => match host.rsplit_once(':') {
            Some((name, _)) if is_port(&host[name.len()..]) => name,
            Some(_) => return false,
            None => host,
        },
    };
    if let Ok(address) = bare.parse::<IpAddr>() {
        let address = address.to_canonical();
        return address.is_loopback() || local.to_canonical() == address;
    }
    bare.eq_ignore_ascii_case("localhost") || names.iter().any(|name| name.eq_ignore_ascii_case(bare))
}

/// `:` and a number.
fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.parse::<u16>().is_ok())
}

/// Repository load and unload need the local token.
///
/// # Errors
/// 401 without a token, 403 with a wrong one or if none is configured.
pub(in crate::serving) fn check_token(headers: &HeaderMap, wanted: Option<&str>) -> Result<(), ApiError> {
    let Some(wanted) = wanted else {
        let why = "load and unload are switched off on this device: no local token is configured";
        return Err(ApiError::new(StatusCode::FORBIDDEN, why));
    };
    check_bearer(headers, wanted, "load and unload need the local token")
}

fn check_bearer(headers: &HeaderMap, wanted: &str, need: &str) -> Result<(), ApiError> {
    let given =
        headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let Some(given) = given else {
        let why = format!("{need}: send the header Authorization: Bearer TOKEN");
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, why));
    };
    // Every byte is looked at, so that the time says nothing about how far the guess was right.
    let differing = given.iter().zip(wanted.as_bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    if given.len() != wanted.len() || differing != 0 || wanted.is_empty() {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "the token is wrong"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_pages_and_foreign_hosts_are_refused() {
        let names = ["cam-7.lan".to_owned()];
        let local = "192.168.1.7:1".parse().unwrap();
        let came = Came::by_tcp(local, local);
        for (headers, status) in [
            (vec![("host", "localhost:8000")], 200),
            (vec![("host", "127.0.0.1")], 200),
            (vec![("host", "127.9.9.9:1")], 200),
            (vec![("host", "[::1]:8000")], 200),
            (vec![("host", "[::ffff:127.0.0.1]:8000")], 200),
            (vec![("host", "CAM-7.lan:8000")], 200),
            (vec![("host", "192.168.1.7:8000")], 200),
            (vec![("host", "localhost"), ("sec-fetch-site", "none")], 200),
            (vec![("host", "192.168.1.8:8000")], 403),
            (vec![("host", "evil.example")], 403),
            (vec![("host", "localhost.evil.example")], 403),
            (vec![("host", "127.0.0.1.evil.example")], 403),
            (vec![("host", "localhost:")], 403),
            (vec![("host", "localhost:80:80")], 403),
            (vec![("host", "[::1")], 403),
            (vec![("host", "")], 403),
            (vec![("host", "localhost"), ("host", "localhost")], 400),
            (vec![], 400),
            (vec![("host", "localhost"), ("origin", "http://localhost")], 403),
            (vec![("host", "localhost"), ("origin", "null")], 403),
            (vec![("host", "localhost"), ("sec-fetch-site", "cross-site")], 403),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(*name, value.parse().unwrap());
            }
            let found = check(&map, &"/v2".parse().unwrap(), Version::HTTP_11, &came, &names);
            assert_eq!(found.map_or_else(|e| e.status.as_u16(), |()| 200), status, "{headers:?}");
        }
        let absolute: Uri = "http://evil.example/v2".parse().unwrap();
        let host = HeaderMap::from_iter([(header::HOST, "localhost".parse().unwrap())]);
        assert!(check(&host, &absolute, Version::HTTP_11, &came, &names).is_err());
        // Over HTTP/2 the host is part of the address.
        for (uri, status) in [("http://localhost/v2", 200), ("http://evil.example/v2", 403), ("/v2", 400)] {
            let uri = uri.parse().unwrap();
            let found = check(&HeaderMap::new(), &uri, Version::HTTP_2, &came, &names);
            assert_eq!(found.map_or_else(|e| e.status.as_u16(), |()| 200), status, "{uri}");
        }
        // A socket file is reached under any name, but not by web pages either.
        let foreign = HeaderMap::from_iter([(header::HOST, "evil.example".parse().unwrap())]);
        let path = "/v2".parse().unwrap();
        let by_file = Came::Socket { user: None };
        assert!(check(&foreign, &path, Version::HTTP_11, &by_file, &names).is_ok());
        let page = HeaderMap::from_iter([(header::ORIGIN, "null".parse().unwrap())]);
        assert!(check(&page, &path, Version::HTTP_11, &by_file, &names).is_err());
    }
}
