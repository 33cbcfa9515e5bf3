//! What a binding is. Made by `read` from the settings; everything here has been checked.

use super::pace::Speed;
use crate::serving::local::Form;
use edgefleet_shared::ids::SlotName;
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

/// Inputs from one source for one slot, and one place for the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Lower-case letters, digits and `-`; unique.
    pub name: String,
    pub slot: SlotName,
    pub body: BodyKind,
    pub answer: Form,
    /// Whether the sink hears of inputs that were not answered, as `{"error": text}`.
    pub tells_errors: bool,
    /// Inputs that may wait; one more pushes the oldest out.
    pub queue: usize,
    /// Least time from one input to the next.
    pub between: Option<Duration>,
    pub source: Source,
    pub sink: Sink,
}

/// How a payload becomes tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    Json,
    Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Mqtt {
        broker: Broker,
        filter: String,
        qos: Qos,
    },
    Directory {
        path: PathBuf,
        every: Duration,
        after: After,
        keep: usize,
    },
    /// Lines of standard input.
    Stdin,
    Replay {
        file: PathBuf,
        speed: Speed,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    Mqtt {
        broker: Broker,
        topic: String,
        qos: Qos,
        retain: bool,
    },
    File {
        path: PathBuf,
        rotate_bytes: u64,
        keep: usize,
    },
    /// Beyond so many files or bytes the oldest go.
    Directory {
        path: PathBuf,
        keep: usize,
        keep_bytes: u64,
    },
    Stdout,
    None,
}

/// What becomes of an input file that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Into the folder `done` in it.
    Move,
    Delete,
}

/// MQTT's QoS 2 is not offered: an answer may come twice after a broken line, and names its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
}

/// A broker on this machine or in its own network, in clear text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    pub host: String,
    pub port: u16,
    pub username: Option<String>,
    /// Holds the password; read at every connect.
    pub password_file: Option<PathBuf>,
    /// Told explicitly that names, passwords and inputs may cross other networks in clear text.
    pub allow_plaintext: bool,
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mqtt { broker, filter, .. } => write!(f, "mqtt {broker} {filter}"),
            Self::Directory { path, .. } => write!(f, "directory {}", path.display()),
            Self::Stdin => f.write_str("stdin"),
            Self::Replay { file, .. } => write!(f, "replay {}", file.display()),
        }
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mqtt { broker, topic, .. } => write!(f, "mqtt {broker} {topic}"),
            Self::File { path, .. } => write!(f, "file {}", path.display()),
            Self::Directory { path, .. } => write!(f, "directory {}", path.display()),
            Self::Stdout => f.write_str("stdout"),
            Self::None => f.write_str("none"),
        }
    }
}

/// Whether clear text stays on this machine or within its site: loopback, private and link-local addresses.
pub fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_near(v4.into()),
            None => v6.is_loopback() || is_unique_local(v6) || (v6.segments()[0] & 0xffc0) == 0xfe80,
        },
    }
}

fn is_unique_local(address: Ipv6Addr) -> bool {
    (address.segments()[0] & 0xfe00) == 0xfc00
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_is_this_machine_and_private_networks() {
        for (address, near) in [
            ("127.0.0.1", true),
            ("10.1.2.3", true),
            ("172.31.0.1", true),
            ("172.32.0.1", false),
            ("192.168.7.7", true),
            ("169.254.1.1", true),
            ("100.64.0.1", false),
            ("8.8.8.8", false),
            ("0.0.0.0", false),
            ("::1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("2001:db8::1", false),
            ("::ffff:10.0.0.1", true),
            ("::ffff:8.8.8.8", false),
        ] {
            assert_eq!(is_near(address.parse().unwrap()), near, "{address}");
        }
    }
}
