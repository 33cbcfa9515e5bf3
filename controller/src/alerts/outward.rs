//! HTTP clients for receivers outside: no redirects, and who is trusted.

use reqwest::{Certificate, Client, ClientBuilder, Url, redirect};

/// For `url` and nothing else; `ca`: PEM of what is trusted instead of the system's authorities.
///
/// # Errors
/// If `ca` holds no certificate that can be read.
pub(crate) fn client(url: &Url, ca: Option<&[u8]>) -> Result<ClientBuilder, reqwest::Error> {
    let client = Client::builder()
        .redirect(redirect::Policy::none())
        .user_agent(concat!("edgefleet/", env!("CARGO_PKG_VERSION")));
    let client = match ca {
        Some(pem) => client.tls_certs_only(Certificate::from_pem_bundle(pem)?),
        // Nobody to trust is needed, and a system without authorities is no reason to stop.
        None if url.scheme() == "http" => client.tls_certs_only([]),
        None => client,
    };
    // A proxy cannot reach this machine's own loopback.
    let is_here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    Ok(if is_here { client.no_proxy() } else { client })
}
