//! The names and addresses under which clients reach the controller; they go into its certificate.

use rcgen::SanType;
use std::{collections::BTreeSet, net::IpAddr};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

/// Why an address people typed cannot be the controller's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` is not an address like `https://controller.example:8443`: {reason}")]
pub struct PublicUrlError {
    url: String,
    reason: &'static str,
}

/// Names for the server certificate; always has `localhost` and the loopback addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames {
    dns: BTreeSet<String>,
    ips: BTreeSet<IpAddr>,
}

impl Default for ServerNames {
    fn default() -> Self {
        Self {
            dns: ["localhost".to_owned()].into(),
            ips: [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])].into(),
        }
    }
}

impl ServerNames {
    /// Adds the host of `https://host:port`.
    ///
    /// # Errors
    /// [`PublicUrlError`].
    #[must_use = "returns the names with the host"]
    pub fn with_url(self, url: &str) -> Result<Self, PublicUrlError> {
        Ok(self.with_host(&host_of(url)?))
    }

    /// Adds a DNS name or an IP address (IPv6 with or without brackets).
    #[must_use]
    pub fn with_host(mut self, host: &str) -> Self {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            // "Any address" is where to listen, not where anybody is.
            Ok(ip) if ip.is_unspecified() => {}
            Ok(ip) => _ = self.ips.insert(ip),
            Err(_) => _ = self.dns.insert(bare.to_ascii_lowercase()),
        }
        self
    }

    /// Whether every name of `wanted` is among these.
    pub(crate) fn covers(&self, wanted: &Self) -> bool {
        wanted.dns.is_subset(&self.dns) && wanted.ips.is_subset(&self.ips)
    }

    /// The names in a certificate.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut found = Self { dns: BTreeSet::new(), ips: BTreeSet::new() };
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return found };
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => _ = found.dns.insert((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok();
                    let ip = four.or_else(|| <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok());
                    found.ips.extend(ip);
                }
                _ => {}
            }
        }
        found
    }

    pub(crate) fn to_alternative_names(&self) -> Result<Vec<SanType>, rcgen::Error> {
        let dns = self.dns.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?)));
        let ips = self.ips.iter().map(|ip| Ok(SanType::IpAddress(*ip)));
        dns.chain(ips).collect()
    }
}

/// Host of `https://host[:port]`, brackets of IPv6 included.
///
/// # Errors
/// [`PublicUrlError`].
pub fn host_of(url: &str) -> Result<String, PublicUrlError> {
    let bad = |reason| PublicUrlError { url: url.chars().take(200).collect(), reason };
    let uri: axum::http::Uri = url.parse().map_err(|_| bad("it is not a URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(bad("it does not start with `https://`"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("something follows the host and port"));
    }
    let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
    if authority.as_str().contains('@') {
        return Err(bad("it holds a user name"));
    }
    let host = authority.host();
    if host.is_empty() || !host.is_ascii() || host.len() > 253 {
        return Err(bad("it has no usable host"));
    }
    Ok(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_from_https_addresses_only() {
        for (url, host) in [
            ("https://fleet.example:8443", Some("fleet.example")),
            ("https://10.0.0.7:8443/", Some("10.0.0.7")),
            ("https://[fd00::7]:8443", Some("[fd00::7]")),
            ("http://fleet.example", None),
            ("https://user@fleet.example", None),
            ("https://fleet.example/path", None),
            ("https://fleet.example?x=1", None),
            ("fleet.example:8443", None),
            ("", None),
        ] {
            assert_eq!(host_of(url).ok().as_deref(), host, "{url}");
        }
    }

    #[test]
    fn addresses_and_names_are_told_apart() {
        let names =
            ServerNames::default().with_host("[fd00::7]").with_host("Plant.Example").with_host("0.0.0.0");
        assert!(names.covers(&ServerNames::default().with_host("fd00::7").with_host("plant.example")));
        assert_eq!(names.to_alternative_names().unwrap().len(), 5);
        assert!(!ServerNames::default().covers(&names));
    }
}
