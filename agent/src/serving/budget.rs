//! The memory that all requests together may hold, in bodies and in tensors read from shared memory.

use super::{error::ApiError, state::ServingState};
use std::{sync::atomic::Ordering, time::Duration};

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
        let budget = self.state.0.config.body_budget_bytes;
        let within = |held: usize| held.checked_add(by).filter(|held| *held <= budget);
        // What is refused must not count: others would be turned away for it.
        if self.state.0.body_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            let why = format!("requests in work hold more than {budget} bytes");
            return Err(ApiError::busy(why, Duration::from_secs(1)));
        }
        self.bytes += by;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.state.0.body_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
