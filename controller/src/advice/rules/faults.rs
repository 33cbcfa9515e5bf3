//! A09 and A10: inputs that cannot be taken, sensors that are stuck or gone.

use super::super::{
    action::Action,
    evidence::Evidence,
    finding::{Confidence, Finding, RuleId, Severity, percent},
    rule::{AdviceSettings, Judged},
};
use crate::drift::noise::shares;
use edgefleet_shared::{
    telemetry::{Channel, ProfileContent},
    time::Timestamp,
};

/// Faulty inputs, of all.
const FAULTY: f64 = 0.02;
const CHANCE: f64 = 1e-3;
/// Share of rows without a value that makes a sensor missing, if the baseline has less than a quarter of it.
const MISSING: f64 = 0.2;
/// A run of equal values this many times the usual longest one, and at least so many rows.
const LONGER: u64 = 10;
const RUN: u64 = 100;
const ROWS: u64 = 50;

fn faulty(profile: &ProfileContent, kind: &str) -> (f64, f64) {
    let n = profile.faults.get(kind).copied().unwrap_or(0) as f64;
    (n, profile.rows as f64 + profile.faults.values().map(|n| *n as f64).sum::<f64>())
}

pub(in super::super) fn rejected(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    for slice in &evidence.slices {
        let Some(profile) = slice.now.as_ref() else { continue };
        let tried = faulty(profile, "").1;
        if tried < settings.min_rows as f64 {
            continue;
        }
        judged.looked_at.insert(slice.scope.clone());
        for kind in profile.faults.keys() {
            let (x, n) = faulty(profile, kind);
            let (y, m) = slice.usual.as_ref().map_or((0.0, n), |usual| faulty(usual, kind));
            let usual = if m > 0.0 { y / m } else { 0.0 };
            if x / n < FAULTY || x / n < 2.0 * usual || shares((x, n), (y, m)) > CHANCE {
                continue;
            }
            let (op, field) = kind.split_once(':').unwrap_or((kind, ""));
            let suggestion = match op {
                "out-of-range" => {
                    "Values left the range the contract allows: look for a change of unit upstream (a factor of 10, 1,000, 1.8), then correct the scale or the contract."
                }
                "decode_image" => {
                    "Pictures cannot be decoded: look for another format, a cut transfer or a full disk at the source."
                }
                _ => {
                    "The source sends something else than the contract says: compare one such input with the manifest's interface."
                }
            };
            let of = if field.is_empty() { String::new() } else { format!(" of `{field}`") };
            let action = Action::ShowFault { fault: kind.clone(), suggestion: suggestion.to_owned() };
            judged.found.push(
                Finding::new(RuleId::A09, slice.scope.clone(), now, action)
                    .detail(kind.clone())
                    .rated(Severity::Error, Confidence::High)
                    .number("share", x / n)
                    .number("usual", usual)
                    .number("faults", x)
                    .says(
                        format!(
                            "{x:.0} of {n:.0} inputs ({}) failed in `{op}`{of}; usually {} do.",
                            percent(x / n),
                            percent(usual)
                        ),
                        "Something upstream changed: a unit, a schema, a format.",
                        suggestion.to_owned(),
                    ),
            );
        }
    }
    judged
}

/// Why the channel's sensor does not work, if so.
fn broken(channel: &Channel, usual: Option<&Channel>, evidence: &Evidence) -> Option<(String, f64)> {
    let baseline = evidence.baseline.as_ref()?;
    let known = baseline.channel(&channel.id)?;
    let all = channel.n.saturating_add(channel.missing);
    if all < ROWS {
        return None;
    }
    let missing = channel.missing as f64 / all as f64;
    let expected = known.missing as f64 / known.n.saturating_add(known.missing).max(1) as f64;
    if missing >= MISSING && expected < MISSING / 4.0 {
        let text = format!(
            "{} of its values are missing ({} on held-out data)",
            percent(missing),
            percent(expected)
        );
        return Some((text, missing));
    }
    let varies = known.moments.m2 > 0.0 && known.moments.max > known.moments.min;
    let stands = channel.moments.n >= ROWS && channel.moments.min == channel.moments.max;
    let before = usual.map_or(0, |usual| usual.longest_run);
    let long = channel.longest_run >= RUN.max(before.saturating_mul(LONGER)) && usual.is_some();
    (varies && (stands || long) && known.categories.is_empty()).then(|| {
        let run = channel.longest_run.max(if stands { channel.n } else { 0 });
        (format!("{run} values in a row were equal (at most {before} last week)"), run as f64)
    })
}

pub(in super::super) fn stuck(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    if evidence.baseline.is_none() {
        return judged;
    }
    for slice in &evidence.slices {
        let Some(profile) = slice.now.as_ref().filter(|profile| !profile.channels.is_empty()) else {
            continue;
        };
        let inputs = profile.channels.iter().filter(|channel| {
            let known = evidence.baseline.as_ref().and_then(|baseline| baseline.channel(&channel.id));
            known.is_some_and(|known| super::inputs::INPUTS.contains(&known.kind))
        });
        let bad: Vec<_> = inputs
            .filter_map(|channel| {
                let usual = slice.usual.as_ref().and_then(|usual| usual.channel(channel.id.as_str()));
                broken(channel, usual, evidence).map(|why| (channel.id.clone(), why))
            })
            .collect();
        let found = bad.first().map(|(first, (why, number))| {
            let ids: Vec<_> = bad.iter().map(|(id, _)| id.clone()).collect();
            let more =
                if ids.len() > 1 { format!(" (and {} more channels)", ids.len() - 1) } else { String::new() };
            Finding::new(
                RuleId::A10,
                slice.scope.clone(),
                now,
                Action::EnableImputation { channels: ids.clone() },
            )
            .rated(Severity::Error, Confidence::High)
            .number("channels", ids.len() as f64)
            .number("extent", *number)
            .says(
                format!("`{first}`{more}: {why}."),
                "A sensor that does not answer, or answers the same whatever happens.",
                "Replace or restart the sensor; until then let the pipeline impute the value, or not answer."
                    .into(),
            )
        });
        judged.look(&slice.scope, found);
    }
    judged
}
