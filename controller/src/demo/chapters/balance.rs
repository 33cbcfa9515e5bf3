//! The load ends; what the agents counted is compared with what was asked of them.

use crate::demo::{
    DemoError, console,
    report::{BundleReport, Quantiles, quantile},
    stage::{Stage, text},
    tale::{FLEET_LIMIT, Tale},
};
use std::collections::BTreeMap;

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    let Tale { stage, report, released, tried, activation, .. } = tale;
    let mut failures = Vec::new();
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    for agent in &mut stage.agents {
        let Some(load) = agent.load.take() else { continue };
        let seen = load.stop().await;
        report.requests += seen.requests;
        report.failed_requests += seen.failed;
        failures.extend(seen.failures);
        for (bundle, own) in seen.by_bundle {
            *answered.entry(bundle).or_default() += own.requests;
        }
    }
    failures.truncate(5);
    report.check(
        "no request failed, updates and attacks included",
        report.failed_requests == 0 && report.requests > 0,
        failures.join("; "),
    );
    let known = |bundle: &String| released.contains(bundle) || tried.contains(bundle);
    let strangers = answered.keys().any(|bundle| !known(bundle));
    let on_trial =
        if tried.is_empty() { String::new() } else { format!(" (and {} on trial)", tried.join(", ")) };
    let name = format!("only {}{on_trial} ever answered", released.join(" and "));
    report.check(&name, !strangers, format!("{answered:?}"));
    let devices = stage.get("/api/v1/devices?limit=1000").await?;
    let last = released.last().map_or("", String::as_str);
    let on_last =
        stage.agents.iter().filter(|agent| console::slot(&devices, &agent.id)["active"] == *last).count();
    let name = format!("every device still serves {last}");
    report.check(&name, on_last == stage.agents.len(), format!("{on_last}"));

    // The agents' own counters arrive with their windows; ask them to send what they have.
    let wanted: u64 = answered.values().sum();
    for agent in &stage.agents {
        stage.command(&["device", "report", &agent.id]).await?;
    }
    let totals = stage
        .wait_for(
            "the agents' own counters",
            FLEET_LIMIT,
            async |_| (),
            async |stage| {
                let totals = own_counters(stage).await?;
                let counted: u64 = totals.values().map(|b| b.requests).sum();
                Ok(if counted >= wanted { Ok(totals) } else { Err(format!("{counted} of {wanted}")) })
            },
        )
        .await?;
    let counted: u64 = totals.values().map(|b| b.requests).sum();
    report.check(
        "the agents counted every request exactly once",
        counted == wanted,
        format!("{counted} counted, {wanted} answered"),
    );
    let accuracy = |bundle: &str| totals.get(bundle).and_then(|b| b.accuracy).unwrap_or(0.0);
    // Other releases are the same model again, or were taken back.
    let (earlier, later) = ("digits@1", "digits@2");
    if released.iter().any(|bundle| bundle == later) {
        let (one, two) = (accuracy(earlier), accuracy(later));
        let name = format!("{later} is more accurate than {earlier}");
        report.check(&name, two > one && one > 0.5, format!("{one:.3} -> {two:.3}"));
    }
    report.accuracy = totals.iter().filter_map(|(name, b)| Some((name.clone(), b.accuracy?))).collect();
    report.bundles = totals;
    let rollouts = stage.get("/api/v1/rollouts").await?;
    for rollout in rollouts["items"].as_array().into_iter().flatten() {
        let attempts = stage.get(&format!("/api/v1/rollouts/{}/attempts", text(&rollout["id"]))).await?;
        let all = attempts["items"].as_array().into_iter().flatten();
        report.bytes_pulled += all.filter_map(|a| a["fetched_bytes"].as_u64()).sum::<u64>();
    }
    report.check("bundles travelled over MQTT", report.bytes_pulled > 0, report.bytes_pulled.to_string());
    activation.sort_by(f64::total_cmp);
    report.activation_seconds = Quantiles { p50: quantile(activation, 0.5), p95: quantile(activation, 0.95) };
    Ok(())
}

/// Requests, labels and accuracy by bundle, summed over the devices' own records.
async fn own_counters(stage: &Stage) -> Result<BTreeMap<String, BundleReport>, DemoError> {
    let mut sum = BTreeMap::new();
    for name in ["digits@1", "digits@2", "digits@3", "digits@4", "digits@5", "digits@6", "digits@7"] {
        let Some((model, counter)) = name.split_once('@') else { continue };
        let path = format!("/api/v1/models/{model}/bundles/{counter}/telemetry");
        let found = stage.get(&path).await?;
        let requests = found["counts"]["requests"].as_u64().unwrap_or(0);
        if requests == 0 {
            continue;
        }
        let bundle = BundleReport {
            requests,
            labels: found["labels"]["matched"].as_u64().unwrap_or(0),
            accuracy: found["accuracy"].as_f64(),
            p50_ms: found["latency_ms"]["p50"].as_f64(),
            p95_ms: found["latency_ms"]["p95"].as_f64(),
        };
        sum.insert(name.to_owned(), bundle);
    }
    Ok(sum)
}
