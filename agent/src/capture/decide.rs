//! Which rows are kept. Pure: time and chance come in.
//!
//! Every row is drawn by chance with a share that is never 0 and known before the draw; strategies choose
//! beside it, within their quotas. Both depend only on the row itself and on what happened before, so the
//! probability that a row was kept is exactly 1 where a strategy chose it, and the share elsewhere.

use edgefleet_shared::capture::{CapturePolicy, MIN_AUDIT_SHARE, Quota, Reason, Strategy};
use std::collections::HashMap;

/// Classes told apart by the class quota; a model with more shares one quota among the rest.
const MAX_CLASSES: usize = 4_096;
/// Rows that can be asked for by hand at once.
const MAX_COMMANDED: u32 = 1_000;
/// Milliseconds of a minute, an hour and a day.
const PERIODS: [u64; 3] = [60_000, 3_600_000, 86_400_000];

/// One answered row, as strategies see it. What is not known is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub class: Option<u32>,
    /// Highest score, and the one below it.
    pub top: f32,
    pub second: f32,
    /// `1 + sum(p ln p) / ln C`.
    pub entropy: f32,
    /// The monitor's word.
    pub is_foreign: bool,
    pub is_out_of_range: bool,
}

/// A set of reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons(u16);

impl Reasons {
    pub fn add(&mut self, reason: Reason) {
        self.0 |= 1 << reason as u16;
    }
    pub fn has(self, reason: Reason) -> bool {
        self.0 & (1 << reason as u16) != 0
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn iter(self) -> impl Iterator<Item = Reason> {
        Reason::ALL.into_iter().filter(move |reason| self.has(*reason))
    }
}

/// A row to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub reasons: Reasons,
    /// Probability by which chance alone would have kept it.
    pub share: f64,
    /// Its number among the rows that chance picked.
    pub audit: Option<u64>,
}

impl Choice {
    /// Probability that this row was kept, given what happened before it.
    pub fn inclusion(&self) -> f64 {
        let by_strategy = self.reasons.iter().any(|reason| reason != Reason::Random);
        if by_strategy { 1.0 } else { self.share }
    }
}

/// What one strategy took in the present minute, hour and day.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used([(u64, u32); 3]);

impl Used {
    fn in_period(&self, at: usize, mono_ms: u64) -> u32 {
        let (period, taken) = self.0[at];
        if period == mono_ms / PERIODS[at] { taken } else { 0 }
    }
    pub fn take(&mut self, mono_ms: u64) {
        for (at, length) in PERIODS.iter().enumerate() {
            self.0[at] = (mono_ms / length, self.in_period(at, mono_ms) + 1);
        }
    }
    pub fn allows(&self, quota: &Quota, mono_ms: u64) -> bool {
        let limits = [quota.per_minute, quota.per_hour, quota.per_day];
        limits.iter().enumerate().all(|(at, limit)| limit.is_none_or(|n| self.in_period(at, mono_ms) < n))
    }
    /// How many whole quotas were taken, in the period where that is the most.
    fn quotas(&self, quota: &Quota, mono_ms: u64) -> u32 {
        let limits = [quota.per_minute, quota.per_hour, quota.per_day];
        let each = limits
            .iter()
            .enumerate()
            .map(|(at, limit)| limit.map_or(0, |limit| self.in_period(at, mono_ms) / limit.max(1)));
        each.max().unwrap_or(0)
    }
}

/// What became of one strategy's wishes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub taken: u64,
    pub over_quota: u64,
}

/// The choice for one slot. Survives changes of the policy with what was taken already.
#[derive(Debug)]
pub struct Decider {
    policy: CapturePolicy,
    used: [Used; Reason::ALL.len()],
    tally: [Tally; Reason::ALL.len()],
    audited: u64,
    commanded: u32,
    next_scheduled_ms: u64,
    /// Day, and captures of each class within it.
    classes: (u64, HashMap<u32, u32>),
}

impl Decider {
    pub fn new(policy: CapturePolicy) -> Self {
        Self {
            policy,
            used: Default::default(),
            tally: Default::default(),
            audited: 0,
            commanded: 0,
            next_scheduled_ms: 0,
            classes: Default::default(),
        }
    }

