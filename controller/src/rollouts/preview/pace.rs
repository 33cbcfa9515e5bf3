//! How long hand-outs take: the limits of a plan played through, device by device.
//!
//! Nobody fails and nobody is offline here, and every device takes as long as the next; so the result is
//! what a healthy fleet does at best. One pass over the devices, a few nanoseconds each.

use super::LimitedBy;
use crate::{
    rollout::{Mode, Plan, Span},
    transfer::Limits,
};
use std::collections::VecDeque;

/// From the last byte to the first answered request, and reports in between: measured at 2 to 10 s on
/// small models, more where an engine optimises at load.
pub(super) const SETTLE_SECS: f64 = 10.0;
const DAY_SECS: f64 = 86_400.0;

/// The devices that have their turn in one stage.
pub(super) struct Turns<'a> {
    pub plan: &'a Plan,
    pub links: &'a Limits,
    pub mode: Mode,
    pub devices: u64,
    /// Bytes each of them fetches.
    pub download: u64,
    /// Most of them at a time.
    pub concurrency: u64,
    /// Redundancy groups: devices that have their turn here, and most of them at a time.
    pub groups: Vec<(u64, u64)>,
    /// Evenly over this time.
    pub spread: Option<Span>,
    /// So many have to be finished before the soak begins.
    pub wanted: u64,
    /// Devices that made it in earlier stages: the rate has grown with them.
    pub successes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Delivery {
    /// Seconds until `wanted` devices have finished.
    pub secs: f64,
    pub limited_by: LimitedBy,
}

const LIMITS: [LimitedBy; 6] = [
    LimitedBy::Groups,
    LimitedBy::Concurrency,
    LimitedBy::Rate,
    LimitedBy::Spread,
    LimitedBy::Bandwidth,
    LimitedBy::BytesPerDay,
];

/// Plays the stage through, with all limits and with each alone: the one that takes longest by itself is
/// named.
pub(super) fn deliver(turns: &Turns<'_>) -> Delivery {
    if turns.devices == 0 || turns.wanted == 0 {
        return Delivery { secs: 0.0, limited_by: LimitedBy::Nothing };
    }
    let secs = turns.play(&LIMITS);
    let free = turns.play(&[]);
    let alone = LIMITS.iter().map(|limit| (*limit, turns.play(&[*limit])));
    let slowest = alone.max_by(|a, b| a.1.total_cmp(&b.1));
    // Below 5 %, or a minute, nobody would call it a limit.
    let limited_by = slowest
        .filter(|(_, secs)| *secs > free * 1.05 && *secs > free + 60.0)
        .map_or(LimitedBy::Nothing, |(by, _)| by);
    Delivery { secs, limited_by }
}

