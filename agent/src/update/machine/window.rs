//! Whether the maintenance window lets a step begin. Only steps towards another bundle ask; going back
//! by itself, and serving what was served, never do.

use super::{Run, Step, Work};
use edgefleet_shared::{
    maintenance::{Download, MaintenanceWindow, TimeZone},
    reported::{DeferReason, Deferred},
    time::Timestamp,
};

/// The window of a slot at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    Closed { deferred: Deferred, download: Download },
}

impl Gate {
    /// `rules`: of the window's zone; `None` if this device does not know it, which keeps the window
    /// closed: opening it at another hour than the one meant would be worse.
    pub fn of(window: Option<&MaintenanceWindow>, rules: Option<&TimeZone>, at: Timestamp) -> Self {
        let Some(window) = window.filter(|window| !window.ignore_window) else { return Self::Open };
        let deferred = match rules {
            Some(rules) if window.is_open(at, rules) => return Self::Open,
            Some(rules) => Deferred { reason: DeferReason::Window, until: window.next_open(at, rules) },
            None => Deferred { reason: DeferReason::ZoneUnknown, until: None },
        };
        Self::Closed { deferred, download: window.download }
    }

    pub(super) fn holds(self, step: Step) -> Option<Deferred> {
        let Self::Closed { deferred, download } = self else { return None };
        let held = match step {
            Step::Release | Step::Manifest | Step::Blobs => download == Download::Inside,
            Step::Testing => false,
            Step::Switching => true,
        };
        held.then_some(deferred)
    }
}

impl Run<'_> {
    /// The clock went on, or jumped: what was held goes on if the window is open, and a download that
    /// belongs inside pauses if it is not.
    pub(super) fn window_looked(&mut self) {
        let Work::Busy(target) = &mut self.next.work else { return };
        let (step, held) = (target.step, self.now.gate.holds(target.step));
        match (target.deferred, held) {
            (Some(known), Some(held)) if known != held => {
                target.deferred = Some(held);
                self.effects.push(super::Effect::Report);
            }
            (Some(_), Some(_)) => {}
            (Some(_), None) => self.enter(step),
            // What is being switched to was let in.
            (None, Some(_)) if !target.waiting && step != Step::Switching => self.enter(step),
            (None, _) => {}
        }
    }
}