    pub fn set_policy(&mut self, policy: CapturePolicy) {
        self.policy = policy;
    }
    pub fn policy(&self) -> &CapturePolicy {
        &self.policy
    }
    /// Keep the next rows, whatever they are.
    pub fn command(&mut self, count: u32) {
        self.commanded = self.commanded.saturating_add(count).min(MAX_COMMANDED);
    }
    /// By reason, for people.
    pub fn tally(&self) -> impl Iterator<Item = (Reason, Tally)> {
        Reason::ALL.into_iter().zip(self.tally)
    }

    /// The share that chance has now.
    pub fn share(&self, mono_ms: u64) -> f64 {
        let halvings = self.used[Reason::Random as usize].quotas(&self.policy.random.quota, mono_ms);
        let share = self.policy.audit_share() / 2f64.powi(halvings.min(64) as i32);
        share.max(MIN_AUDIT_SHARE)
    }

    /// Whether and why to keep `row`. `draw`: uniform over 0 to 1, 1 excluded.
    pub fn decide(&mut self, row: &Row, mono_ms: u64, draw: f64) -> Option<Choice> {
        let share = self.share(mono_ms);
        let mut reasons = Reasons::default();
        let mut audit = None;
        if draw < share {
            self.audited += 1;
            audit = Some(self.audited);
            reasons.add(Reason::Random);
            self.take(Reason::Random, mono_ms);
        }
        for at in 0..self.policy.rules.len() {
            let rule = self.policy.rules[at];
            if !self.wants(&rule.strategy, row, mono_ms) {
                continue;
            }
            let reason = rule.strategy.reason();
            if !self.used[reason as usize].allows(&rule.quota, mono_ms) {
                self.tally[reason as usize].over_quota += 1;
                continue;
            }
            self.chosen(&rule.strategy, row, mono_ms);
            reasons.add(reason);
            self.take(reason, mono_ms);
        }
        if self.commanded > 0 {
            self.commanded -= 1;
            reasons.add(Reason::OnCommand);
            self.take(Reason::OnCommand, mono_ms);
        }
        (!reasons.is_empty()).then_some(Choice { reasons, share, audit })
    }

    fn take(&mut self, reason: Reason, mono_ms: u64) {
        self.used[reason as usize].take(mono_ms);
        self.tally[reason as usize].taken += 1;
    }

    fn wants(&self, strategy: &Strategy, row: &Row, mono_ms: u64) -> bool {
        // Comparisons with NaN are false: what is not known chooses nothing.
        match *strategy {
            Strategy::LowMargin { below } => f64::from(row.top - row.second) < below,
            Strategy::NearThreshold { threshold, within } => (f64::from(row.top) - threshold).abs() <= within,
            Strategy::Entropy { below } => f64::from(row.entropy) < below,
            Strategy::Ood => row.is_foreign,
            Strategy::OutOfRange => row.is_out_of_range,
            Strategy::ClassQuota { per_class_per_day } => row.class.is_some_and(|class| {
                let (day, classes) = &self.classes;
                *day != mono_ms / PERIODS[2] || classes.get(&class).is_none_or(|n| *n < per_class_per_day)
            }),
            Strategy::Schedule { .. } => mono_ms >= self.next_scheduled_ms,
            // Known late: [`LateDecider`].
            Strategy::Disagreement | Strategy::FeedbackNegative => false,
        }
    }

    fn chosen(&mut self, strategy: &Strategy, row: &Row, mono_ms: u64) {
        match (*strategy, row.class) {
            (Strategy::Schedule { every_secs }, _) => {
                self.next_scheduled_ms = mono_ms.saturating_add(every_secs.saturating_mul(1_000));
            }
            (Strategy::ClassQuota { .. }, Some(class)) => {
                let day = mono_ms / PERIODS[2];
                if self.classes.0 != day {
                    self.classes = (day, HashMap::new());
                }
                let classes = &mut self.classes.1;
                let known = classes.len() < MAX_CLASSES || classes.contains_key(&class);
                *classes.entry(if known { class } else { u32::MAX }).or_default() += 1;
            }
            _ => {}
        }
    }
}

/// Quotas of what is known only some time after the answer.
#[derive(Debug, Default)]
pub struct LateDecider {
    used: [Used; Reason::ALL.len()],
    pub taken: u64,
}

