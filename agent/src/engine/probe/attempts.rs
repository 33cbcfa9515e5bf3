//! Tries from inside what the walls forbid. Needs no right and grants none: it shows a person, and the
//! tests, which walls hold on this machine.

use super::sys;
use edgefleet_shared::probe::Confinement;
use serde::{Deserialize, Serialize};
use std::{
    net::{TcpStream, UdpSocket},
    os::{
        fd::RawFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
};

/// One forbidden thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attempt {
    /// Open a file for reading: the device key, say.
    Read(PathBuf),
    /// Make a file.
    Write(PathBuf),
    /// Connect to a TCP address.
    Connect(String),
    /// Send a datagram to an address.
    Datagram(String),
    /// Connect to a Unix socket.
    UnixSocket(PathBuf),
    /// Start a process beside this one; what a fork bomb does first.
    Fork,
    /// Start a thread; the other way to a fork bomb.
    Thread,
    /// Ask for a process in the way whose flags no filter can read.
    Clone3,
    /// Become another program.
    Exec(PathBuf),
    /// Use a descriptor that the parent left open.
    Descriptor(RawFd),
    /// Look at the environment.
    Environment,
    /// Find anything in the working folder.
    WorkingFolder,
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptResult {
    pub attempt: Attempt,
    /// True if the child got what it tried for: a hole.
    pub succeeded: bool,
    /// The system's words, or what was got.
    pub found: String,
}

/// All attempts, and the walls that stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    pub confinement: Confinement,
    pub attempts: Vec<AttemptResult>,
}

impl Attempt {
    /// Things to try that exist on every Linux.
    pub fn usual() -> Vec<Self> {
        vec![
            Self::Read("/etc/passwd".into()),
            Self::Write("/tmp/edgefleet-probe-self-test".into()),
            Self::Connect("127.0.0.1:9".into()),
            Self::Datagram("127.0.0.1:9".into()),
            Self::UnixSocket("/run/edgefleet-probe-self-test".into()),
            Self::Fork,
            Self::Thread,
            Self::Clone3,
            Self::Exec("/bin/true".into()),
            Self::Environment,
            Self::WorkingFolder,
        ]
    }

    /// Tries it now, in this process. [`Attempt::Exec`] does not return where it succeeds.
    pub(super) fn perform(self) -> AttemptResult {
        let result: std::io::Result<String> = match &self {
            Self::Read(path) => std::fs::read(path).map(|bytes| format!("{} bytes", bytes.len())),
            Self::Write(path) => std::fs::write(path, b"x").map(|()| "written".into()),
            Self::Connect(address) => match TcpStream::connect(address) {
                // The network was asked and answered: a socket could be made.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(e.to_string()),
                other => other.map(|_| "connected".into()),
            },
            Self::Datagram(address) => UdpSocket::bind("127.0.0.1:0")
                .and_then(|socket| socket.send_to(b"x", address))
                .map(|_| "sent".into()),
            Self::UnixSocket(path) => match UnixStream::connect(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(e.to_string()),
                other => other.map(|_| "connected".into()),
            },
            Self::Fork => Command::new("/bin/true")
                .stdin(Stdio::null())
                .spawn()
                .map(|child| format!("process {}", child.id())),
            Self::Thread => std::thread::Builder::new()
                .spawn(|| ())
                .map(|thread| format!("thread {:?}", thread.thread().id())),
            Self::Clone3 => match sys::error_of_clone3() {
                Ok(libc::EINVAL) => Ok("the call reached the kernel".into()),
                Ok(error) => Err(std::io::Error::from_raw_os_error(error)),
                Err(said) => Ok(said.into()),
            },
            Self::Exec(path) => Err(Command::new(path).exec()),
            Self::Descriptor(fd) => sys::adopt(*fd).map(|_| "open".into()),
            Self::Environment => match std::env::vars_os().next() {
                Some((name, _)) => Ok(name.to_string_lossy().into_owned()),
                None => Err(std::io::Error::other("no variables")),
            },
            Self::WorkingFolder => std::fs::read_dir(".")
                .and_then(|mut entries| entries.next().unwrap_or_else(|| Err(std::io::Error::other("empty"))))
                .map(|entry| entry.file_name().to_string_lossy().into_owned()),
        };
        let (succeeded, found) = match result {
            Ok(found) => (true, found),
            Err(error) => (false, error.to_string()),
        };
        AttemptResult { attempt: self, succeeded, found }
    }
}
