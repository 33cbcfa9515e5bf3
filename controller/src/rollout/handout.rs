//! How fast devices get their turn, and which of them.

use super::plan::Plan;
use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most devices in one effect: a few store transactions.
pub const CHUNK: u64 = 1_000;

/// A token bucket whose burst is small, so that turns are spread evenly over the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tokens {
    /// Turns that may be given now; fractions add up.
    pub credit: f64,
    pub updated: Timestamp,
    /// Devices that made it, over all stages: the rate grows with them.
    pub successes: u64,
    /// Redundancy groups held everybody back; tried again then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_until: Option<Timestamp>,
    /// Start of the day whose bytes are counted.
    pub day: Timestamp,
    pub bytes: u64,
}

/// One attempt as [`pick`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn<'a> {
    pub rank: u64,
    pub group: Option<&'a str>,
    /// Its turn has not come, or comes once more.
    pub ready: bool,
    /// Handed out by this very effect, before a crash.
    pub by_this: bool,
}

/// Devices of one redundancy group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCount {
    pub members: u64,
    pub in_flight: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picked {
    /// Indexes into the turns, those of an interrupted earlier try included.
    pub chosen: Vec<usize>,
    /// Everybody up to this rank has had its turn.
    pub cursor: Option<u64>,
    /// Nobody among the turns was left out.
    pub all: bool,
}

impl Tokens {
    pub fn new(now: Timestamp) -> Self {
        Self { credit: 1.0, updated: now, successes: 0, blocked_until: None, day: now, bytes: 0 }
    }

    /// Turns per minute now: multiplied by `growth` after each `per` successes.
    pub fn per_min(&self, plan: &Plan) -> f64 {
        let limits = &plan.limits;
        // 64 doublings are beyond every cap.
        let steps = (self.successes / limits.per.max(1)).min(64) as i32;
        (limits.start_per_min * limits.growth.max(1.0).powi(steps)).min(limits.cap_per_min)
    }

    /// Lets the time since the last call earn turns at `per_min`. What is earned and not used is lost
    /// beyond a burst of five seconds' worth and one turn, so that a late tick makes no wave.
    pub fn earn(&mut self, per_min: f64, now: Timestamp) {
        let passed = now.since(self.updated).as_secs_f64();
        self.updated = self.updated.max(now);
        let burst = per_min / 60.0 * BURST_SECS + 1.0;
        // To a millionth: short enough to survive its way through JSON unchanged.
        self.credit = ((self.credit + per_min / 60.0 * passed).min(burst) * 1e6).round() / 1e6;
    }
}

/// Longest stretch of time whose turns may come at once, seconds.
const BURST_SECS: f64 = 5.0;

/// Chooses up to `at_most` of `turns` (in the order of their rank, all behind the effect's cursor), so that
/// no redundancy group has more in flight than the plan's share of it, but always at least one.
///
/// Turns that this very effect has handed out before a crash are chosen first: repeating it hands out
/// nobody twice and nobody more.
pub fn pick(plan: &Plan, turns: &[Turn<'_>], at_most: u64, groups: &BTreeMap<String, GroupCount>) -> Picked {
    let rule = plan.group_rule().map(|(_, share)| share);
    let mut left = at_most;
    let mut chosen = Vec::new();
    let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
    for (index, _) in turns.iter().enumerate().filter(|(_, turn)| turn.by_this) {
        chosen.push(index);
        left = left.saturating_sub(1);
    }
    // The first that stays behind ends the run of those who had their turn.
    let mut blocked = false;
    let mut cursor = None;
    for (index, turn) in turns.iter().enumerate() {
        let mut served = turn.by_this || !turn.ready;
        if !served && left > 0 {
            let free = match (rule, turn.group) {
                (Some(share), Some(group)) => {
                    let count = groups.get(group).copied().unwrap_or_default();
                    let cap = share.of(count.members).max(1);
                    count.in_flight + taken.get(group).copied().unwrap_or(0) < cap
                }
                _ => true,
            };
            if free {
                chosen.push(index);
                left -= 1;
                served = true;
                if let Some(group) = turn.group {
                    *taken.entry(group).or_default() += 1;
                }
            }
        }
        blocked |= !served;
        if !blocked {
            cursor = Some(turn.rank);
        }
    }
    chosen.sort_unstable();
    Picked { chosen, cursor, all: !blocked }
}
