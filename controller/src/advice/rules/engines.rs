//! A18 and A19: what the engine's own measurements say.

use super::super::{
    action::Action,
    evidence::Evidence,
    finding::{Confidence, Finding, Plot, RuleId, Severity, percent},
    rule::{AdviceSettings, Judged},
};
use edgefleet_shared::{probe::REST, time::Timestamp};

/// Nodes that are few, and the share of compute that is most.
const FEW: usize = 3;
const MOST: f64 = 0.6;
/// Graphs with fewer nodes have no others to compare with.
const NODES: usize = 8;
/// int8 must take at most this part of the time of f32.
const FASTER: f64 = 0.95;

pub(in super::super) fn heavy_nodes(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let (Some(scope), Some(profile)) = (evidence.bundle_scope(), &evidence.nodes) else {
        return Judged::default();
    };
    let mut nodes: Vec<_> = profile
        .nodes
        .iter()
        .filter(|(node, share)| share.is_finite() && **share >= 0.0 && *node != REST)
        .map(|(node, share)| (node.clone(), *share))
        .collect();
    if nodes.len() < NODES {
        return Judged::default();
    }
    nodes.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let shares = profile.nodes.values().filter(|share| share.is_finite() && **share >= 0.0);
    let all = shares.sum::<f64>().max(1e-9);
    nodes.truncate(FEW);
    let share = nodes.iter().map(|(_, share)| share).sum::<f64>() / all;
    let mut judged = Judged::default();
    // Of a graph of few alike nodes three are many: at least twice their fair part.
    let fair = FEW as f64 / profile.nodes.len() as f64;
    let found = (share >= MOST.max(2.0 * fair)).then(|| {
        let names: Vec<_> = nodes.iter().map(|(node, part)| format!("{node} ({})", percent(part / all))).collect();
        let rows = profile.setups_us.iter().map(|(setup, us)| vec![setup.clone(), format!("{us:.0}")]).collect();
        let columns = ["setup", "median, us"].map(str::to_owned).into();
        let setups = profile.setups_us.clone();
        Finding::new(RuleId::A18, scope.clone(), now, Action::LighterModel { nodes, setups })
            .rated(Severity::Info, Confidence::Medium)
            .number("share", share)
            .number("infer_ms", profile.infer_ms)
            .plot(Plot::Table { title: "Measured setups".into(), columns, rows })
            .says(
                format!("{FEW} of {} operators take {} of {:.1} ms: {}.", profile.nodes.len(), percent(share), profile.infer_ms, names.join(", ")),
                "Compute concentrates where the input is still large, or where the engine has no fast kernel.",
                "Try a smaller input first (cost grows with its area), then a variant in f16 or another engine; the table shows what was measured.".into(),
            )
    });
    judged.look(&scope, found);
    judged
}

pub(in super::super) fn slow_int8(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let Some(scope) = evidence.bundle_scope() else { return Judged::default() };
    let mut judged = Judged::default();
    for engines in &evidence.engines {
        for (setup, int8) in &engines.medians_us {
            let Some((engine, _)) = setup.split_once('/').filter(|(_, variant)| variant.starts_with("int8"))
            else {
                continue;
            };
            let Some(f32) = engines.medians_us.get(&format!("{engine}/f32")).copied() else { continue };
            if !(int8.is_finite() && f32.is_finite() && *int8 > 0.0 && f32 > 0.0) {
                continue;
            }
            judged.looked_at.insert(scope.clone());
            if *int8 < FASTER * f32 {
                continue;
            }
            let best =
                engines.medians_us.iter().filter(|(_, us)| us.is_finite()).min_by(|a, b| a.1.total_cmp(b.1));
            let (variant, us) =
                best.map_or((format!("{engine}/f32"), f32), |(setup, us)| (setup.clone(), *us));
            let action = Action::PreferVariant {
                hardware: engines.hardware.clone(),
                variant: variant.clone(),
                medians_us: engines.medians_us.clone(),
            };
            judged.found.push(
                Finding::new(RuleId::A19, scope.clone(), now, action)
                    .detail(format!("{} {engine}", engines.hardware))
                    .rated(Severity::Info, Confidence::High)
                    .number("int8_us", *int8)
                    .number("f32_us", f32)
                    .number("devices", f64::from(engines.devices))
                    .says(
                        format!("On {} devices of `{}`, {engine} takes {int8:.0} us with int8 and {f32:.0} us with f32.", engines.devices, engines.hardware),
                        "The engine has no int8 kernels for these operators on this processor and converts back and forth.",
                        format!("Ship f32 or f16 for this hardware, or another engine; the fastest measured is {variant} with {us:.0} us."),
                    ),
            );
        }
    }
    judged
}
