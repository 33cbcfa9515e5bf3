//! A07 and A13: classes that dominate, vanish, or are taken for each other.

use super::super::{
    action::{Action, LabelFilter},
    evidence::Evidence,
    finding::{Confidence, Finding, Plot, RuleId, Severity, percent},
    rule::{AdviceSettings, Judged},
};
use edgefleet_shared::time::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// A class dominates from this share on, if the baseline has it below half of that.
const DOMINATES: f64 = 0.8;
/// A class that should have been answered so often and never was has vanished: chance e^-20.
const EXPECTED: f64 = 20.0;
/// A release younger than this is the first suspect.
const RECENT: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Mistakes of one pair, of all mistakes.
const CONCENTRATED: f64 = 0.4;
const MISTAKES: f64 = 30.0;

pub(in super::super) fn collapse(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    let Some(baseline) = evidence.baseline.as_ref().filter(|baseline| baseline.classes.len() >= 2) else {
        return judged;
    };
    let known = baseline.classes.values().map(|n| *n as f64).sum::<f64>().max(1.0);
    for slice in &evidence.slices {
        let rows: u64 = slice.classes.values().fold(0, |sum, n| sum.saturating_add(*n));
        if rows < settings.min_rows {
            continue;
        }
        let share = |class: &str| slice.classes.get(class).copied().unwrap_or(0) as f64 / rows as f64;
        let usual = |class: &str| baseline.classes.get(class).copied().unwrap_or(0) as f64 / known;
        let top = slice.classes.iter().max_by_key(|(_, n)| **n).map(|(class, _)| class.as_str());
        let top = top.filter(|class| share(class) >= DOMINATES && usual(class) < DOMINATES / 2.0);
        let gone = baseline.classes.keys().find(|c| share(c) == 0.0 && usual(c) * rows as f64 >= EXPECTED);
        let what = match (top, gone) {
            (Some(class), _) => Some((
                class.to_owned(),
                format!(
                    "{} of {rows} answers are `{class}`; on held-out data {} were.",
                    percent(share(class)),
                    percent(usual(class))
                ),
            )),
            (None, Some(class)) => Some((
                class.clone(),
                format!(
                    "None of {rows} answers is `{class}`; on held-out data {} were.",
                    percent(usual(class))
                ),
            )),
            (None, None) => None,
        };
        let found = what.map(|(class, what)| {
            let release = evidence.release.as_ref();
            let recent = release.filter(|release| {
                release.activated.values().max().is_some_and(|at| now.since(*at) < RECENT)
            });
            let bundle = slice.scope.bundle().clone();
            let (action, to_do) = match recent {
                Some(release) => (
                    Action::RollBack {
                        from: bundle,
                        to: release.previous.clone(),
                        changed: release.changed.clone(),
                    },
                    "The bundle is new: go back, then compare labels and steps of both.",
                ),
                None => (
                    Action::CompareSteps {
                        bundle,
                        with: release.and_then(|release| release.previous.clone()),
                    },
                    "Compare a capture's way through the steps with a golden sample's; look whether the camera shows what it should.",
                ),
            };
            let names: Vec<String> =
                baseline.classes.keys().chain(slice.classes.keys()).cloned().collect::<std::collections::BTreeSet<_>>().into_iter().take(64).collect();
            let plot = Plot::Histogram {
                title: "Answers by class, now and on held-out data".into(),
                edges: Vec::new(),
                now: names.iter().map(|name| share(name)).collect(),
                reference: names.iter().map(|name| usual(name)).collect(),
                names,
            };
            Finding::new(RuleId::A07, slice.scope.clone(), now, action)
                .rated(Severity::Error, if rows >= 1_000 { Confidence::High } else { Confidence::Medium })
                .number("share", share(&class))
                .number("usual", usual(&class))
                .number("rows", rows as f64)
                .plot(plot)
                .says(what, "A collapse of the answers, labels in another order, or steps before the model that destroy its inputs.", to_do.into())
        });
        judged.look(&slice.scope, found);
    }
    judged
}

pub(in super::super) fn pair(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    for slice in &evidence.slices {
        let mut pairs: BTreeMap<(&str, &str), f64> = BTreeMap::new();
        for (truth, predicted, weight) in
            slice.confusion.iter().filter(|(t, p, w)| t != p && *w > 0.0 && w.is_finite())
        {
            let pair = if truth < predicted { (truth, predicted) } else { (predicted, truth) };
            *pairs.entry((pair.0, pair.1)).or_default() += weight;
        }
        let mistakes: f64 = pairs.values().sum();
        if mistakes < MISTAKES {
            continue;
        }
        let worst = pairs.iter().max_by(|a, b| a.1.total_cmp(b.1)).map(|(pair, n)| (*pair, n / mistakes));
        // Two classes have but one pair.
        let several = pairs.len() >= 2 || evidence.baseline.as_ref().is_some_and(|b| b.classes.len() > 2);
        let found = worst.filter(|(_, share)| several && *share >= CONCENTRATED).map(|((a, b), share)| {
            let filter = LabelFilter {
                classes: vec![a.to_owned(), b.to_owned()],
                strategies: vec!["low-margin".into()],
                count: 200,
                ..LabelFilter::default()
            };
            let mut sorted: Vec<_> = pairs.iter().collect();
            sorted.sort_by(|x, y| y.1.total_cmp(x.1));
            let rows = sorted.iter().take(10).map(|((a, b), n)| vec![format!("{a} and {b}"), format!("{n:.0}"), percent(**n / mistakes)]);
            let columns = ["taken for each other", "mistakes", "share"].map(str::to_owned).into();
            Finding::new(RuleId::A13, slice.scope.clone(), now, Action::OpenLabelling { filter })
                .rated(Severity::Info, Confidence::High)
                .number("share", share)
                .number("mistakes", mistakes)
                .plot(Plot::Table { title: "Pairs of classes".into(), columns, rows: rows.collect() })
                .says(
                    format!("{} of {mistakes:.0} mistakes take `{a}` and `{b}` for each other.", percent(share)),
                    "The two overlap in what the model sees.",
                    format!("Label more of both, the unsure ones first; if people cannot tell them apart either, merge `{a}` and `{b}` or give the model a larger crop."),
                )
        });
        judged.look(&slice.scope, found);
    }
    judged
}
