//! Capture policies that bring what is missing.

use edgefleet_shared::capture::{CapturePolicy, Quota, Reason, Rule, Strategy};

/// Shares of the random sample that are asked for at most.
const MOST_SHARE: f64 = 1.0;
/// What a quota of a day allows in one hour and in one minute, as parts of it: bursts are not all of a day.
const HOURS: u32 = 8;
const MINUTES: u32 = 60;

/// `per_day` with hours and minutes that let it be reached; nothing gets less.
fn at_least(quota: Quota, per_day: u32) -> Quota {
    let more = |now: Option<u32>, least: u32| now.map(|now| now.max(least));
    Quota {
        per_minute: more(quota.per_minute, per_day.div_ceil(MINUTES)),
        per_hour: more(quota.per_hour, per_day.div_ceil(HOURS)),
        per_day: more(quota.per_day, per_day),
    }
}

/// The audit sample of this share, its quotas grown alike.
pub(super) fn raised(mut policy: CapturePolicy, share: f64) -> CapturePolicy {
    let now = policy.random.share;
    let next = share.clamp(now.min(MOST_SHARE), MOST_SHARE);
    let times = if now > 0.0 { next / now } else { 1.0 };
    let grown = |n: Option<u32>| n.map(|n| (f64::from(n) * times).ceil().min(f64::from(u32::MAX)) as u32);
    let Quota { per_minute, per_hour, per_day } = policy.random.quota;
    policy.random.share = next;
    policy.random.quota =
        Quota { per_minute: grown(per_minute), per_hour: grown(per_hour), per_day: grown(per_day) };
    policy
}

/// Keeps what `reasons` name (nothing named: by chance and by class) so that about `wanted` come in a day.
pub(super) fn targeted(
    mut policy: CapturePolicy,
    reasons: &[Reason],
    classes: usize,
    wanted: u64,
) -> CapturePolicy {
    let wanted = u32::try_from(wanted.clamp(1, 10_000)).unwrap_or(10_000);
    let quota = |rule: Option<&Rule>| rule.map_or_else(|| usual(wanted), |rule| at_least(rule.quota, wanted));
    let mut add = |strategy: Strategy| {
        let at = policy.rules.iter().position(|rule| rule.strategy.reason() == strategy.reason());
        match at {
            Some(at) => policy.rules[at].quota = quota(Some(&policy.rules[at])),
            None => policy.rules.push(Rule { strategy, quota: quota(None) }),
        }
    };
    for reason in reasons {
        match reason {
            Reason::LowMargin => add(Strategy::LowMargin { below: 0.1 }),
            Reason::Entropy => add(Strategy::Entropy { below: 0.5 }),
            Reason::Ood => add(Strategy::Ood),
            Reason::Disagreement => add(Strategy::Disagreement),
            Reason::OutOfRange => add(Strategy::OutOfRange),
            // Chance is below; the others need a number that nobody gave, or come by themselves.
            Reason::Random
            | Reason::NearThreshold
            | Reason::ClassQuota
            | Reason::FeedbackNegative
            | Reason::Schedule
            | Reason::OnCommand => {}
        }
    }
    if classes > 0 || reasons.is_empty() {
        let each = wanted.div_ceil(u32::try_from(classes.max(1)).unwrap_or(u32::MAX));
        add(Strategy::ClassQuota { per_class_per_day: each });
    }
    if reasons.is_empty() || reasons.contains(&Reason::Random) {
        let (share, quota) = (4.0 * policy.random.share, at_least(policy.random.quota, wanted));
        policy = raised(policy, share);
        policy.random.quota = at_least(policy.random.quota, quota.per_day.unwrap_or(wanted));
    }
    policy
}

fn usual(per_day: u32) -> Quota {
    let all = Quota { per_minute: Some(0), per_hour: Some(0), per_day: Some(0) };
    at_least(all, per_day)
}

/// Another quota of a day for one strategy; `None` if the policy has no such strategy.
pub(super) fn with_quota(mut policy: CapturePolicy, strategy: &str, per_day: u64) -> Option<CapturePolicy> {
    let per_day = u32::try_from(per_day).unwrap_or(u32::MAX);
    let reason: Reason = strategy.parse().ok()?;
    let fitted = |quota: Quota| {
        let capped = |n: Option<u32>| n.map(|n| n.min(per_day));
        let quota = Quota {
            per_minute: capped(quota.per_minute),
            per_hour: capped(quota.per_hour),
            per_day: Some(per_day),
        };
        at_least(quota, per_day)
    };
    if reason == Reason::Random {
        policy.random.quota = fitted(policy.random.quota);
        return Some(policy);
    }
    let rule = policy.rules.iter_mut().find(|rule| rule.strategy.reason() == reason)?;
    rule.quota = fitted(rule.quota);
    Some(policy)
}
