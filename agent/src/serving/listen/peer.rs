//! Who is at the other end of a connection, as far as the system says.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
};
use tokio::net::UnixStream;

/// The user a program on this machine runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serving) struct User {
    pub(in crate::serving) uid: u32,
    /// Only socket files tell it.
    pub(in crate::serving) gid: Option<u32>,
}

/// The way a request came in.
#[derive(Clone, Debug)]
pub(in crate::serving) enum Came {
    /// The user is looked up when somebody asks, once for each connection.
    Tcp {
        local: SocketAddr,
        peer: SocketAddr,
        user: Arc<OnceLock<Option<User>>>,
    },
    Socket {
        user: Option<User>,
    },
}

impl Came {
    pub(in crate::serving) fn by_tcp(local: SocketAddr, peer: SocketAddr) -> Self {
        Self::Tcp { local, peer, user: Arc::default() }
    }

    pub(super) fn by_file(stream: &UnixStream) -> Self {
        let user = stream.peer_cred().ok().map(|peer| User { uid: peer.uid(), gid: Some(peer.gid()) });
        Self::Socket { user }
    }

    /// From a program on this machine.
    pub(in crate::serving) fn is_local(&self) -> bool {
        match self {
            Self::Socket { .. } => true,
            Self::Tcp { local, peer, .. } => {
                let peer = peer.ip().to_canonical();
                peer.is_loopback() || peer == local.ip().to_canonical()
            }
        }
    }

    /// `None` if nobody knows: another machine, or another network namespace of this one.
    pub(in crate::serving) fn user(&self) -> Option<User> {
        match self {
            Self::Socket { user } => *user,
            Self::Tcp { .. } if !self.is_local() => None,
            Self::Tcp { local, peer, user } => *user.get_or_init(|| {
                let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
                let uid = tables.into_iter().find_map(|table| {
                    let lines = BufReader::new(File::open(table).ok()?).lines().map_while(Result::ok);
                    owner(lines, *peer, *local)
                })?;
                Some(User { uid, gid: None })
            }),
        }
    }
}

/// The user of the socket at `here` that is connected with `there`, in a table of the kernel's.
///
/// A socket nobody holds any more is said to belong to root: such a line, without an inode or not in the state of a
/// connection (01), says nothing.
fn owner(mut lines: impl Iterator<Item = String>, here: SocketAddr, there: SocketAddr) -> Option<u32> {
    let is = |text: &str, wanted: SocketAddr| {
        text.split_once(':').is_some_and(|(ip, port)| {
            u16::from_str_radix(port, 16) == Ok(wanted.port())
                && address(ip).is_some_and(|ip| ip.to_canonical() == wanted.ip().to_canonical())
        })
    };
    lines.find_map(|line| {
        // sl, local, remote, state, queues, timer, retransmissions, uid, timeout, inode
        let fields: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
        let [_, local, remote, "01", _, _, _, uid, _, inode] = fields[..] else { return None };
        (is(local, here) && is(remote, there) && inode != "0").then(|| uid.parse().ok()).flatten()
    })
}

/// Words of 32 bits in hexadecimal digits, each in the byte order of this machine.
fn address(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = digits.get(8 * at..8 * at + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match digits.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::TcpListener, os::unix::fs::MetadataExt};

    #[test]
    fn a_connection_of_this_program_is_of_its_user() {
        let own = std::fs::metadata("/proc/self").unwrap().uid();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue }; // a machine without IPv6
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let came = Came::by_tcp(accepted.local_addr().unwrap(), peer);
            assert_eq!(came.user(), Some(User { uid: own, gid: None }), "{address}");
            drop(client);
            assert!(came.user().is_some(), "it was looked up");
            let late = Came::by_tcp(accepted.local_addr().unwrap(), peer);
            assert_eq!(late.user(), None, "the kernel says root of what nobody holds");
        }
    }

    #[test]
    fn only_a_living_connection_between_both_ends_says_whose_it_is() {
        let line = |local: &str, remote: &str, state: &str, inode: &str| {
            let rest = "00000000:00000000 00:00000000 00000000  1000        0";
            vec![
                "  sl  local_address".to_owned(),
                format!("   1: {local} {remote} {state} {rest} {inode} 1 0"),
            ]
        };
        let little = cfg!(target_endian = "little");
        let ip = if little { "0100007F" } else { "7F000001" };
        let (here, there) = (format!("{ip}:1F90"), format!("{ip}:0050"));
        let mapped = format!("0000000000000000{}{ip}", if little { "FFFF0000" } else { "0000FFFF" });
        let [a, b] = ["127.0.0.1:8080", "127.0.0.1:80"].map(|text| text.parse().unwrap());
        for (lines, found) in [
            (line(&here, &there, "01", "77"), Some(1000)),
            (line(&format!("{mapped}:1F90"), &format!("{mapped}:0050"), "01", "77"), Some(1000)),
            (line(&there, &here, "01", "77"), None),
            (line(&here, &there, "01", "0"), None),
            (line(&here, &there, "06", "77"), None),
            (line(&here, "0100007F:0051", "01", "77"), None),
            (line("zz", "", "01", "77"), None),
        ] {
            assert_eq!(owner(lines.clone().into_iter(), a, b), found, "{lines:?}");
        }
    }
}
