//! Configuration of a Mosquitto beside the controller, generated from the same table that the embedded
//! broker asks ([`DEVICE_RULES`]), so that the two cannot drift apart.

use super::MAX_PACKET_BYTES;
use edgefleet_shared::{
    ids::DeviceId,
    topics::{DEVICE_RULES, Direction, ROOT, TRUST_HEAD},
};
use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// What the configuration is made for. All paths as the broker's machine sees them.
#[derive(Clone, Debug)]
pub struct MosquittoParams {
    /// Port 0 is not possible here.
    pub listen: SocketAddr,
    /// CA of devices and controllers, PEM.
    pub ca_file: PathBuf,
    /// Server chain, PEM.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Revocation list of that CA, PEM; must exist. Rewritten and then announced with SIGHUP.
    pub crl_file: PathBuf,
    /// Where [`MosquittoConfig::acl`] will be stored.
    pub acl_file: PathBuf,
    pub persistence_dir: PathBuf,
    /// Common names of the controllers' certificates; one connection each.
    pub controllers: Vec<DeviceId>,
    /// Account to drop to; `None` for Mosquitto's own default.
    pub user: Option<String>,
}

/// The two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MosquittoConfig {
    pub conf: String,
    pub acl: String,
}

/// Why no configuration can be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MosquittoConfigError {
    #[error("`{setting}` is {value:?}: Mosquitto's files cannot hold line breaks or control characters")]
    Unwritable { setting: &'static str, value: String },
    #[error("`{setting}` must be an absolute path, not `{}`", path.display())]
    Relative { setting: &'static str, path: PathBuf },
    #[error("Mosquitto cannot choose a free port; name one in `listen`")]
    NoPort,
    #[error("`{name}` is not a controller's name: it must start with `controller-`")]
    NotAController { name: DeviceId },
}

/// Texts of `mosquitto.conf` and of its ACL file.
///
/// # Errors
/// [`MosquittoConfigError`] for what would not survive being written down.
/// # Source
/// Settings: broker research 9; each is covered by a row of `tests/broker_contract`.
pub fn mosquitto_config(params: &MosquittoParams) -> Result<MosquittoConfig, MosquittoConfigError> {
    Ok(MosquittoConfig { conf: conf(params)?, acl: acl(&params.controllers)? })
}

fn conf(params: &MosquittoParams) -> Result<String, MosquittoConfigError> {
    if params.listen.port() == 0 {
        return Err(MosquittoConfigError::NoPort);
    }
    let ca = absolute("cafile", &params.ca_file)?;
    let cert = absolute("certfile", &params.cert_file)?;
    let key = absolute("keyfile", &params.key_file)?;
    let crl = absolute("crlfile", &params.crl_file)?;
    let acl = absolute("acl_file", &params.acl_file)?;
    let persistence = absolute("persistence_location", &params.persistence_dir)?;
    let user = match &params.user {
        Some(user) => format!("user {}\n", writable("user", user)?),
        None => String::new(),
    };
    let (address, port) = (params.listen.ip(), params.listen.port());
    Ok(format!(
        "\
# Made by `edgefleet broker mosquitto-config`; changes are lost when it is made again.
per_listener_settings true
{user}log_dest stderr
log_type error
log_type warning

# Nagle costs 40 ms per block of a download.
set_tcp_nodelay true
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages 64
max_queued_messages 10000
max_queued_bytes 16777216
# Retained messages survive a crash, up to the last 5 s.
persistence true
persistence_location {persistence}/
autosave_interval 5
persistent_client_expiration 1h

listener {port} {address}
max_connections -1
allow_anonymous false
cafile {ca}
certfile {cert}
keyfile {key}
crlfile {crl}
tls_version tlsv1.2
# The certificate's common name is user name and client id.
require_certificate true
use_identity_as_username true
use_username_as_clientid true
acl_file {acl}
"
    ))
}

fn acl(controllers: &[DeviceId]) -> Result<String, MosquittoConfigError> {
    let mut acl = String::from("# %u is the common name of the certificate.\n");
    for (channel, direction) in DEVICE_RULES {
        let access = match direction {
            Direction::Publish => "write",
            Direction::Subscribe => "read",
        };
        let _ = writeln!(acl, "pattern {access} {ROOT}/devices/%u/{channel}"); // a String takes all
    }
    // A pattern without %u, because a `topic` line would serve anonymous clients only.
    let _ = writeln!(acl, "pattern read {TRUST_HEAD}");
    for name in controllers {
        if !super::is_controller(name) {
            return Err(MosquittoConfigError::NotAController { name: name.clone() });
        }
        let _ = writeln!(acl, "\nuser {name}\ntopic readwrite {ROOT}/#");
    }
    Ok(acl)
}

fn absolute<'a>(setting: &'static str, path: &'a Path) -> Result<&'a str, MosquittoConfigError> {
    let unwritable =
        || MosquittoConfigError::Unwritable { setting, value: path.to_string_lossy().into_owned() };
    let text = path.to_str().ok_or_else(unwritable)?;
    if !path.is_absolute() {
        return Err(MosquittoConfigError::Relative { setting, path: path.to_owned() });
    }
    writable(setting, text)
}

fn writable<'a>(setting: &'static str, text: &'a str) -> Result<&'a str, MosquittoConfigError> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err(MosquittoConfigError::Unwritable { setting, value: text.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> MosquittoParams {
        MosquittoParams {
            listen: "127.0.0.1:8883".parse().unwrap(),
            ca_file: "/etc/edgefleet/ca.pem".into(),
            cert_file: "/etc/edgefleet/server.pem".into(),
            key_file: "/etc/edgefleet/server.key".into(),
            crl_file: "/etc/edgefleet/crl.pem".into(),
            acl_file: "/etc/edgefleet/acl".into(),
            persistence_dir: "/var/lib/mosquitto".into(),
            controllers: vec!["controller-1".parse().unwrap()],
            user: None,
        }
    }

    #[test]
    fn the_files_are_these() {
        let config = mosquitto_config(&params()).unwrap();
        insta::assert_snapshot!("mosquitto_conf", config.conf);
        insta::assert_snapshot!("mosquitto_acl", config.acl);
    }

    #[test]
    fn nothing_can_smuggle_a_line_into_them() {
        let mut smuggler = params();
        smuggler.user = Some("x\nallow_anonymous true".into());
        assert!(matches!(
            mosquitto_config(&smuggler),
            Err(MosquittoConfigError::Unwritable { setting: "user", .. })
        ));
        let mut smuggler = params();
        smuggler.ca_file = "/etc/ca\nallow_anonymous true".into();
        assert!(mosquitto_config(&smuggler).is_err());
        let mut relative = params();
        relative.crl_file = "crl.pem".into();
        assert!(matches!(mosquitto_config(&relative), Err(MosquittoConfigError::Relative { .. })));
        let mut device = params();
        device.controllers = vec!["dev-1".parse().unwrap()];
        assert!(matches!(mosquitto_config(&device), Err(MosquittoConfigError::NotAController { .. })));
    }
}
