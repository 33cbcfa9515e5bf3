//! The memory that all requests together may hold: bodies, the tensors made of them, answers until the last byte of
//! them is written, and what connections may send before anybody reads it.

use super::{
    error::ApiError,
    oip::{Memory, OipError, Place},
    state::ServingState,
};
use bytes::Bytes;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// A request's share of the budget; given back when dropped.
pub(super) struct Share {
    pub(super) state: ServingState,
    bytes: usize,
}

impl Share {
    pub(super) fn new(state: &ServingState) -> Self {
        Self { state: state.clone(), bytes: 0 }
    }
    /// # Errors
    /// 503 beyond the budget.
    pub(super) fn grow(&mut self, by: usize) -> Result<(), ApiError> {
        let shared = &self.state.0;
        let budget = shared.config.body_budget_bytes;
        let room = budget.saturating_sub(shared.window_bytes.load(Ordering::Relaxed));
        let within = |held: usize| held.checked_add(by).filter(|held| *held <= room);
        // What is refused must not count: others would be turned away for it.
        if shared.body_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            let why = format!("requests in work hold more than {budget} bytes");
            return Err(ApiError::busy(why, Duration::from_secs(1)));
        }
        self.bytes += by;
        Ok(())
    }
    /// From here on it holds `bytes`, whatever it held before.
    ///
    /// # Errors
    /// 503 beyond the budget; then it holds what it did.
    pub(super) fn become_of(&mut self, bytes: usize) -> Result<(), ApiError> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.grow(more),
            None => {
                self.state.0.body_bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
                self.bytes = bytes;
                Ok(())
            }
        }
    }
    /// An answer that keeps the share until nobody holds any of it: neither a body nor a connection that writes it.
    pub(super) fn hold(self, chunks: Vec<Bytes>) -> Vec<Bytes> {
        let share = Arc::new(self);
        let held = |bytes: Bytes| Bytes::from_owner(Held { bytes, _share: share.clone() });
        chunks.into_iter().map(held).collect()
    }
}

/// For requests of this program, which have no shared memory.
impl Memory for Share {
    fn read(&mut self, place: &Place) -> Result<Bytes, OipError> {
        Err(OipError::Bad(format!("there is no shared memory `{}` here", place.region)))
    }
    fn write(&mut self, place: &Place, _: &[u8]) -> Result<(), OipError> {
        self.read(place).map(drop)
    }
    fn charge(&mut self, bytes: usize) -> Result<(), OipError> {
        self.grow(bytes).map_err(|refusal| OipError::Busy(refusal.message().to_owned()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.state.0.body_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Held {
    bytes: Bytes,
    _share: Arc<Share>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What an HTTP/2 connection may send ahead of its readers, out of the same budget; given back with it.
pub(super) struct Window {
    state: ServingState,
    bytes: u32,
}

impl Window {
    /// As the protocol has it: no connection can be given less.
    const LEAST: u32 = (1 << 16) - 1;
    const USUAL: u32 = 1 << 20;

    /// The usual window while all of them leave half of the budget to bodies, else the least. `None` if not even that
    /// is left.
    pub(super) fn open(state: &ServingState) -> Option<Self> {
        let shared = &state.0;
        let budget = shared.config.body_budget_bytes;
        let bodies = shared.body_bytes.load(Ordering::Relaxed);
        [(Self::USUAL, budget / 2), (Self::LEAST, budget.saturating_sub(bodies))].into_iter().find_map(
            |(bytes, most)| {
                let within = |held: usize| held.checked_add(bytes as usize).filter(|held| *held <= most);
                let taken = shared.window_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
                taken.is_ok().then(|| Self { state: state.clone(), bytes })
            },
        )
    }

    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.state.0.window_bytes.fetch_sub(self.bytes as usize, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::{http::tests::state, state::ServingConfig};

    #[test]
    fn windows_and_bodies_together_stay_within_the_budget() {
        let budget = 4 << 20;
        let state = state(ServingConfig { body_budget_bytes: budget, ..ServingConfig::default() });
        let mut body = Share::new(&state);
        body.grow(1 << 20).unwrap();
        let windows: Vec<_> = std::iter::from_fn(|| Window::open(&state)).collect();
        let sizes: Vec<_> = windows.iter().map(Window::bytes).collect();
        assert_eq!(sizes[..3], [Window::USUAL, Window::USUAL, Window::LEAST]);
        let sum: u32 = sizes.iter().sum();
        assert!(sum as usize + (1 << 20) <= budget && sizes.len() == 2 + 16, "{sizes:?}");
        assert!(body.grow(1 << 16).is_err());
        drop(windows);
        body.grow(3 << 20).unwrap();
        assert!(Window::open(&state).is_some_and(|window| window.bytes() == Window::USUAL));
        body.become_of(5).unwrap();
        assert_eq!(state.0.body_bytes.load(Ordering::Relaxed), 5);
        let held = body.hold(vec![Bytes::from_static(b"ab"), Bytes::from_static(b"cde")]);
        let slice = held[1].slice(2..);
        assert_eq!((&held[0][..], &slice[..]), (&b"ab"[..], &b"e"[..]));
        drop(held);
        assert_eq!(state.0.body_bytes.load(Ordering::Relaxed), 5, "a byte of it is held");
        drop(slice);
        assert_eq!(state.0.body_bytes.load(Ordering::Relaxed), 0);
    }
}
