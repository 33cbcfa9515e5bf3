//! People and the calendar: what happens to a rollout from outside.

use super::{
    fleet::HOUR,
    queue::Item,
    settings::{AUTHOR, COLLEAGUE, People},
    world::World,
};
use crate::rollout::{AbortMode, ActiveFreeze, DeviceSaid, Event, LineStopped, PauseWhy, Span, State};
use edgefleet_shared::time::Timestamp;

/// Numbers of troubles that end others.
const THAW: u32 = u32::MAX;
const RELEASE: u32 = u32::MAX - 1;

impl World {
    pub(super) fn plan_troubles(&mut self) {
        for number in 0..self.settings.troubles {
            let at = self.now + self.rng.below(12 * 24 * HOUR);
            self.queue.push(at, Item::Trouble { number });
        }
    }

    /// A person passes by and does what people do.
    pub(super) fn person(&mut self) {
        if self.docs.rollout.is_terminal() {
            return;
        }
        self.queue.push(self.now + HOUR + self.rng.below(8 * HOUR), Item::Person);
        let by = if self.rng.chance(0.8) { COLLEAGUE } else { AUTHOR }.to_owned();
        let reason = if self.rng.chance(0.9) { "seen and understood" } else { "" }.to_owned();
        match self.settings.people {
            People::Absent => {}
            People::Agreeing => {
                let by = COLLEAGUE.to_owned();
                let reason = "seen and understood".to_owned();
                if self.docs.rollout.approvals.open.is_some() {
                    self.event(Event::Approve { by, reason });
                } else if matches!(self.docs.rollout.state, State::Paused { why: PauseWhy::Inconclusive }) {
                    self.event(Event::Resume { by, reason });
                }
            }
            People::Busy => {
                let order = match self.rng.below(40) {
                    0..10 => Event::Approve { by, reason },
                    10 => Event::Deny { by, reason },
                    11..13 => Event::Pause { by, reason },
                    13..20 => Event::Resume { by, reason },
                    20..23 => Event::Extend { by, reason, span: Span::hours(1 + self.rng.below(48)) },
                    23..25 => Event::Skip { by, reason },
                    25..30 => Event::Start { by },
                    30..33 => Event::Submit { by },
                    33 => {
                        let modes = [AbortMode::Freeze, AbortMode::Halt, AbortMode::Revert];
                        let mode = modes[self.rng.below(3) as usize];
                        Event::Abort { by, reason, mode }
                    }
                    _ => return,
                };
                self.event(order);
            }
        }
    }

    /// One entry of the list of troubles, by lot.
    pub(super) fn trouble(&mut self, number: u32) {
        let lasts = HOUR + self.rng.below(24 * HOUR);
        match (number, self.rng.below(12)) {
            (THAW, _) => self.event(Event::Freeze { active: None }),
            (RELEASE, _) => self.event(Event::Line { stopped: None }),
            (_, 0..4) => {
                let until = Timestamp::from_millis(self.now + lasts);
                self.queue.push(self.now + lasts, Item::Trouble { number: THAW });
                self.event(Event::Freeze {
                    active: Some(ActiveFreeze { name: "holidays".to_owned(), until }),
                });
            }
            (_, 4..6) => {
                let stopped =
                    LineStopped { by: COLLEAGUE.to_owned(), at: self.time(), reason: "smoke".to_owned() };
                self.queue.push(self.now + lasts, Item::Trouble { number: RELEASE });
                self.event(Event::Line { stopped: Some(stopped) });
            }
            (_, 6..9) => self.somebody_hears(&DeviceSaid::Unselected),
            (_, 9..11) => self.somebody_hears(&DeviceSaid::LeftFleet),
            _ => {
                if let Ok(rollout) = "later".parse() {
                    self.event(Event::SupersededBy { rollout });
                }
            }
        }
    }

    fn somebody_hears(&mut self, said: &DeviceSaid) {
        if self.members.len() == 0 {
            return;
        }
        let member = self.rng.below(u64::from(self.members.len())) as u32;
        self.transact(|world| world.attempt_hears(member, said));
        self.settle();
    }
}