impl LateDecider {
    /// Whether `policy` wants a row for this reason now.
    pub fn decide(&mut self, policy: &CapturePolicy, reason: Reason, mono_ms: u64) -> bool {
        let rule = policy.rules.iter().find(|rule| rule.strategy.reason() == reason);
        let Some(rule) = rule.filter(|_| reason.is_late()) else { return false };
        let used = &mut self.used[reason as usize];
        let allowed = used.allows(&rule.quota, mono_ms);
        if allowed {
            used.take(mono_ms);
            self.taken += 1;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::capture::Strategy;
    use edgefleet_shared::capture::{RandomRule, Rule};
    use proptest::prelude::*;

    fn row(top: f32, second: f32) -> Row {
        Row { class: Some(3), top, second, entropy: f32::NAN, is_foreign: false, is_out_of_range: false }
    }
    fn policy(share: f64, rules: &[(Strategy, Option<u32>)]) -> CapturePolicy {
        let rules = rules.iter().map(|(strategy, per_minute)| Rule {
            strategy: *strategy,
            quota: Quota { per_minute: *per_minute, ..Quota::default() },
        });
        CapturePolicy {
            random: RandomRule { share, quota: Quota::default() },
            rules: rules.collect(),
            ..CapturePolicy::default()
        }
    }
    fn why(decider: &mut Decider, row: &Row, mono_ms: u64) -> Vec<Reason> {
        let never = 0.999_999_9;
        decider.decide(row, mono_ms, never).map(|choice| choice.reasons.iter().collect()).unwrap_or_default()
    }

    #[test]
    fn each_strategy_chooses_what_it_is_for() {
        use Strategy as S;
        let sure = row(0.98, 0.01);
        let unknown = row(f32::NAN, f32::NAN);
        for (strategy, chosen, passed) in [
            (S::LowMargin { below: 0.1 }, row(0.4, 0.35), sure),
            (S::LowMargin { below: 0.1 }, row(0.4, 0.35), unknown),
            (S::NearThreshold { threshold: 0.5, within: 0.05 }, row(0.54, 0.4), sure),
            (S::Entropy { below: 0.5 }, Row { entropy: 0.2, ..sure }, Row { entropy: 0.9, ..sure }),
            (S::Entropy { below: 0.5 }, Row { entropy: 0.2, ..sure }, unknown),
            (S::Ood, Row { is_foreign: true, ..sure }, sure),
            (S::OutOfRange, Row { is_out_of_range: true, ..sure }, sure),
            (S::ClassQuota { per_class_per_day: 1 }, sure, Row { class: None, ..sure }),
        ] {
            let mut decider = Decider::new(policy(1e-4, &[(strategy, None)]));
            assert_eq!(why(&mut decider, &passed, 1), [], "{strategy:?}");
            assert_eq!(why(&mut decider, &chosen, 1), [strategy.reason()], "{strategy:?}");
        }
    }

    #[test]
    fn quotas_hold_within_their_period_and_come_back_after_it() {
        let mut decider = Decider::new(policy(1e-4, &[(Strategy::LowMargin { below: 0.1 }, Some(2))]));
        let mut taken = |ms| (0..5).filter(|_| !why(&mut decider, &row(0.4, 0.35), ms).is_empty()).count();
        assert_eq!((taken(1_000), taken(59_000), taken(60_000)), (2, 0, 2));
        let low = decider.tally().find(|(reason, _)| *reason == Reason::LowMargin).unwrap().1;
        assert_eq!((low.taken, low.over_quota), (4, 11));
        let mut decider = Decider::new(policy(1e-4, &[(Strategy::Schedule { every_secs: 10 }, None)]));
        let times: Vec<u64> =
            (0..60).filter(|s| !why(&mut decider, &row(0.9, 0.1), s * 1_000).is_empty()).collect();
        assert_eq!(times, [0, 10, 20, 30, 40, 50]);
        let each = Strategy::ClassQuota { per_class_per_day: 2 };
        let mut decider = Decider::new(policy(1e-4, &[(each, None)]));
        let of = |class, n: u64| Row { class: Some(class), ..row(0.9, n as f32 * 1e-9) };
        let mut count =
            |class, ms| (0..9).filter(|n| !why(&mut decider, &of(class, *n), ms).is_empty()).count();
        assert_eq!((count(1, 5), count(2, 5), count(1, 86_400_000)), (2, 2, 2));
    }

    #[test]
    fn a_command_keeps_the_next_rows() {
        let mut decider = Decider::new(policy(1e-4, &[]));
        decider.command(2);
        let all: Vec<_> = (0..3).map(|_| why(&mut decider, &row(0.9, 0.1), 1)).collect();
        assert_eq!(all, [vec![Reason::OnCommand], vec![Reason::OnCommand], vec![]]);
    }

    #[test]
    fn late_reasons_need_their_rule_and_have_quotas() {
        let with = policy(1e-4, &[(Strategy::Disagreement, Some(1))]);
        let mut late = LateDecider::default();
        assert!(late.decide(&with, Reason::Disagreement, 1));
        assert!(!late.decide(&with, Reason::Disagreement, 2), "the quota is used up");
        assert!(!late.decide(&with, Reason::FeedbackNegative, 2));
        assert!(late.decide(&with, Reason::Disagreement, 60_000));
    }

    #[test]
    fn the_audit_share_halves_with_each_quota_and_never_ends() {
        let mut with = policy(0.5, &[]);
        with.random.quota.per_hour = Some(10);
        let mut decider = Decider::new(with);
        let mut shares = vec![];
        for _ in 0..40 {
            shares.push(decider.share(5));
            decider.decide(&row(0.9, 0.1), 5, 0.0).unwrap();
        }
        assert_eq!(
            (shares[0], shares[9], shares[10], shares[29], shares[39]),
            (0.5, 0.5, 0.25, 0.125, 0.0625)
        );
        assert_eq!(decider.share(3_600_000), 0.5, "a new hour");
        for _ in 0..1_000 {
            decider.decide(&row(0.9, 0.1), 5, 0.0).unwrap();
        }
        assert_eq!(decider.share(5), MIN_AUDIT_SHARE);
    }

    /// What the estimate rests on: the sum of 1/probability over what was kept is the number of rows, on average,
    /// also while quotas run out and the share moves. Judged by the spread of the runs themselves.
    #[test]
    fn kept_rows_weighted_by_one_over_their_probability_count_all_rows() {
        let mut with = policy(0.05, &[(Strategy::LowMargin { below: 0.2 }, Some(20))]);
        with.random.quota.per_minute = Some(30);
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let (runs, rows) = (200, 5_000u64);
        let (mut all, mut hard) = (vec![], vec![]);
        for _ in 0..runs {
            let mut decider = Decider::new(with.clone());
            let (mut kept, mut uncertain) = (0.0, 0.0);
            for n in 0..rows {
                let margin = uniform() as f32;
                let row = row(0.5 + margin / 2.0, 0.5 - margin / 2.0);
                let Some(choice) = decider.decide(&row, n, uniform()) else { continue };
                kept += 1.0 / choice.inclusion();
                uncertain += f64::from(u8::from(margin < 0.2)) / choice.inclusion();
            }
            all.push(kept / rows as f64);
            hard.push(uncertain / (rows as f64 * 0.2));
        }
        for (what, found) in [("all", all), ("uncertain", hard)] {
            let n = found.len() as f64;
            let mean = found.iter().sum::<f64>() / n;
            let variance = found.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let error = (variance / n).sqrt();
            assert!(error < 0.02 && (mean - 1.0).abs() < 4.0 * error, "{what}: {mean} +- {error}");
        }
    }

    proptest! {
        #[test]
        fn every_row_has_a_probability_above_zero(
            share in 0.0f64..2.0, per_minute in 0u32..5, tops in proptest::collection::vec(0.0f32..1.0, 1..200),
            draw in 0.0f64..1.0
        ) {
            let mut with = policy(share, &[(Strategy::LowMargin { below: 0.3 }, Some(per_minute))]);
            with.random.quota.per_day = Some(per_minute);
            let mut decider = Decider::new(with);
            for (ms, top) in tops.iter().enumerate() {
                let share = decider.share(ms as u64);
                prop_assert!((MIN_AUDIT_SHARE..=1.0).contains(&share));
                let choice = decider.decide(&row(*top, 0.0), ms as u64, draw);
                prop_assert_eq!(choice.is_some_and(|c| c.audit.is_some()), draw < share);
                if let Some(choice) = choice {
                    let inclusion = choice.inclusion();
                    prop_assert!(inclusion > 0.0 && inclusion <= 1.0);
                }
            }
        }
    }
}
