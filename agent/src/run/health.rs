//! When a bundle on probation goes back by itself, and when a shadow is ended: failures, latency,
//! memory. Pure but for the one reading of the process's own memory.

use crate::{monitor::ErrorCode, serving::stats::Totals, update::SlotHealth};
use edgefleet_shared::{bundle::Limits, digest::BundleDigest, reported::RefusalCode};
use std::time::Duration;

/// Failures of the engine before a bundle is judged at all.
const MIN_ENGINE_FAILURES: u64 = 5;
/// One request in this many failing in the engine is too many for a bundle whose golden samples pass.
const TOLERATED_ONE_IN: u64 = 10;
/// Answers before a 95th percentile sends a bundle back.
const MIN_ANSWERS: u64 = 100;
/// Beyond its budget, or the bundle before it, by this factor. The fine comparison is the controller's;
/// this one catches what hurts now.
const TOO_SLOW: f64 = 2.0;
/// What is added to a percentile by a busy scheduler alone, milliseconds: no growth below it is held
/// against a bundle beside the one before.
const NOISE_MS: f64 = 0.25;
/// A shadow may starve on a busy device; one that answers nothing for so long hangs.
const HANGS: Duration = Duration::from_secs(600);

/// What was known when a bundle was activated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    pub(super) digest: BundleDigest,
    /// Anonymous memory of the process before the bundle was loaded, bytes.
    pub(super) anonymous: Option<u64>,
    /// Models loaded by then, this one included.
    pub(super) loads: u64,
    /// 95th percentile of the bundle it replaced, milliseconds.
    pub(super) former_p95_ms: Option<f64>,
}

/// Engine time of one row, 95th percentile in milliseconds; `None` below [`MIN_ANSWERS`].
pub(super) fn p95_ms(totals: &Totals) -> Option<f64> {
    if totals.infer_us.count() < MIN_ANSWERS {
        return None;
    }
    // Limits speak of batches of 1: a request of eight rows may take eight times as long.
    let rows = (totals.rows as f64 / totals.executions.max(1) as f64).max(1.0);
    Some(totals.infer_us.quantile_us(0.95)? / 1_000.0 / rows)
}

fn bad(code: RefusalCode, reason: String) -> SlotHealth {
    SlotHealth::Bad { code, reason }
}

/// `slower`: percent of the former bundle's 95th percentile that the rollout allows, if it says so.
/// `anonymous`: the process's anonymous memory now, if nothing else was loaded since.
pub(super) fn judge(
    totals: &Totals,
    limits: &Limits,
    slower: Option<u32>,
    before: Option<Before>,
    anonymous: Option<u64>,
) -> SlotHealth {
    let ours = ErrorCode::ALL.into_iter().filter(|code| code.is_ours());
    let failed: u64 = ours.map(|code| totals.errors[code as usize]).sum();
    let asked = failed.saturating_add(totals.success.count);
    if too_many(failed, asked) {
        return bad(RefusalCode::Unhealthy, format!("{failed} of {asked} requests failed in the engine"));
    }
    if let Some(p95) = p95_ms(totals) {
        let (budget, former) = (limits.p95_latency_ms, before.and_then(|before| before.former_p95_ms));
        let n = totals.infer_us.count();
        if p95 > TOO_SLOW * budget {
            let said = format!("p95 {p95:.2} ms over {n} requests, its budget is {budget} ms");
            return bad(RefusalCode::Latency, said);
        }
        if let Some(former) = former.filter(|former| p95 > TOO_SLOW * former && p95 > budget) {
            let said = format!(
                "p95 {p95:.2} ms over {n} requests, the bundle before took {former:.2} ms, its budget is {budget} ms"
            );
            return bad(RefusalCode::Latency, said);
        }
        if let Some((former, percent)) = former.zip(slower)
            && p95 > former * f64::from(percent) / 100.0
            && p95 > former + NOISE_MS
        {
            let said = format!(
                "p95 {p95:.2} ms over {n} requests, the bundle before took {former:.2} ms, {percent} % of that is allowed"
            );
            return bad(RefusalCode::Latency, said);
        }
    }
    let grown = before.and_then(|b| anonymous?.checked_sub(b.anonymous?));
    match grown {
        Some(grown) if grown > limits.peak_memory_bytes => {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let said = format!(
                "memory grew by {:.1} MiB since it was loaded, its limit is {:.1} MiB",
                mib(grown),
                mib(limits.peak_memory_bytes)
            );
            bad(RefusalCode::Memory, said)
        }
        _ => SlotHealth::Good,
    }
}

