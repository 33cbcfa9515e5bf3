//! One registered file and what is looked at before each use of it.

use crate::serving::{
    error::ApiError,
    listen::User,
    oip::{OipError, Place},
};
use axum::http::StatusCode;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Whether the system would let `user` read and write a file. Nobody known has the rights of everybody.
fn is_open_to(user: Option<User>, uid: u32, gid: u32, mode: u32) -> bool {
    let class = match user {
        Some(user) if user.uid == 0 => return true,
        Some(user) if user.uid == uid => mode >> 6,
        Some(user) if user.gid == Some(gid) => mode >> 3,
        _ => mode,
    };
    class & 0o6 == 0o6
}

fn shown_user(user: Option<User>) -> String {
    user.map_or("users that are not known".to_owned(), |user| format!("user {}", user.uid))
}

/// Longest file name there is.
const MAX_KEY: usize = 255;

pub(super) struct Region {
    key: String,
    file: File,
    offset: u64,
    size: u64,
}

impl Region {
    /// # Errors
    /// 400 if `key` is no plain name, no file, or smaller than asked; 403 if it is not open to the agent, or
    /// would not be to `user`.
    pub(super) fn open(
        folder: &Path,
        key: &str,
        offset: u64,
        size: u64,
        user: Option<User>,
    ) -> Result<Self, ApiError> {
        let shown: String = key.chars().take(100).collect();
        // `shm_open` wants one slash in front, and clients pass the name on as they gave it there.
        let name = key.strip_prefix('/').unwrap_or(key);
        let is_plain = !name.is_empty()
            && name.len() <= MAX_KEY
            && !matches!(name, "." | "..")
            && !name.contains(['/', '\0']);
        if !is_plain {
            let why = format!("shared memory key `{shown}` is no plain name of a file in /dev/shm");
            return Err(ApiError::bad(why));
        }
        let failed = |error: io::Error| {
            let why = format!("shared memory key `{shown}` cannot be opened: {error}");
            match error.kind() {
                io::ErrorKind::PermissionDenied => ApiError::new(StatusCode::FORBIDDEN, why),
                _ => ApiError::bad(why),
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(folder.join(name))
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(ApiError::bad(format!("shared memory key `{shown}` is no file")));
        }
        if !is_open_to(user, found.uid(), found.gid(), found.mode()) {
            let why = format!("shared memory key `{shown}` is not open to {}", shown_user(user));
            return Err(ApiError::new(StatusCode::FORBIDDEN, why));
        }
        match offset.checked_add(size) {
            Some(end) if size > 0 && end <= found.len() => {}
            _ => {
                let why = format!(
                    "shared memory key `{shown}` has {} bytes, which hold no {size} bytes from {offset} on",
                    found.len()
                );
                return Err(ApiError::bad(why));
            }
        }
        Ok(Self { key: key.to_owned(), file, offset, size })
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The size of `place`, once it is within the region, the region still within the file, and the file open to `user`,
    /// who need not be the one that registered it.
    ///
    /// # Errors
    /// [`OipError::Bad`] with the numbers, [`OipError::Forbidden`].
    pub(super) fn check(&self, place: &Place, user: Option<User>) -> Result<usize, OipError> {
        let Place { region, offset, size } = place;
        let end = offset.checked_add(*size).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(OipError::Bad(format!(
                "shared memory region `{region}` has {} bytes, which hold no {size} bytes from {offset} on",
                self.size
            )));
        };
        let found = self.file.metadata().map_err(|error| self.failed(place, "looked at", &error))?;
        if !is_open_to(user, found.uid(), found.gid(), found.mode()) {
            let who = shown_user(user);
            let why = format!("the file of shared memory region `{region}` is not open to {who}");
            return Err(OipError::Forbidden(why));
        }
        let now = found.len();
        if self.offset.saturating_add(end) > now {
            return Err(OipError::Bad(format!(
                "the file of shared memory region `{region}` has shrunk to {now} bytes since it was registered"
            )));
        }
        usize::try_from(*size).map_err(|_| OipError::Bad(format!("{size} bytes do not fit this machine")))
    }

    /// # Errors
    /// [`OipError::Bad`] if the file has shrunk meanwhile.
    pub(super) fn read(&self, place: &Place, size: usize) -> Result<Vec<u8>, OipError> {
        let mut data = vec![0; size];
        let read = self.file.read_exact_at(&mut data, self.offset + place.offset);
        read.map_err(|error| self.failed(place, "read", &error))?;
        Ok(data)
    }

    /// A file that shrinks at this very moment grows again to what it was registered with, no further.
    ///
    /// # Errors
    /// [`OipError::Bad`] if the system refuses.
    pub(super) fn write(&self, place: &Place, data: &[u8]) -> Result<(), OipError> {
        let written = self.file.write_all_at(data, self.offset + place.offset);
        written.map_err(|error| self.failed(place, "written", &error))
    }

    fn failed(&self, place: &Place, what: &str, error: &io::Error) -> OipError {
        OipError::Bad(format!("shared memory region `{}` cannot be {what}: {error}", place.region))
    }
}
