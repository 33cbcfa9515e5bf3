//! What becomes of findings over time.

use super::{super::*, stream::hour};
use edgefleet_shared::time::Timestamp;

fn scope(device: Option<&str>) -> Scope {
    let (bundle, cohort) = ("digits@1".parse().unwrap(), "all".to_owned());
    match device {
        Some(device) => Scope::Device { bundle, cohort, device: device.parse().unwrap() },
        None => Scope::Cohort { bundle, cohort },
    }
}

fn finding(rule: RuleId, scope: Scope, size: f64) -> Finding {
    let action = Action::RaiseAuditRate { from: 0.01, to: 0.04 };
    Finding::new(rule, scope, hour(0), action).number("size", size)
}

fn judged(rule: RuleId, found: Vec<Finding>) -> (RuleId, Judged) {
    (rule, Judged { found, looked_at: [scope(None), scope(Some("cam-1"))].into(), all: false })
}

fn run(steps: &[(u64, Vec<(RuleId, Judged)>)]) -> Vec<String> {
    let mut tracked = Vec::new();
    let mut told = Vec::new();
    for (at, judged) in steps {
        let now: Timestamp = hour(*at);
        let (next, changes) = reconcile(&tracked, judged, now);
        tracked = next;
        for change in changes {
            let kind = match &change {
                FindingChange::Opened { .. } => "opened",
                FindingChange::Updated { .. } => "updated",
                FindingChange::Explained { .. } => "explained",
                FindingChange::Resolved { stale: false, .. } => "resolved",
                FindingChange::Resolved { stale: true, .. } => "stale",
            };
            told.push(format!("{at} {} {kind}", change.finding().rule));
        }
    }
    told
}

fn one(size: f64) -> Vec<(RuleId, Judged)> {
    vec![judged(RuleId::A03, vec![finding(RuleId::A03, scope(None), size)])]
}

#[test]
fn it_is_told_once_then_when_it_changes_then_when_it_is_over() {
    let none = || vec![judged(RuleId::A03, vec![])];
    let steps =
        [(0, one(1.0)), (1, one(1.1)), (2, one(1.8)), (3, none()), (4, one(1.8)), (5, none()), (12, none())];
    assert_eq!(run(&steps), ["0 A03 opened", "2 A03 updated", "12 A03 resolved"]);
}

#[test]
fn no_evidence_resolves_nothing_until_it_is_stale() {
    let silent = || vec![(RuleId::A03, Judged::default())];
    assert_eq!(run(&[(0, one(1.0)), (100, silent())]), ["0 A03 opened"]);
    assert_eq!(run(&[(0, one(1.0)), (14 * 24, silent())]), ["0 A03 opened", "336 A03 stale"]);
}

#[test]
fn what_was_resolved_rests_before_it_is_told_again() {
    let none = || vec![judged(RuleId::A03, vec![])];
    let steps = [(0, one(1.0)), (1, none()), (8, none()), (12, one(1.0)), (40, one(1.0))];
    assert_eq!(run(&steps), ["0 A03 opened", "8 A03 resolved", "40 A03 opened"]);
}

#[test]
fn a_stronger_rule_on_a_wider_scope_explains_it() {
    let both = |with: bool| {
        let regression = with.then(|| finding(RuleId::A08, scope(None), 1.0));
        vec![
            judged(RuleId::A07, vec![finding(RuleId::A07, scope(Some("cam-1")), 1.0)]),
            judged(RuleId::A08, regression.into_iter().collect()),
        ]
    };
    assert_eq!(run(&[(0, both(true))]), ["0 A08 opened"], "what is explained at once is never told");
    assert_eq!(
        run(&[(0, both(false)), (1, both(true))]),
        ["0 A07 opened", "1 A07 explained", "1 A08 opened"]
    );
    let narrow = vec![
        judged(RuleId::A07, vec![finding(RuleId::A07, scope(None), 1.0)]),
        judged(RuleId::A08, vec![finding(RuleId::A08, scope(Some("cam-1")), 1.0)]),
    ];
    assert_eq!(run(&[(0, narrow)]).len(), 2, "a narrower scope explains nothing");
}

#[test]
fn precision_is_summed_by_rule() {
    let found = precision(&[(RuleId::A01, true), (RuleId::A01, true), (RuleId::A01, false)]);
    assert_eq!((found.len(), found[0].marks.useful), (24, 2));
    assert!((found[0].precision.unwrap() - 2.0 / 3.0).abs() < 1e-12 && found[0].low < 0.5);
    assert_eq!((found[1].precision, found[1].low, found[1].high), (None, 0.0, 1.0));
}
