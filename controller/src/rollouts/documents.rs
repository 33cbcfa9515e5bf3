//! What is stored of a rollout, and under which ids.
//!
//! | kind | id | what |
//! |---|---|---|
//! | `rollout` | `r-...` | counters, stages, evidence, pending effects |
//! | `attempt` | `r-.../dev-...` | one device in it |
//! | `turn` | `r-.../stage/rank` | whose turn is when: hand-outs and sweeps read it in order |
//! | `match` | `r-.../number/dev-...` | a canary and its controls |
//!
//! What is wanted of a device lies in its intent, with the rollout the slot is part of.

use crate::{
    desired::{INTENT, Intent},
    rollout::{Attempt, Rollout},
    store::{FleetStore, Kind, Repository},
};
use edgefleet_shared::ids::{DeviceId, RolloutId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub const ROLLOUT: Kind = Kind::new("rollout");
pub const ATTEMPT: Kind = Kind::new("attempt");
pub(super) const TURN: Kind = Kind::new("turn");
pub(super) const MATCH: Kind = Kind::new("match");

/// `rollout/device`: all attempts of a rollout are one prefix.
pub fn attempt_id(rollout: &RolloutId, device: &DeviceId) -> String {
    format!("{rollout}/{device}")
}

/// Digits enough for every rank, so that the order of ids is the order of ranks.
pub(super) fn turn_id(rollout: &RolloutId, stage: u16, rank: u64) -> String {
    format!("{rollout}/{stage:05}/{rank:020}")
}

pub(super) fn turn_prefix(rollout: &RolloutId, stage: u16) -> String {
    format!("{rollout}/{stage:05}/")
}

pub(super) fn match_prefix(rollout: &RolloutId, number: u32) -> String {
    format!("{rollout}/{number:010}/")
}

/// Body of a `turn` and of a `match`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub device: DeviceId,
    pub rank: u64,
}

/// The repositories of rollouts. Cheap to clone.
#[derive(Clone)]
pub struct Documents {
    pub store: Arc<dyn FleetStore>,
    pub rollouts: Repository<Rollout>,
    pub attempts: Repository<Attempt>,
    pub intents: Repository<Intent>,
    pub(super) turns: Repository<Place>,
    pub(super) matches: Repository<Place>,
}

impl Documents {
    pub fn new(store: Arc<dyn FleetStore>) -> Self {
        Self {
            rollouts: Repository::new(store.clone(), ROLLOUT),
            attempts: Repository::new(store.clone(), ATTEMPT),
            intents: Repository::new(store.clone(), INTENT),
            turns: Repository::new(store.clone(), TURN),
            matches: Repository::new(store.clone(), MATCH),
            store,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_ids_is_the_order_of_turns() {
        let rollout: RolloutId = "r-1".parse().unwrap();
        let ids: Vec<_> = [(0, 9), (0, 10), (1, 0), (2, u64::MAX), (10, 1)]
            .map(|(stage, rank)| turn_id(&rollout, stage, rank))
            .into();
        assert!(ids.is_sorted(), "{ids:?}");
        assert!(ids[2].starts_with(&turn_prefix(&rollout, 1)));
    }
}