impl Turns<'_> {
    fn per_min(&self, successes: u64) -> f64 {
        let limits = &self.plan.limits;
        // 64 doublings are beyond every cap.
        let steps = (successes / limits.per.max(1)).min(64) as i32;
        let per_min = (limits.start_per_min * limits.growth.max(1.0).powi(steps)).min(limits.cap_per_min);
        (per_min * self.plan.time_scale).max(1e-6)
    }

    /// Seconds from a device's hand-out to its end, beside the download.
    fn watch_secs(&self) -> f64 {
        match self.mode {
            Mode::Shadow => SETTLE_SECS,
            Mode::Active => SETTLE_SECS + self.plan.wait(self.plan.probation).as_secs_f64(),
        }
    }

    fn play(&self, limits: &[LimitedBy]) -> f64 {
        let on = |limit| limits.contains(&limit);
        let bytes = self.download as f64;
        let own = self.links.device_bytes_per_sec.map_or(0.0, |rate| bytes / rate.max(1) as f64);
        let shared = match self.links.controller_bytes_per_sec {
            Some(rate) if on(LimitedBy::Bandwidth) => bytes / rate.max(1) as f64,
            _ => 0.0,
        };
        let daily =
            self.plan.limits.bytes_per_day.filter(|_| on(LimitedBy::BytesPerDay) && self.download > 0);
        let per_day = daily.map(|budget| (budget / self.download).max(1));
        let gap = self
            .spread
            .filter(|_| on(LimitedBy::Spread))
            .map_or(0.0, |spread| self.plan.wait(spread).as_secs_f64() / self.devices as f64);
        let by_groups = if on(LimitedBy::Groups) { self.waves() * (own + self.watch_secs()) } else { 0.0 };
        let cap = if on(LimitedBy::Concurrency) { self.concurrency.max(1) } else { u64::MAX };
        let watch = self.watch_secs();

        let (mut handed, mut fetched) = (0.0f64, 0.0f64);
        let mut made = self.successes;
        // Ends of those under way, in order: turns go by rank and everybody takes as long.
        let mut ends: VecDeque<f64> = VecDeque::new();
        let mut last = 0.0;
        for turn in 0..self.wanted.min(self.devices) {
            if turn > 0 {
                let pace = if on(LimitedBy::Rate) { 60.0 / self.per_min(made) } else { 0.0 };
                handed += pace.max(gap);
            }
            if let Some(per_day) = per_day {
                handed = handed.max((turn / per_day) as f64 * DAY_SECS);
            }
            if ends.len() as u64 >= cap
                && let Some(end) = ends.front()
            {
                handed = handed.max(*end);
            }
            while ends.front().is_some_and(|end| *end <= handed) {
                ends.pop_front();
                made += 1;
            }
            fetched = (handed + own).max(fetched + shared);
            last = fetched + watch;
            ends.push_back(last);
        }
        last.max(by_groups)
    }

    /// How many times a device's own duration passes until `wanted` are finished, if only groups hold back:
    /// each goes in waves of what it may have in flight.
    fn waves(&self) -> f64 {
        let grouped: u64 = self.groups.iter().map(|(devices, _)| devices).sum();
        let mut finished = self.devices.saturating_sub(grouped);
        let (mut waves, mut wave) = (u64::from(finished > 0), 0);
        while finished < self.wanted.min(self.devices) {
            let left = |(devices, most): &(u64, u64)| {
                let most = (*most).max(1);
                devices.saturating_sub(most.saturating_mul(wave)).min(most)
            };
            finished += self.groups.iter().map(left).sum::<u64>();
            wave += 1;
            waves = wave;
        }
        waves as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan() -> Plan {
        Plan::new("digits".parse().unwrap(), "digits@2".parse().unwrap())
    }

    fn turns(plan: &Plan, devices: u64, concurrency: u64) -> Turns<'_> {
        Turns {
            plan,
            links: &Limits::NONE,
            mode: Mode::Active,
            devices,
            download: 0,
            concurrency,
            groups: Vec::new(),
            spread: None,
            wanted: devices,
            successes: 0,
        }
    }

    #[test]
    fn devices_wait_for_a_place_in_waves() {
        let plan = Plan { probation: Span::secs(590), ..plan() };
        let played = deliver(&turns(&plan, 100, 20));
        // Five waves of 20, each 590 s of probation and 10 s to settle, plus the first wave's own turns.
        assert_eq!(played.limited_by, LimitedBy::Concurrency);
        assert!((3_000.0..3_030.0).contains(&played.secs), "{played:?}");
    }

    #[test]
    fn the_rate_doubles_after_each_thousand() {
        let plan = Plan { probation: Span::ZERO, ..plan() };
        let played = deliver(&turns(&plan, 3_000, 3_000));
        // 1,000 at 50, at 100 and at 200 a minute: 35 minutes.
        assert_eq!(played.limited_by, LimitedBy::Rate);
        assert!((2_080.0..2_130.0).contains(&played.secs), "{played:?}");
    }

    #[test]
    fn redundancy_groups_go_in_waves_of_their_own() {
        let plan = Plan { probation: Span::secs(590), ..plan() };
        // Ten pairs of which one may go at a time, a group of twelve in waves of five, and eight of none.
        let groups: Vec<_> = [(2, 1); 10].into_iter().chain([(12, 5)]).collect();
        let all = deliver(&Turns { groups: groups.clone(), ..turns(&plan, 40, 40) });
        assert_eq!(all, Delivery { secs: 1_800.0, limited_by: LimitedBy::Groups });
        // Of the first waves 8, 10 and 5 are done, of the second 10 and 5.
        for (wanted, waves) in [(23, 1.0), (24, 2.0), (38, 2.0), (39, 3.0)] {
            let turns = Turns { groups: groups.clone(), wanted, ..turns(&plan, 40, 40) };
            assert_eq!(turns.waves(), waves, "{wanted}");
        }
    }

    #[test]
    fn a_faster_clock_hands_out_and_watches_as_much_faster() {
        let plan = Plan { probation: Span::hours(2), time_scale: 60.0, ..plan() };
        let slow = Plan { time_scale: 1.0, ..plan.clone() };
        let secs = |plan: &Plan| deliver(&turns(plan, 100, 100)).secs - SETTLE_SECS;
        assert!((secs(&slow) / secs(&plan) - 60.0).abs() < 1e-6, "{} {}", secs(&slow), secs(&plan));
    }

    #[test]
    fn links_bytes_per_day_and_spread_are_named_where_they_hold_up() {
        let plan = Plan { probation: Span::ZERO, ..plan() };
        let links = Limits { controller_bytes_per_sec: Some(1_000), device_bytes_per_sec: Some(1_000) };
        let link = deliver(&Turns { download: 60_000, links: &links, ..turns(&plan, 10, 10) });
        assert_eq!(link, Delivery { secs: 610.0, limited_by: LimitedBy::Bandwidth });
        let spread = deliver(&Turns { spread: Some(Span::hours(1)), ..turns(&plan, 10, 10) });
        assert_eq!(spread, Delivery { secs: 3_250.0, limited_by: LimitedBy::Spread });
        let mut plan = plan;
        plan.limits.bytes_per_day = Some(200);
        let daily = deliver(&Turns { download: 100, ..turns(&plan, 5, 10) });
        assert_eq!(daily, Delivery { secs: 2.0 * 86_400.0 + 10.0, limited_by: LimitedBy::BytesPerDay });
    }

    proptest! {
        #[test]
        fn more_of_anything_never_delivers_sooner(
            devices in 1u64..400, cap in 1u64..40, download in 0u64..1_000_000, probation in 0u64..7_200,
        ) {
            let plan = Plan { probation: Span::secs(probation), ..plan() };
            let links = Limits::default();
            let at = |devices, cap| {
                deliver(&Turns { download, links: &links, ..turns(&plan, devices, cap) }).secs
            };
            prop_assert!(at(devices + 1, cap) >= at(devices, cap));
            prop_assert!(at(devices, cap + 1) <= at(devices, cap) + 1e-6);
            // Nobody is handed out into a place that is taken.
            let waves = devices.div_ceil(cap) as f64;
            prop_assert!(at(devices, cap) + 1e-6 >= waves * (probation as f64 + SETTLE_SECS));
        }
    }
}
