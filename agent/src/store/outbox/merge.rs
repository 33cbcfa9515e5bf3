//! What two records of one subject say together, so that a full outbox keeps the sums and loses only when. Pure.

use edgefleet_shared::{
    reported::ClockQuality,
    telemetry::{
        Agreement, Counts, Latency, Profile, Record, RecordBody, Window,
        window::{MAX_KEYS, MAX_POWERS},
    },
};
use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// Windows and profiles merge within these spans, the shorter first: an hour, a day; in seconds.
pub(super) const SPANS: [u64; 2] = [3_600, 86_400];

/// What must be equal for two records to add up, and when the record began (seconds); `None` of what never merges.
pub(super) fn key(record: &Record) -> Option<(u64, u64)> {
    let mut hasher = DefaultHasher::new();
    record.boot.hash(&mut hasher);
    let start = match &record.body {
        RecordBody::Window(w) => {
            (0, &w.slot, w.digest, w.role, &w.attempt, w.agreement.is_some()).hash(&mut hasher);
            w.exceed.iter().for_each(|exceed| exceed.id.hash(&mut hasher));
            w.wall_start
        }
        RecordBody::Profile(p) => {
            (1, &p.slot, p.digest, p.role, &p.attempt).hash(&mut hasher);
            p.wall_start
        }
        RecordBody::Labels(_)
        | RecordBody::Terminal(_)
        | RecordBody::Dropped { .. }
        | RecordBody::Unknown => {
            return None;
        }
    };
    Some((hasher.finish(), start.as_millis() / 1_000))
}

/// `None` if they are of two subjects.
pub(super) fn merge(a: &RecordBody, b: &RecordBody) -> Option<RecordBody> {
    match (a, b) {
        (RecordBody::Window(a), RecordBody::Window(b)) => Some(RecordBody::Window(Box::new(windows(a, b)?))),
        (RecordBody::Profile(a), RecordBody::Profile(b)) => {
            Some(RecordBody::Profile(Box::new(profiles(a, b)?)))
        }
        _ => None,
    }
}

fn windows(a: &Window, b: &Window) -> Option<Window> {
    let ids = |window: &Window| window.exceed.iter().map(|exceed| exceed.id.clone()).collect::<Vec<_>>();
    let same = (&a.slot, a.digest, a.role, &a.attempt) == (&b.slot, b.digest, b.role, &b.attempt);
    if !same || ids(a) != ids(b) || a.agreement.is_some() != b.agreement.is_some() {
        return None;
    }
    let mut sum = a.clone();
    sum.mono_start_ms = a.mono_start_ms.min(b.mono_start_ms);
    sum.mono_end_ms = a.mono_end_ms.max(b.mono_end_ms);
    sum.wall_start = a.wall_start.min(b.wall_start);
    sum.wall_end = a.wall_end.max(b.wall_end);
    sum.clock = clock(a.clock, b.clock);
    let Counts { requests, rows, ok, errors, rejected } = &b.counts;
    sum.counts.requests = sum.counts.requests.saturating_add(*requests);
    sum.counts.rows = sum.counts.rows.saturating_add(*rows);
    sum.counts.ok = sum.counts.ok.saturating_add(*ok);
    sum.counts.rejected = sum.counts.rejected.saturating_add(*rejected);
    add(&mut sum.counts.errors, errors, |mine, theirs| *mine = mine.saturating_add(*theirs));
    let Latency { queue, infer, pre, post, total, passes } = &b.latency;
    for (mine, theirs) in [
        (&mut sum.latency.queue, queue),
        (&mut sum.latency.infer, infer),
        (&mut sum.latency.pre, pre),
        (&mut sum.latency.post, post),
        (&mut sum.latency.total, total),
    ] {
        mine.merge(theirs);
    }
    let powers = sum.latency.passes.len().max(passes.len()).min(MAX_POWERS);
    sum.latency.passes.resize(powers, 0);
    for (mine, theirs) in sum.latency.passes.iter_mut().zip(passes) {
        *mine = mine.saturating_add(*theirs);
    }
    add(&mut sum.classes, &b.classes, |mine, theirs| *mine = mine.saturating_add(*theirs));
    sum.device = b.device.or(a.device);
    sum.first_bad_ms = [a.first_bad_ms, b.first_bad_ms].into_iter().flatten().min();
    for (mine, theirs) in sum.exceed.iter_mut().zip(&b.exceed) {
        mine.n = mine.n.saturating_add(theirs.n);
        mine.x = mine.x.saturating_add(theirs.x);
    }
    if let (Some(mine), Some(Agreement { n, disagree, errors, classes })) = (&mut sum.agreement, &b.agreement)
    {
        mine.n = mine.n.saturating_add(*n);
        mine.disagree = mine.disagree.saturating_add(*disagree);
        mine.errors = mine.errors.saturating_add(*errors);
        add(&mut mine.classes, classes, |mine, theirs| {
            mine.n = mine.n.saturating_add(theirs.n);
            mine.disagree = mine.disagree.saturating_add(theirs.disagree);
        });
    }
    Some(sum)
}

fn profiles(a: &Profile, b: &Profile) -> Option<Profile> {
    if (&a.slot, a.digest, a.role, &a.attempt) != (&b.slot, b.digest, b.role, &b.attempt) {
        return None;
    }
    let mut sum = a.clone();
    sum.mono_start_ms = a.mono_start_ms.min(b.mono_start_ms);
    sum.mono_end_ms = a.mono_end_ms.max(b.mono_end_ms);
    sum.wall_start = a.wall_start.min(b.wall_start);
    sum.wall_end = a.wall_end.max(b.wall_end);
    sum.clock = clock(a.clock, b.clock);
    sum.content.merge(&b.content);
    Some(sum)
}

/// Sums of a time that was partly unknown are of an unknown time.
fn clock(a: ClockQuality, b: ClockQuality) -> ClockQuality {
    if a == b || b == ClockQuality::Plausible { a } else { b }
}

/// Adds entry by entry; what has no place is counted under `other`.
fn add<T: Clone + Default>(
    mine: &mut BTreeMap<String, T>,
    theirs: &BTreeMap<String, T>,
    sum: impl Fn(&mut T, &T),
) {
    for (key, value) in theirs {
        let fits = mine.contains_key(key) || mine.len() + 1 < MAX_KEYS;
        sum(mine.entry(if fits { key.as_str() } else { "other" }.to_owned()).or_default(), value);
    }
}
