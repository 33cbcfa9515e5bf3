//! A socket file: for programs on this machine, without a port, behind the rights of files.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};

/// Bytes that the system has for the name, without the ending 0.
const LONGEST_PATH: usize = 107;
/// Whoever listens takes a connection within that time, or is too busy to do so and listens all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("`{}` has more than the {LONGEST_PATH} bytes a socket's path may have", path.display())]
    TooLong { path: PathBuf },
    #[error("somebody listens on `{}` already", path.display())]
    InUse { path: PathBuf },
    #[error("`{}` is there and is no socket", path.display())]
    Occupied { path: PathBuf },
    #[error("could not {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// A listening socket. Dropped, it removes its file, if that is still its own.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl SocketFile {
    /// Listens on `path` with the rights `mode`. What an agent that was killed left there is replaced; what somebody
    /// listens on is not. The folder must exist.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn listen(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let failed = |action| move |source| SocketError::Io { action, path: path.to_owned(), source };
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(SocketError::TooLong { path: path.to_owned() });
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at")(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::Occupied { path: path.to_owned() });
            }
            Ok(_) => match tokio::time::timeout(PATIENCE, UnixStream::connect(path)).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(failed("connect to")(error));
                }
                _ => return Err(SocketError::InUse { path: path.to_owned() }),
            },
        }
        // Made in a folder that only this user enters, and moved when its rights are set: at no time can anybody
        // connect who may not.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = tempfile::Builder::new()
            .prefix(".s")
            .rand_bytes(6)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent.unwrap_or(Path::new(".")))
            .map_err(failed("make a folder beside"))?;
        let made = folder.path().join("s");
        let listener = UnixListener::bind(&made).map_err(failed("listen on"))?;
        fs::set_permissions(&made, Permissions::from_mode(mode)).map_err(failed("set the rights of"))?;
        let file = identity(&made).map_err(failed("look at"))?;
        fs::rename(&made, path).map_err(failed("put a socket at"))?;
        Ok(Self { listener, path: path.to_owned(), file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            fs::remove_file(&self.path).ok(); // the next agent replaces a stale one
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_or_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let first = SocketFile::listen(&path, 0o600).await.unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let refused = SocketFile::listen(&path, 0o600).await.unwrap_err();
        assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        drop(first);
        assert!(!path.exists(), "an orderly end removes it");
        // Killed: the file stays, nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = SocketFile::listen(&path, 0o666).await.unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o666);
        UnixStream::connect(&path).await.unwrap();
        // Another one has taken the place: it stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(second);
        let refused = SocketFile::listen(&path, 0o600).await.unwrap_err();
        assert!(matches!(refused, SocketError::Occupied { .. }), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        let long = folder.path().join("x".repeat(120));
        assert!(matches!(SocketFile::listen(&long, 0o600).await, Err(SocketError::TooLong { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }
}
