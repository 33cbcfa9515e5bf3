//! A slot that the desired state no longer has. A model's is empty at once. An engine pack's is first asked about:
//! what runs on nothing else must not lose its engine, so the pack stays until that is gone.

use super::{Effect, Refusal, Run, SlotState, Work};
use std::time::Duration;

/// Between two questions whether a pack is still needed.
const PAUSE: Duration = Duration::from_secs(10);

impl SlotState {
    /// The pack here is no longer wanted, and stays only for what runs on nothing else.
    pub fn is_withdrawn(&self) -> bool {
        self.wanted.is_none() && self.active.is_some()
    }
    /// Nothing is left of it to remember.
    pub fn is_over(&self) -> bool {
        self.wanted.is_none() && self.active.is_none() && self.unacked.is_empty()
    }
}

impl Run<'_> {
    pub(super) fn removed(&mut self, generation: u64) {
        if generation < self.next.generation {
            return;
        }
        self.drop_candidate();
        let kept = self.next.active.take().filter(|_| self.name.is_engine());
        let idle = self.next.active.is_none()
            && kept.is_none()
            && self.next.wanted.is_none()
            && self.next.work == Work::Settled;
        // Asked about before and not let go: what was said of it stays until it is asked again.
        let last_error = self.next.last_error.take().filter(|_| kept.is_some() && self.next.wanted.is_none());
        self.next = SlotState {
            generation,
            unacked: std::mem::take(&mut self.next.unacked),
            ticket: self.next.ticket + 1,
            lane_ticket: self.next.lane_ticket + 1,
            mark_ms: self.next.mark_ms,
            active: kept,
            last_error,
            ..SlotState::default()
        };
        if self.next.is_withdrawn() {
            let ticket = self.next.ticket;
            self.effects.extend([Effect::StopJob, Effect::Withdraw { ticket }, Effect::Report]);
        } else if !idle {
            self.effects.extend([
                Effect::StopJob,
                Effect::Deactivate,
                Effect::Report,
                Effect::CollectGarbage,
            ]);
        }
    }

    /// What was to go before is wanted: nobody asks any more whether it can.
    pub(super) fn wanted_again(&mut self) {
        if self.next.is_withdrawn() {
            self.next.last_error = None;
            self.next.ticket += 1;
            self.effects.push(Effect::StopJob);
        }
    }

    /// Nothing needed the pack: it serves no more.
    pub(super) fn withdrawn(&mut self, ticket: u64) {
        if self.next.is_withdrawn() && ticket == self.next.ticket {
            (self.next.active, self.next.last_error) = (None, None);
            self.next.ticket += 1;
            self.effects.extend([Effect::StopJob, Effect::Report, Effect::CollectGarbage]);
        }
    }

    /// Something runs on nothing else. The reason is told once; the question comes again.
    pub(super) fn still_needed(&mut self, ticket: u64, refusal: Refusal) {
        if !self.next.is_withdrawn() || ticket != self.next.ticket {
            return;
        }
        let known = self.next.last_error.as_ref();
        if known.is_none_or(|known| (known.code, &known.message) != (refusal.code, &refusal.message)) {
            self.next.last_error = Some(refusal);
            self.effects.push(Effect::Report);
        }
        self.ask_later();
    }

    /// Not at a start: what needs the pack is loaded after it.
    pub(super) fn ask_later(&mut self) {
        if self.next.is_withdrawn() {
            self.effects.push(Effect::StartTimer { ticket: self.next.ticket, after: PAUSE });
        }
    }

    pub(super) fn ask_again(&mut self) {
        if self.next.is_withdrawn() {
            self.effects.push(Effect::Withdraw { ticket: self.next.ticket });
        }
    }
}