/// `answered`: requests the shadow answered, and how many of them it failed.
pub(super) fn judge_shadow(answered: (u64, u64), running_for: Option<Duration>) -> SlotHealth {
    let (asked, failed) = answered;
    if too_many(failed, asked) {
        return bad(
            RefusalCode::Unhealthy,
            format!("{failed} of {asked} mirrored requests failed in the engine"),
        );
    }
    match running_for {
        Some(time) if time > HANGS => {
            bad(RefusalCode::Unhealthy, format!("no answer to a mirrored request in {} s", time.as_secs()))
        }
        _ => SlotHealth::Good,
    }
}

/// `failed` of `asked` requests failed for reasons of the bundle or the device.
fn too_many(failed: u64, asked: u64) -> bool {
    failed >= MIN_ENGINE_FAILURES && failed.saturating_mul(TOLERATED_ONE_IN) > asked
}

/// Memory of this process that no file backs, bytes.
pub(super) fn anonymous_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        monitor::Outcome,
        serving::stats::{Spent, Stats},
    };

    const LIMITS: Limits = Limits { peak_memory_bytes: 50 << 20, p95_latency_ms: 10.0, batch_max: 8 };

    fn code(health: SlotHealth) -> Option<RefusalCode> {
        match health {
            SlotHealth::Good => None,
            SlotHealth::Bad { code, reason } => {
                assert!(reason.contains(|c: char| c.is_ascii_digit()), "no numbers in {reason:?}");
                Some(code)
            }
        }
    }

    #[test]
    fn a_bundle_is_bad_only_when_enough_requests_of_enough_failed() {
        for (failed, asked, bad) in [
            (0, 0, false),
            (4, 4, false),
            (5, 5, true),
            (5, 49, true),
            (5, 50, false),
            (100, 900, true),
            (100, 1_000, false),
            (u64::MAX, u64::MAX, false), // saturated, not wrapped
        ] {
            assert_eq!(too_many(failed, asked), bad, "{failed} of {asked}");
        }
    }

    #[test]
    fn a_slow_bundle_goes_back_when_it_is_beyond_its_budget_by_far_or_beyond_both() {
        // requests, rows each, ms, the bundle before, percent of it allowed, goes back
        for (n, rows, ms, former, slower, back) in [
            (99, 1, 30.0, None, None, false),
            (100, 1, 30.0, None, None, true),
            (100, 1, 19.0, None, None, false),
            (100, 1, 19.0, Some(9.0), None, true),
            (100, 1, 19.0, Some(9.6), None, false),
            (100, 1, 9.0, Some(1.0), None, false), // its publisher said so
            (100, 1, 9.0, Some(1.0), Some(300), true), // but the operator did not
            (100, 1, 2.5, Some(1.0), Some(300), false),
            (99, 1, 9.0, Some(1.0), Some(300), false),
            (100, 1, 9.0, None, Some(300), false),
            (100, 1, 0.2, Some(0.01), Some(300), false), // noise
            (100, 8, 30.0, None, None, false),
        ] {
            let stats = Stats::default();
            let infer = Duration::from_secs_f64(ms / 1_000.0);
            let spent = Spent { infer, total: infer, ..Spent::default() };
            (0..n).for_each(|_| stats.record(rows, Outcome::Ok, spent, 0));
            let digest = BundleDigest::of(b"m");
            let before = Before { digest, anonymous: None, loads: 1, former_p95_ms: former };
            let judged = code(judge(&stats.totals(), &LIMITS, slower, Some(before), None));
            assert_eq!(
                judged,
                back.then_some(RefusalCode::Latency),
                "{n} x {rows} rows, {ms} ms, {former:?}"
            );
        }
    }

    #[test]
    fn memory_beyond_the_limit_goes_back_and_an_unknown_one_does_not() {
        let digest = BundleDigest::of(b"m");
        let before = |anonymous| Some(Before { digest, anonymous, loads: 1, former_p95_ms: None });
        for (then, now, back) in [
            (Some(100 << 20), Some(150 << 20), false),
            (Some(100 << 20), Some((150 << 20) + 1), true),
            (Some(100 << 20), Some(1 << 20), false),
            (None, Some(1 << 40), false),
            (Some(0), None, false),
        ] {
            let judged = code(judge(&Totals::default(), &LIMITS, None, before(then), now));
            assert_eq!(judged, back.then_some(RefusalCode::Memory), "{then:?} {now:?}");
        }
        assert!(anonymous_bytes().is_some_and(|bytes| bytes > 1 << 16));
    }

    #[test]
    fn a_shadow_that_fails_or_hangs_is_ended() {
        assert_eq!(code(judge_shadow((10, 0), Some(Duration::from_secs(599)))), None);
        assert_eq!(code(judge_shadow((10, 5), None)), Some(RefusalCode::Unhealthy));
        assert_eq!(code(judge_shadow((0, 0), Some(Duration::from_secs(601)))), Some(RefusalCode::Unhealthy));
    }
}
