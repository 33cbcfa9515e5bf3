//! The candidate that answers beside the bundle.

use super::{NOW, Sources, USUAL, back, range, survey::Running};
use crate::{
    advice::Shadow,
    ingest::{Aggregate, BundleTotals, DEVICE_TELEMETRY, DeviceTelemetry, Hours, Monitoring, Range},
    rollouts::bad_rate,
    store::Repository,
};
use edgefleet_shared::{ids::BundleName, telemetry::Role, time::Timestamp};

/// The newest candidate that still answers and has labels in common with the bundle, over a week: labels come late.
pub(super) async fn shadow(
    monitoring: &Monitoring,
    sources: &Sources,
    running: Option<&Running>,
    bundle: &BundleName,
    now: Timestamp,
) -> Option<Shadow> {
    let since = back(now, USUAL);
    let ours = monitoring.total(range(bundle, None, since, now)).await.ok()?;
    let mut found = None;
    for candidate in ours.versus.keys().rev() {
        let of =
            Range { bundle: candidate, role: Role::Shadow, cohort: None, from: back(now, NOW), until: now };
        if monitoring.total(of).await.ok()?.windows > 0 {
            found = Some(candidate.clone());
            break;
        }
    }
    let candidate = found?;
    let of = Range { bundle: &candidate, role: Role::Shadow, cohort: None, from: since, until: now };
    let theirs = monitoring.total(of).await.ok()?;
    let median = |aggregate: &Aggregate| aggregate.latency.infer.quantile_us(0.5).filter(|us| *us > 0.0);
    let labelled = ours.versus.get(&candidate).cloned().unwrap_or_default();
    Some(Shadow {
        since,
        devices: u32::try_from(labelled.devices.estimate()).unwrap_or(u32::MAX),
        compared: theirs.agreement.n,
        disagree: theirs.agreement.disagree,
        wins: labelled.wins,
        losses: labelled.losses,
        both_right: labelled.both_right,
        both_wrong: labelled.both_wrong,
        cost: median(&theirs).zip(median(&ours)).map(|(theirs, ours)| theirs / ours),
        fleet: u32::try_from(sources.fleet.counts().enrolled).unwrap_or(u32::MAX),
        bad_rate: bad_hours(sources, running, bundle).await.unwrap_or(0.0),
        candidate,
    })
}

/// Share of bad hours of some of the devices that run the bundle. Reads at most 64 documents.
async fn bad_hours(sources: &Sources, running: Option<&Running>, bundle: &BundleName) -> Option<f64> {
    let devices = Repository::<DeviceTelemetry>::new(sources.fleet.store().clone(), DEVICE_TELEMETRY);
    let mut hours = Vec::<Hours>::new();
    for device in &running?.sample {
        let Ok(Some(found)) = devices.find_json(device.as_str()).await else { continue };
        let of_bundle = |totals: &&BundleTotals| totals.bundle == *bundle;
        hours.extend(found.value.bundles.iter().filter(of_bundle).map(|totals| totals.hours));
    }
    bad_rate(&hours)
}
