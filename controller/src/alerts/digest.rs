//! Pure: many alerts of one source become one message. The first of a source goes out at once; what comes within the
//! channel's window after it waits for the window's end and goes together.

use super::{
    delivery::Delivery,
    event::{AlertEvent, AlertKind, Severity},
};
use edgefleet_shared::{ids::BundleName, time::Timestamp};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Alerts in one message.
const MOST: usize = 200;
/// Of them, how many are named; the others are counted.
const NAMED: usize = 40;

/// What is told together. The severity is part of it: nothing grave waits behind a hint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    kind: AlertKind,
    severity: Severity,
    bundle: Option<BundleName>,
}

/// `None`: it always goes alone. Tests do, and so does what is about one rollout: each of them is a story of its own.
pub(super) fn source_of(event: &AlertEvent) -> Option<Source> {
    let alone = event.kind == AlertKind::Test || event.subject.rollout.is_some();
    (!alone).then(|| Source {
        kind: event.kind,
        severity: event.severity,
        bundle: event.subject.bundle.clone(),
    })
}

/// What to do with the deliveries that wait for one channel.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// To be sent now, in this order: one delivery, or several as one message.
    pub(super) now: Vec<Vec<Delivery>>,
    /// When there is something to do again.
    pub(super) next: Option<Timestamp>,
}

/// `pending`: the oldest first. `told`: when something of a source was last sent. A message that was tried before keeps
/// its deliveries, so that the receiver knows it again.
pub(super) fn plan(
    pending: Vec<Delivery>,
    told: &BTreeMap<Source, Timestamp>,
    window: Duration,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut wait_for = |at: Timestamp| plan.next = Some(plan.next.map_or(at, |next: Timestamp| next.min(at)));
    let mut batches: Vec<Vec<Delivery>> = Vec::new();
    let mut tried: BTreeMap<String, usize> = BTreeMap::new();
    let mut fresh: BTreeMap<Source, usize> = BTreeMap::new();
    let mut begun: BTreeSet<Source> = BTreeSet::new();
    for delivery in pending {
        if delivery.next > now {
            wait_for(delivery.next);
            continue;
        }
        if let Some(digest) = &delivery.digest {
            let at = *tried.entry(digest.clone()).or_insert_with(|| {
                batches.push(Vec::new());
                batches.len() - 1
            });
            batches[at].push(delivery);
            continue;
        }
        let source = source_of(&delivery.event).filter(|_| window > Duration::ZERO && delivery.tries == 0);
        let Some(source) = source else {
            batches.push(vec![delivery]);
            continue;
        };
        let open_until = told.get(&source).map(|at| *at + window).filter(|until| *until > now);
        match open_until {
            Some(until) => wait_for(until),
            // A window is over in which others came: they go together.
            None if told.contains_key(&source) => {
                let at = fresh.get(&source).copied().filter(|at| batches[*at].len() < MOST);
                let at = at.unwrap_or_else(|| {
                    batches.push(Vec::new());
                    batches.len() - 1
                });
                fresh.insert(source, at);
                batches[at].push(delivery);
            }
            None if begun.insert(source) => batches.push(vec![delivery]),
            None => wait_for(now + window),
        }
    }
    plan.now = batches;
    plan
}

