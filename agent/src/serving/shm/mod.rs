//! System shared memory: clients register a file of `/dev/shm` by name, and tensors travel through it.
//!
//! The other side may write, shrink or remove the file at any time, so it is never mapped: what is read with `pread`
//! is the agent's own copy, and a file that shrank costs one request, not the agent. Names are plain, links are not
//! followed, and every use looks at the size again (DECISIONS 13). Only programs on this machine may use it, each what
//! its user could open: the agent, which may be root, lends nobody its rights.

mod region;
#[cfg(test)]
mod tests;

use super::{
    budget::Share,
    error::ApiError,
    listen::{Came, User},
    oip::{Memory, OipError, Place},
};
use axum::http::StatusCode;
use bytes::Bytes;
use parking_lot::RwLock;
use region::Region;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// Where the system keeps named shared memory.
const FOLDER: &str = "/dev/shm";
/// Each holds an open file.
const MAX_REGIONS: usize = 256;
/// Bytes of a region's name.
const MAX_NAME: usize = 256;

/// The regions that clients have registered.
pub(super) struct Regions {
    folder: PathBuf,
    is_on: bool,
    table: RwLock<BTreeMap<String, Arc<Region>>>,
}

/// A region as clients ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RegionStatus {
    pub(super) name: String,
    pub(super) key: String,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Regions {
    pub(super) fn new(is_on: bool) -> Self {
        Self::within(FOLDER.into(), is_on)
    }

    fn within(folder: PathBuf, is_on: bool) -> Self {
        Self { folder, is_on, table: RwLock::default() }
    }

    /// Whether whoever `came` may use shared memory at all.
    ///
    /// # Errors
    /// 501 if it is switched off, 403 for callers on other machines.
    pub(super) fn allow(&self, came: &Came) -> Result<(), ApiError> {
        if !self.is_on {
            return Err(ApiError::unsupported(
                "shared memory is switched off on this device (`serving.shared_memory`)",
            ));
        }
        if !came.is_local() {
            let why = "shared memory is for programs on this device; send tensors as binary data";
            return Err(ApiError::new(StatusCode::FORBIDDEN, why));
        }
        Ok(())
    }

    /// Opens `key`; from now on requests may name pieces of `offset..offset + size` of it as `name`.
    ///
    /// # Errors
    /// 409 if the name is taken, 400 if the key is no plain name or there is no such file of that size, 403 if `user`
    /// could not open it.
    pub(super) fn register(
        &self,
        name: &str,
        key: &str,
        offset: u64,
        size: u64,
        user: Option<User>,
    ) -> Result<(), ApiError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(ApiError::bad(format!("a region's name has 1 to {MAX_NAME} bytes")));
        }
        let region = Arc::new(Region::open(&self.folder, key, offset, size, user)?);
        let mut table = self.table.write();
        if table.contains_key(name) {
            let why = format!("shared memory region `{name}` is registered already; unregister it first");
            return Err(ApiError::new(StatusCode::CONFLICT, why));
        }
        if table.len() == MAX_REGIONS {
            let why = format!("{MAX_REGIONS} shared memory regions are registered, no more are taken");
            return Err(ApiError::bad(why));
        }
        table.insert(name.to_owned(), region);
        Ok(())
    }

    /// Forgets one region, or all. One that is not there is forgotten already.
    pub(super) fn unregister(&self, name: Option<&str>) {
        let mut table = self.table.write();
        match name {
            Some(name) => drop(table.remove(name)),
            None => table.clear(),
        }
    }

    /// # Errors
    /// 404 if `name` is not registered.
    pub(super) fn status(&self, name: Option<&str>) -> Result<Vec<RegionStatus>, ApiError> {
        let table = self.table.read();
        let each = table.iter().filter(|(known, _)| name.is_none_or(|name| name == *known));
        let found: Vec<_> = each
            .map(|(name, region)| RegionStatus {
                name: name.clone(),
                key: region.key().to_owned(),
                offset: region.offset(),
                size: region.size(),
            })
            .collect();
        match name {
            Some(name) if found.is_empty() => Err(ApiError::not_found(unknown(name))),
            _ => Ok(found),
        }
    }

    /// Bytes of the largest region; 0 without any.
    pub(super) fn largest(&self) -> u64 {
        self.table.read().values().map(|region| region.size()).max().unwrap_or(0)
    }

    /// For one request: what it reads counts against its `share`.
    pub(super) fn lend<'a>(&'a self, came: &'a Came, share: &'a mut Share) -> Lent<'a> {
        Lent { regions: self, came, share }
    }

    fn find(&self, name: &str) -> Result<Arc<Region>, OipError> {
        self.table.read().get(name).cloned().ok_or_else(|| OipError::Bad(unknown(name)))
    }
}

fn unknown(name: &str) -> String {
    let name: String = name.chars().take(100).collect();
    format!("shared memory region `{name}` is not registered")
}

/// The regions as one request uses them.
pub(super) struct Lent<'a> {
    regions: &'a Regions,
    came: &'a Came,
    share: &'a mut Share,
}

impl Lent<'_> {
    fn region(&self, place: &Place) -> Result<Arc<Region>, OipError> {
        self.regions
            .allow(self.came)
            .map_err(|refusal| OipError::Unsupported(refusal.message().to_owned()))?;
        self.regions.find(&place.region)
    }
}

impl Memory for Lent<'_> {
    fn read(&mut self, place: &Place) -> Result<Bytes, OipError> {
        let region = self.region(place)?;
        let size = region.check(place, self.came.user())?;
        self.share.charge(size)?;
        region.read(place, size).map(Bytes::from)
    }

    fn write(&mut self, place: &Place, data: &[u8]) -> Result<(), OipError> {
        let region = self.region(place)?;
        region.check(place, self.came.user())?;
        region.write(place, data)
    }

    fn charge(&mut self, bytes: usize) -> Result<(), OipError> {
        self.share.charge(bytes)
    }
}
