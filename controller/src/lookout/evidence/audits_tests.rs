//! Captures made up on the spot.

use super::*;
use edgefleet_shared::capture::{Quota, Rule, Strategy};

const LEAST: u64 = 100;

fn now() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

/// Hours before now, kept with probability `p`; says `said`, is `truth`.
fn seen(hours: u64, p: f64, said: &str, truth: Option<&str>) -> Seen {
    Seen {
        bundle: "digits@1".parse().unwrap(),
        device: "dev-1".parse().unwrap(),
        at: now() - Duration::from_secs(hours * 3_600),
        row: Row {
            audit_share: (p < 1.0).then_some(p),
            is_hard: p >= 1.0,
            correct: truth.map(|truth| truth == said),
        },
        reasons: vec![if p < 1.0 { Reason::Random } else { Reason::LowMargin }],
        is_labelled: truth.is_some(),
        inclusion: Some(p),
        confidence: Some(0.9),
        predicted: Some(said.into()),
        truth: truth.map(str::to_owned),
    }
}

#[test]
fn now_is_the_shortest_time_with_enough_labels() {
    // Right until five days ago, then wrong in one of four; 60 labels a day.
    let all: Vec<_> = (0..20 * 60)
        .map(|n| {
            let (day, turn) = (n / 60, n % 60);
            let truth = if day < 5 && turn % 4 == 0 { "7" } else { "1" };
            seen(day * 24 + turn * 24 / 60, 0.01, "1", Some(truth))
        })
        .collect();
    let found = audit(all.iter(), LEAST, now());
    let (after, before) = (found.now.unwrap(), found.before.unwrap());
    assert!((after.accuracy - 0.75).abs() < 0.02 && (180..=183).contains(&after.labels), "{after:?}");
    assert!(before.accuracy > 0.96 && before.labels > 900, "{before:?}");
    // What a strategy chose is no audit, however sure it makes us of the hard ones.
    let hard: Vec<_> = (0..200).map(|_| seen(1, 1.0, "1", Some("7"))).collect();
    let found = audit(all.iter().chain(&hard), LEAST, now());
    assert_eq!(found.now, Some(after));
    assert_eq!(audit(hard.iter(), LEAST, now()).now, None);
}

#[test]
fn labels_weigh_what_they_stand_for_and_mistakes_are_those_somebody_saw() {
    let mut all: Vec<_> = (0..100).map(|_| seen(2, 0.01, "1", Some("1"))).collect();
    all.extend((0..40).map(|_| seen(1, 1.0, "1", Some("7"))));
    let found = audit(all.iter(), LEAST, now());
    assert_eq!(found.labels.len(), 140);
    assert_eq!(found.labels[0].weight, 100.0);
    assert_eq!((found.labels[139].weight, found.labels[139].correct), (1.0, false), "the newest is last");
    let total: f64 = found.confusion.iter().map(|(_, _, weight)| weight).sum();
    assert!((100.0..=101.0).contains(&total), "{total}");
    let mut slice = Slice::new(crate::advice::Scope::Bundle { bundle: "digits@1".parse().unwrap() });
    slice.confusion = vec![("1".into(), "7".into(), 90.0)];
    slice.audited = Some(Audited { labels: 5_000, accuracy: 0.5, ..Audited::default() });
    fill(&mut slice, found, LEAST);
    assert_eq!((slice.audited.unwrap().labels, slice.confusion.len()), (100, 1));
    assert_eq!(slice.confusion[0].2, 90.0, "40 mistakes that stand for 40 of 10,040 rows are no 30 mistakes");
    // A few labels do not replace many.
    slice.audited = Some(Audited { labels: 5_000, accuracy: 0.5, ..Audited::default() });
    fill(&mut slice, audit(all.iter().take(9), LEAST, now()), LEAST);
    assert_eq!(slice.audited.unwrap().labels, 5_000);
}

#[test]
fn a_quota_that_is_full_in_the_morning_turns_most_away() {
    let rule =
        |strategy, per_day| Rule { strategy, quota: Quota { per_day: Some(per_day), ..Quota::default() } };
    let rules = vec![rule(Strategy::LowMargin { below: 0.1 }, 20), rule(Strategy::Ood, 50)];
    let policy = CapturePolicy { rules, ..CapturePolicy::default() };
    // Six hours of each of four days, twenty captures, five of them labelled.
    let all: Vec<_> = (0..4_u64)
        .flat_map(|day| (0..20).map(move |n| (day, n)))
        .map(|(day, n)| {
            let one = seen(0, 1.0, "1", (n < 5).then_some("1"));
            Seen { at: now() - DAY * (4 - day as u32) + Duration::from_secs(n * 6 * 3_600 / 19), ..one }
        })
        .collect();
    let counts = quotas(all.iter(), &policy, now() - DAY * 4, 70_000, 1, now());
    let margin = &counts[0];
    assert_eq!((margin.strategy.as_str(), margin.taken, margin.days), ("low-margin", 80, 4));
    assert!((235..=245).contains(&margin.dropped), "three times as much again: {margin:?}");
    assert_eq!((margin.seen, margin.labelled_share), (40_000, 0.25));
    assert_eq!((counts[1].strategy.as_str(), counts[1].taken, counts[1].dropped), ("ood", 0, 0));
    let ten = quotas(all.iter(), &policy, now() - DAY * 4, 70_000, 10, now());
    assert_eq!((ten[0].taken, ten[0].devices), (8, 10), "of one device in the mean");
    let mut kept = policy;
    kept.upload.enabled = false;
    assert_eq!(quotas(all.iter(), &kept, now() - DAY * 4, 70_000, 1, now()), []);
}