/// The message of several deliveries of one source; `None` if it is one or none.
pub(super) fn message(members: &[Delivery], now: Timestamp) -> Option<AlertEvent> {
    let (first, last) = match members {
        [first, .., last] => (&first.event, &last.event),
        _ => return None,
    };
    let mut ids: Vec<&str> = members.iter().map(|one| one.event.id.as_str()).collect();
    ids.sort_unstable();
    let count = members.len();
    let of = first.subject.bundle.as_ref().map_or_else(String::new, |bundle| format!(" of {bundle}"));
    let title = format!("{count} alerts {}{of}: {}", first.kind, first.title);
    let mut lines: Vec<String> =
        members.iter().take(NAMED).map(|one| format!("{}  {}", one.event.at, one.event.title)).collect();
    if count > NAMED {
        lines.push(format!("and {} more", count - NAMED));
    }
    lines.push(format!("From {} to {}. See them with `edgefleet alert list`.", first.at, last.at));
    let severity = members.iter().map(|one| one.event.severity).max().unwrap_or(first.severity);
    let event = AlertEvent::new(first.kind, severity, now, &ids.join(" "), &title, &lines.join("\n"));
    let named: Vec<Value> = members.iter().take(NAMED).map(|one| one.event.id.as_str().into()).collect();
    let numbers = [("alerts".to_owned(), Value::from(count)), ("ids".to_owned(), Value::Array(named))];
    let event = event.numbers(Map::from_iter(numbers));
    Some(match &first.subject.bundle {
        Some(bundle) => event.bundle(bundle),
        None => event,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(300);

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 + secs)
    }

    fn delivery(n: usize, severity: Severity, raised: u64) -> Delivery {
        let event = AlertEvent::new(
            AlertKind::IncidentOpened,
            severity,
            at(raised),
            &n.to_string(),
            &format!("device {n} sees something else"),
            "",
        );
        let event = event.bundle(&"digits@3".parse().unwrap());
        Delivery::new(&"ops".parse().unwrap(), event, at(raised))
    }

    fn told(of: &Delivery, secs: u64) -> BTreeMap<Source, Timestamp> {
        BTreeMap::from([(source_of(&of.event).unwrap(), at(secs))])
    }

    #[test]
    fn the_first_goes_at_once_and_the_others_together_at_the_end_of_the_window() {
        let all: Vec<_> = (0..50).map(|n| delivery(n, Severity::Warning, n as u64)).collect();
        let first = plan(all.clone(), &BTreeMap::new(), WINDOW, at(60));
        assert_eq!((first.now.len(), first.now[0].len(), first.next), (1, 1, Some(at(360))));
        let rest = all[1..].to_vec();
        let waiting = plan(rest.clone(), &told(&all[0], 60), WINDOW, at(200));
        assert_eq!((waiting.now.len(), waiting.next), (0, Some(at(360))));
        let over = plan(rest, &told(&all[0], 60), WINDOW, at(360));
        assert_eq!((over.now.len(), over.now[0].len(), over.next), (1, 49, None));
        let message = message(&over.now[0], at(360)).unwrap();
        assert!(message.title.starts_with("49 alerts incident.opened of digits@3: device 1 "), "{message:?}");
        assert_eq!(message.text.lines().count(), NAMED + 2);
        assert_eq!((&message.numbers["alerts"], message.severity), (&Value::from(49), Severity::Warning));
    }

    #[test]
    fn what_is_graver_or_of_another_kind_does_not_wait_behind_it() {
        let (hint, grave) = (delivery(0, Severity::Warning, 0), delivery(1, Severity::Critical, 1));
        let mut other = delivery(2, Severity::Warning, 2);
        other.event.kind = AlertKind::FindingOpened;
        let mut rollout = delivery(3, Severity::Warning, 3);
        rollout.event.subject.rollout = Some("r-1".parse().unwrap());
        let found = plan(vec![grave, other, rollout], &told(&hint, 0), WINDOW, at(10));
        assert_eq!((found.now.len(), found.next), (3, None));
    }

    #[test]
    fn a_message_that_failed_keeps_its_members_and_single_ones_stay_single() {
        let mut all: Vec<_> = (0..4).map(|n| delivery(n, Severity::Warning, n as u64)).collect();
        for one in &mut all[..2] {
            (one.digest, one.tries) = (Some("alr-x".into()), 1);
        }
        all[2].tries = 1;
        let found = plan(all.clone(), &told(&all[0], 0), WINDOW, at(400));
        let sizes: Vec<_> = found.now.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1]);
        assert_eq!(message(&found.now[1], at(400)), None);
        let again = plan(all, &BTreeMap::new(), Duration::ZERO, at(400));
        assert_eq!(again.now.len(), 3, "without a window everything goes as it comes");
    }

    proptest! {
        /// Every delivery that is due is sent or waited for, none twice, no message is too large.
        #[test]
        fn nothing_is_lost(raised in proptest::collection::vec(0u64..1_000, 0..600), now in 0u64..1_000, last in proptest::option::of(0u64..1_000)) {
            let all: Vec<_> = raised.iter().enumerate().map(|(n, secs)| delivery(n, Severity::Warning, *secs)).collect();
            let told = match (last, all.first()) {
                (Some(last), Some(first)) => told(first, last),
                _ => BTreeMap::new(),
            };
            let found = plan(all.clone(), &told, WINDOW, at(now));
            let sent: Vec<_> = found.now.iter().flatten().map(|one| one.event.id.clone()).collect();
            let distinct: BTreeSet<_> = sent.iter().collect();
            prop_assert_eq!(distinct.len(), sent.len());
            prop_assert!(found.now.iter().all(|batch| (1..=MOST).contains(&batch.len())));
            prop_assert!(sent.len() == all.len() || found.next.is_some_and(|next| next > at(now)));
        }
    }
}
