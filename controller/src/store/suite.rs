//! What every home of fleet state must do, whatever is inside. `store_suite!(name, home)` makes one test of
//! each function here; `home` is an expression that gives a fresh, empty [`Home`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde::{Deserialize, Serialize};

use super::*;

/// A store and the way to open it again.
#[async_trait]
pub(crate) trait Home: Send + Sync {
    fn store(&self) -> Arc<dyn FleetStore>;
    /// Closes the store and opens what is there.
    async fn reopen(&mut self);
    /// Another, empty one.
    async fn another(&self) -> Box<dyn Home>;
}

macro_rules! store_suite {
    ($name:ident, $home:expr) => {
        mod $name {
            use super::*;
            $crate::store::suite::store_suite!(@each $home,
                a_document_comes_back_as_it_was_put,
                a_put_needs_the_expected_revision,
                a_delete_needs_the_expected_revision,
                a_check_guards_without_changing,
                a_revision_is_never_used_again,
                a_transaction_happens_whole_or_not_at_all,
                of_two_writers_with_the_same_revision_one_loses,
                scans_follow_id_order_prefix_and_pages,
                kinds_do_not_see_each_other,
                logs_count_from_one_without_gaps,
                large_bodies_are_kept_and_larger_ones_refused,
                malformed_requests_are_refused,
                everything_survives_reopening,
                a_closed_store_says_so,
                an_export_is_imported_exactly,
                a_damaged_export_changes_nothing,
                import_wants_a_new_store,
                updates_from_many_tasks_all_count,
                typed_documents_are_found_listed_and_refused,
                audited_changes_and_their_entries_stay_together,
                audited_changes_from_many_tasks_make_one_chain,
                random_operations_match_a_simple_model,
            );
        }
    };
    (@each $home:expr, $($test:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let mut home = $home.await;
                $crate::store::suite::$test(&mut home).await;
            }
        )+
    };
}
pub(crate) use store_suite;

const DEVICE: Kind = Kind::new("device");
const ROLLOUT: Kind = Kind::new("rollout");

async fn put(store: &dyn FleetStore, kind: Kind, id: &str, expect: Expect, body: &[u8]) -> Revision {
    store.commit(Transaction::new().put(kind, id, expect, body)).await.unwrap().revision
}

async fn body(store: &dyn FleetStore, kind: Kind, id: &str) -> Option<Vec<u8>> {
    store.get(kind, id).await.unwrap().map(|document| document.body)
}

pub(crate) async fn a_document_comes_back_as_it_was_put(home: &mut dyn Home) {
    let store = home.store();
    assert_eq!(store.get(DEVICE, "d-1").await.unwrap(), None);
    for text in [&b"{}"[..], b"", &[0, 255, 0]] {
        let revision = put(&*store, DEVICE, "d-1", Expect::Any, text).await;
        let expected = Document { revision, body: text.to_vec() };
        assert_eq!(store.get(DEVICE, "d-1").await.unwrap(), Some(expected));
    }
    assert_eq!(store.health().await, Health::Ready);
    assert!(store.size_on_disk().await.unwrap() > 0);
}

pub(crate) async fn a_put_needs_the_expected_revision(home: &mut dyn Home) {
    let store = home.store();
    let first = put(&*store, DEVICE, "d-1", Expect::Absent, b"1").await;
    let again = store.commit(Transaction::new().put(DEVICE, "d-1", Expect::Absent, b"x")).await;
    assert!(
        matches!(&again, Err(StoreError::StaleRevision { kind: DEVICE, id, expected: Expect::Absent, found })
            if id == "d-1" && *found == Some(first)),
        "{again:?}"
    );
    let second = put(&*store, DEVICE, "d-1", Expect::Revision(first), b"2").await;
    assert!(second > first);
    let late = store.commit(Transaction::new().put(DEVICE, "d-1", Expect::Revision(first), b"x")).await;
    assert_eq!(late.unwrap_err().retry(), Retry::Now);
    let missing = store.commit(Transaction::new().put(DEVICE, "d-2", Expect::Revision(first), b"x")).await;
    assert!(matches!(missing, Err(StoreError::StaleRevision { found: None, .. })), "{missing:?}");
    assert_eq!(body(&*store, DEVICE, "d-1").await.unwrap(), b"2");
    assert_eq!(body(&*store, DEVICE, "d-2").await, None);
}

pub(crate) async fn a_delete_needs_the_expected_revision(home: &mut dyn Home) {
    let store = home.store();
    let revision = put(&*store, DEVICE, "d-1", Expect::Absent, b"1").await;
    let wrong = Expect::Revision(Revision(revision.0 + 1));
    assert!(store.commit(Transaction::new().delete(DEVICE, "d-1", wrong)).await.is_err());
    store.commit(Transaction::new().delete(DEVICE, "d-1", Expect::Revision(revision))).await.unwrap();
    assert_eq!(body(&*store, DEVICE, "d-1").await, None);
    store.commit(Transaction::new().delete(DEVICE, "d-1", Expect::Any)).await.unwrap();
    let gone = store.commit(Transaction::new().delete(DEVICE, "d-1", Expect::Revision(revision))).await;
    assert!(matches!(gone, Err(StoreError::StaleRevision { found: None, .. })), "{gone:?}");
}

pub(crate) async fn a_check_guards_without_changing(home: &mut dyn Home) {
    let store = home.store();
    let revision = put(&*store, ROLLOUT, "r", Expect::Absent, b"1").await;
    let guarded = |expect| Transaction::new().check(ROLLOUT, "r", expect).put(DEVICE, "d", Expect::Any, b"1");
    store.commit(guarded(Expect::Revision(revision))).await.unwrap();
    assert_eq!(store.get(ROLLOUT, "r").await.unwrap().unwrap().revision, revision);
    put(&*store, ROLLOUT, "r", Expect::Any, b"2").await;
    assert!(store.commit(guarded(Expect::Revision(revision))).await.is_err());
}

pub(crate) async fn a_revision_is_never_used_again(home: &mut dyn Home) {
    let mut newest = Revision(0);
    for _ in 0..3 {
        let store = home.store();
        let revision = put(&*store, DEVICE, "d-1", Expect::Absent, b"1").await;
        assert!(revision > newest);
        newest = store.commit(Transaction::new().delete(DEVICE, "d-1", Expect::Any)).await.unwrap().revision;
        assert!(newest > revision);
        drop(store);
        home.reopen().await;
    }
}

pub(crate) async fn a_transaction_happens_whole_or_not_at_all(home: &mut dyn Home) {
    let store = home.store();
    put(&*store, DEVICE, "taken", Expect::Absent, b"old").await;
    put(&*store, DEVICE, "leaving", Expect::Absent, b"old").await;
    let transaction = |expect| {
        Transaction::new()
            .put(ROLLOUT, "r-1", Expect::Absent, b"new")
            .append("events", b"first")
            .delete(DEVICE, "leaving", Expect::Any)
            .put(DEVICE, "taken", expect, b"new")
            .append("events", b"second")
            .append("other", b"third")
    };
    assert!(store.commit(transaction(Expect::Absent)).await.is_err());
    assert_eq!(body(&*store, ROLLOUT, "r-1").await, None);
    assert_eq!(body(&*store, DEVICE, "leaving").await.unwrap(), b"old");
    assert_eq!(store.log_head("events").await.unwrap(), 0);

    let done = store.commit(transaction(Expect::Any)).await.unwrap();
    assert_eq!(done.log_seqs, [1, 2, 1]);
    assert_eq!(body(&*store, DEVICE, "leaving").await, None);
    for (kind, id) in [(ROLLOUT, "r-1"), (DEVICE, "taken")] {
        let expected = Document { revision: done.revision, body: b"new".to_vec() };
        assert_eq!(store.get(kind, id).await.unwrap(), Some(expected));
    }
}

pub(crate) async fn of_two_writers_with_the_same_revision_one_loses(home: &mut dyn Home) {
    let store = home.store();
    for round in 0..20 {
        let id = format!("d-{round}");
        let revision = put(&*store, DEVICE, &id, Expect::Absent, b"0").await;
        let write = |text: &'static [u8]| {
            store.commit(Transaction::new().put(DEVICE, &id, Expect::Revision(revision), text))
        };
        let (one, two) = tokio::join!(write(b"one"), write(b"two"));
        let winner: &[u8] = if one.is_ok() { b"one" } else { b"two" };
        assert_eq!(u8::from(one.is_ok()) + u8::from(two.is_ok()), 1, "{one:?} {two:?}");
        assert_eq!(body(&*store, DEVICE, &id).await.unwrap(), winner);
    }
}

pub(crate) async fn scans_follow_id_order_prefix_and_pages(home: &mut dyn Home) {
    let store = home.store();
    let ids = ["a", "a/1", "a/10", "a/2", "b/1", "z", "ä", "日本"];
    let mut transaction = Transaction::new();
    for id in ids.iter().rev() {
        transaction = transaction.put(DEVICE, *id, Expect::Absent, id.as_bytes());
    }
    store.commit(transaction).await.unwrap();
    for limit in 1..=ids.len() + 1 {
        let (mut seen, mut scan) = (Vec::new(), Scan::all().limit(limit));
        loop {
            let page = store.scan(DEVICE, scan.clone()).await.unwrap();
            assert!(page.entries.len() <= limit);
            seen.extend(page.entries.into_iter().map(|(id, _)| id));
            let Some(next) = page.next else { break };
            scan = scan.after(next);
        }
        assert_eq!(seen, ids, "limit {limit}");
    }
    let found = async |scan| {
        let page = store.scan(DEVICE, scan).await.unwrap();
        page.entries.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(found(Scan::all().prefix("a/")).await, ["a/1", "a/10", "a/2"]);
    assert_eq!(found(Scan::all().prefix("a/").after("a/10")).await, ["a/2"]);
    assert_eq!(found(Scan::all().prefix("a/").after("A")).await, ["a/1", "a/10", "a/2"]);
    assert_eq!(found(Scan::all().prefix("a/").after("b")).await, [""; 0]);
    assert_eq!(found(Scan::all().after("a/1").limit(2)).await, ["a/10", "a/2"]);
    assert_eq!(found(Scan::all().prefix("nothing")).await, [""; 0]);
}

pub(crate) async fn kinds_do_not_see_each_other(home: &mut dyn Home) {
    const DEV: Kind = Kind::new("dev");
    let store = home.store();
    put(&*store, DEV, "ice", Expect::Absent, b"1").await;
    put(&*store, DEVICE, "a", Expect::Absent, b"2").await;
    store.commit(Transaction::new().append("device", b"3")).await.unwrap();
    for (kind, ids) in [(DEV, vec!["ice"]), (DEVICE, vec!["a"]), (ROLLOUT, vec![])] {
        let page = store.scan(kind, Scan::all()).await.unwrap();
        assert_eq!(page.entries.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ids);
    }
}

pub(crate) async fn logs_count_from_one_without_gaps(home: &mut dyn Home) {
    let store = home.store();
    assert_eq!(store.log_read("events", 1, 10).await.unwrap(), []);
    for number in 1..=300_u64 {
        let log = if number % 3 == 0 { "events/3" } else { "events" };
        store.commit(Transaction::new().append(log, number.to_string())).await.unwrap();
    }
    assert_eq!(
        (store.log_head("events").await.unwrap(), store.log_head("events/3").await.unwrap()),
        (200, 100)
    );
    let entries = store.log_read("events", 0, 0).await.unwrap();
    assert!(entries.iter().map(|entry| entry.seq).eq(1..=200));
    assert_eq!(entries[199].body, b"299");
    let part = store.log_read("events/3", 99, 1).await.unwrap();
    assert_eq!(part, [LogEntry { seq: 99, body: b"297".to_vec() }]);
    assert_eq!(store.log_read("events/3", 101, 10).await.unwrap(), []);
}

pub(crate) async fn large_bodies_are_kept_and_larger_ones_refused(home: &mut dyn Home) {
    let largest = vec![7; MAX_BODY_BYTES];
    let mut transaction = Transaction::new();
    for number in 0..6 {
        transaction = transaction.put(DEVICE, format!("large-{number}"), Expect::Absent, largest.clone());
    }
    home.store().commit(transaction).await.unwrap();
    let too_large = vec![7; MAX_BODY_BYTES + 1];
    for refused in [
        Transaction::new().put(DEVICE, "d", Expect::Any, too_large.clone()),
        Transaction::new().append("events", too_large.clone()),
    ] {
        let error = home.store().commit(refused).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { size: 1_048_577, limit: 1_048_576, .. }), "{error}");
    }
    let mut transaction = Transaction::new();
    for number in 0..=MAX_TRANSACTION_BYTES / MAX_BODY_BYTES {
        transaction = transaction.append("events", vec![number as u8; MAX_BODY_BYTES]);
    }
    let error = home.store().commit(transaction).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { limit: 8_388_608, .. }), "{error}");
    home.reopen().await;
    for number in 0..6 {
        assert!(body(&*home.store(), DEVICE, &format!("large-{number}")).await.unwrap() == largest);
    }
}

pub(crate) async fn malformed_requests_are_refused(home: &mut dyn Home) {
    let store = home.store();
    let long = "x".repeat(MAX_ID_BYTES + 1);
    for id in ["", "a\0b", "line\n", long.as_str()] {
        let refused = [
            store.get(DEVICE, id).await.map(|_| ()),
            store.commit(Transaction::new().put(DEVICE, id, Expect::Any, b"")).await.map(|_| ()),
            store.commit(Transaction::new().append(id, b"")).await.map(|_| ()),
            store.log_read(id, 1, 1).await.map(|_| ()),
        ];
        for result in refused {
            assert!(matches!(result, Err(StoreError::Invalid { .. })), "{id:?}: {result:?}");
        }
    }
    let twice = Transaction::new().put(DEVICE, "d", Expect::Any, b"").delete(DEVICE, "d", Expect::Any);
    let many = (0..=MAX_OPERATIONS).fold(Transaction::new(), |all, _| all.append("events", b""));
    for transaction in [Transaction::new(), twice, many] {
        assert!(matches!(store.commit(transaction).await, Err(StoreError::Invalid { .. })));
    }
    assert_eq!(store.get(DEVICE, &"x".repeat(MAX_ID_BYTES)).await.unwrap(), None);
}

pub(crate) async fn everything_survives_reopening(home: &mut dyn Home) {
    let mut expected = BTreeMap::new();
    for round in 0..4_u32 {
        let store = home.store();
        for number in 0..40_u32 {
            let id = format!("d-{}", (number * 7 + round * 13) % 97);
            let text = format!("{round}/{number}");
            let transaction =
                Transaction::new().put(DEVICE, &id, Expect::Any, text.clone()).append("events", text.clone());
            store.commit(transaction).await.unwrap();
            expected.insert(id, text.into_bytes());
        }
        drop(store);
        home.reopen().await;
        let page = home.store().scan(DEVICE, Scan::all()).await.unwrap();
        let found: BTreeMap<_, _> = page.entries.into_iter().map(|(id, found)| (id, found.body)).collect();
        assert_eq!(found, expected);
        assert_eq!(home.store().log_head("events").await.unwrap(), u64::from(round + 1) * 40);
    }
}

pub(crate) async fn a_closed_store_says_so(home: &mut dyn Home) {
    let store = home.store();
    put(&*store, DEVICE, "d", Expect::Any, b"1").await;
    store.flush().await.unwrap();
    store.close().await.unwrap();
    for result in [
        store.get(DEVICE, "d").await.map(|_| ()),
        store.commit(Transaction::new().append("events", b"")).await.map(|_| ()),
        store.close().await,
    ] {
        assert!(matches!(result, Err(StoreError::Unavailable { .. })), "{result:?}");
    }
    assert!(matches!(store.health().await, Health::Down { .. }));
    drop(store);
    home.reopen().await;
    assert_eq!(body(&*home.store(), DEVICE, "d").await.unwrap(), b"1");
}

/// Collects what is written to it.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) async fn export_bytes(store: &dyn FleetStore) -> (Vec<u8>, ExportSummary) {
    let sink = Sink::default();
    let summary = store.export(Box::new(sink.clone())).await.unwrap();
    let bytes = sink.0.lock().clone();
    (bytes, summary)
}

async fn fill(store: &dyn FleetStore) {
    for number in 0..50_u8 {
        let transaction = Transaction::new()
            .put(DEVICE, format!("d-{number}"), Expect::Any, vec![number; usize::from(number) * 40])
            .put(ROLLOUT, "r-1", Expect::Any, [number])
            .append("events", [number])
            .append(format!("events/{}", number % 3), []);
        store.commit(transaction).await.unwrap();
    }
    store.commit(Transaction::new().delete(DEVICE, "d-7", Expect::Any)).await.unwrap();
}

pub(crate) async fn an_export_is_imported_exactly(home: &mut dyn Home) {
    fill(&*home.store()).await;
    let (bytes, summary) = export_bytes(&*home.store()).await;
    assert_eq!((summary.documents, summary.log_entries, summary.revision), (50, 100, 51));
    let mut other = home.another().await;
    assert_eq!(other.store().import(Box::new(Cursor::new(bytes.clone()))).await.unwrap(), summary);
    assert!(export_bytes(&*other.store()).await.0 == bytes);
    other.reopen().await;
    assert!(export_bytes(&*other.store()).await.0 == bytes);
    // Both go on alike.
    for store in [home.store(), other.store()] {
        let next = store.commit(Transaction::new().append("events", b"next")).await.unwrap();
        assert_eq!((next.revision, next.log_seqs[0]), (Revision(52), 51));
    }
}

pub(crate) async fn a_damaged_export_changes_nothing(home: &mut dyn Home) {
    fill(&*home.store()).await;
    let (good, _) = export_bytes(&*home.store()).await;
    let other = home.another().await;
    let lines: Vec<&[u8]> = good.split_inclusive(|byte| *byte == b'\n').collect();
    let without = |dropped: usize| {
        let kept = lines.iter().enumerate().filter(|(number, _)| *number != dropped);
        kept.flat_map(|(_, line)| line.iter().copied()).collect::<Vec<u8>>()
    };
    let mut wrong: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), vec![]),
        ("twice".into(), good.repeat(2)),
        ("header missing".into(), without(0)),
        ("a document missing".into(), without(9)),
        ("last line missing".into(), without(lines.len() - 1)),
        ("something behind".into(), [&good[..], b"{}\n"].concat()),
        ("endless line".into(), vec![b' '; 5 << 20]),
        (
            "version 2".into(),
            String::from_utf8(good.clone()).unwrap().replacen("\"version\":1", "\"version\":2", 1).into(),
        ),
    ];
    wrong.extend(
        (1..good.len()).step_by(good.len() / 23).map(|cut| (format!("cut at {cut}"), good[..cut].to_vec())),
    );
    wrong.extend((0..good.len()).step_by(good.len() / 29).map(|at| {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        (format!("byte {at} flipped"), flipped)
    }));
    for (name, bytes) in wrong {
        let refused = other.store().import(Box::new(Cursor::new(bytes))).await;
        assert!(matches!(refused, Err(StoreError::BadExport { .. })), "{name}: {refused:?}");
        assert_eq!(other.store().scan(DEVICE, Scan::all()).await.unwrap().entries, [], "{name}");
    }
    other.store().import(Box::new(Cursor::new(good))).await.unwrap();
}

pub(crate) async fn import_wants_a_new_store(home: &mut dyn Home) {
    fill(&*home.store()).await;
    let (bytes, _) = export_bytes(&*home.store()).await;
    let refused = home.store().import(Box::new(Cursor::new(bytes.clone()))).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    assert!(export_bytes(&*home.store()).await.0 == bytes);
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    count: u32,
}

pub(crate) async fn updates_from_many_tasks_all_count(home: &mut dyn Home) {
    let counters = Repository::<Counter>::new(home.store(), DEVICE);
    counters.put_json("c", Expect::Absent, &Counter { count: 0 }).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let counters = counters.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    counters.update("c", |found| Counter { count: found.count + 1 }).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(counters.get_json("c").await.unwrap().value, Counter { count: 80 });
}

pub(crate) async fn typed_documents_are_found_listed_and_refused(home: &mut dyn Home) {
    let counters = Repository::<Counter>::new(home.store(), DEVICE);
    let missing = counters.get_json("c-0").await;
    assert!(matches!(&missing, Err(StoreError::NotFound { kind: DEVICE, id }) if id == "c-0"), "{missing:?}");
    assert_eq!(counters.find_json("c-0").await.unwrap(), None);
    for count in 0..5 {
        counters.put_json(&format!("c-{count}"), Expect::Absent, &Counter { count }).await.unwrap();
    }
    let page = counters.list(Scan::all().limit(3)).await.unwrap();
    assert_eq!((page.entries.len(), page.next.as_deref()), (3, Some("c-2")));
    let all = counters.list_all("c-").await.unwrap();
    assert!(all.iter().map(|(_, found)| found.value.count).eq(0..5));
    let refused = counters
        .try_update("c-1", |_| Err::<Counter, _>(StoreError::invalid("this", "it is only a test")))
        .await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })));
    put(&*home.store(), DEVICE, "c-9", Expect::Absent, b"{\"count\":\"nine\"}").await;
    let unreadable = counters.get_json("c-9").await;
    assert!(matches!(unreadable, Err(StoreError::Unreadable { .. })), "{unreadable:?}");
    counters.delete("c-9", Expect::Any).await.unwrap();
    assert_eq!(counters.list_all("").await.unwrap().len(), 5);
}

fn draft(who: &str, subject: &str) -> audit::AuditDraft {
    audit::AuditDraft {
        at: "2026-03-01T12:00:00Z".into(),
        who: who.into(),
        action: "device.label".into(),
        subject: subject.into(),
        after: Some("{\"site\":\"lab\"}".into()),
        ..audit::AuditDraft::default()
    }
}

pub(crate) async fn audited_changes_and_their_entries_stay_together(home: &mut dyn Home) {
    let log = audit::AuditLog::new(home.store());
    assert_eq!(log.verify().await.unwrap(), audit::Head::default());
    let change = Transaction::new().put(DEVICE, "d-1", Expect::Absent, b"1").append("events", b"e");
    let done = log.commit(change.clone(), &[draft("ann", "device/d-1"), draft("ann", "more")]).await.unwrap();
    assert_eq!(done.committed.log_seqs, [1, 1, 2]);
    // The change is stale now: neither it nor an entry may appear.
    let refused = log.commit(change, &[draft("bob", "device/d-1")]).await;
    assert!(matches!(refused, Err(StoreError::StaleRevision { kind: DEVICE, .. })), "{refused:?}");
    drop(log);
    home.reopen().await;
    let log = audit::AuditLog::new(home.store());
    let done = log.commit(Transaction::new(), &[draft("eve", "looked")]).await.unwrap();
    assert_eq!(log.verify().await.unwrap().seq, 3);
    assert_eq!(log.read(3, 10).await.unwrap(), done.entries);

    // An entry slipped in beside the head, and a head that was set back, are noticed.
    let forged = audit::AuditEntry::link(log.stored_head().await.unwrap().0, &draft("mallory", "x"));
    let forged = serde_json::to_vec(&forged).unwrap();
    home.store().commit(Transaction::new().append(audit::AUDIT_LOG, forged)).await.unwrap();
    let broken = log.verify().await;
    assert!(
        matches!(broken, Err(audit::VerifyError::Broken(audit::ChainBreak { seq: 4, .. }))),
        "{broken:?}"
    );
}

pub(crate) async fn audited_changes_from_many_tasks_make_one_chain(home: &mut dyn Home) {
    // Two logs on one store, as two processes on a shared database would be.
    let logs = [audit::AuditLog::new(home.store()), audit::AuditLog::new(home.store())].map(Arc::new);
    let tasks: Vec<_> = (0..6)
        .map(|task| {
            let log = Arc::clone(&logs[task % 2]);
            tokio::spawn(async move {
                for number in 0..10 {
                    let id = format!("d-{task}-{number}");
                    let change = Transaction::new().put(DEVICE, &id, Expect::Absent, b"1");
                    log.commit(change, &[draft("ann", &id)]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(logs[0].verify().await.unwrap().seq, 60);
    let subjects: BTreeSet<_> =
        logs[0].read(1, 0).await.unwrap().into_iter().map(|entry| entry.subject).collect();
    let devices = home.store().scan(DEVICE, Scan::all()).await.unwrap();
    assert!(devices.entries.iter().map(|(id, _)| id).eq(&subjects));
}

#[derive(Debug, Clone)]
enum Act {
    Commit(Vec<(usize, Expecting, Option<Vec<u8>>)>, Vec<usize>),
    Scan(usize, usize),
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum Expecting {
    Nothing,
    TheCurrent,
    AnOlder,
    Anything,
}

const IDS: [&str; 6] = ["a", "aa", "ab", "b", "b/1", "c"];
const LOGS: [&str; 2] = ["x", "y"];

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let expecting = prop_oneof![
        1 => Just(Expecting::Nothing),
        3 => Just(Expecting::TheCurrent),
        1 => Just(Expecting::AnOlder),
        3 => Just(Expecting::Anything)
    ];
    let operation =
        (0..IDS.len(), expecting, proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)));
    let commit = (proptest::collection::vec(operation, 0..4), proptest::collection::vec(0..LOGS.len(), 0..3));
    let act = prop_oneof![
        12 => commit.prop_map(|(operations, appends)| Act::Commit(operations, appends)),
        3 => (0..IDS.len(), 0..4_usize).prop_map(|(after, limit)| Act::Scan(after, limit)),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 1..40)
}

#[derive(Default)]
struct Model {
    documents: BTreeMap<&'static str, Document>,
    logs: BTreeMap<&'static str, Vec<Vec<u8>>>,
}

pub(crate) async fn random_operations_match_a_simple_model(home: &mut dyn Home) {
    // A fixed seed: the same sequences on every machine; a failure names its sequence.
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for case in 0..24 {
        let acts = acts().new_tree(&mut runner).unwrap().current();
        let mut fresh = home.another().await;
        let mut model = Model::default();
        for (number, act) in acts.iter().enumerate() {
            model.compare(&mut *fresh, act, &format!("case {case}, act {number} of {acts:?}")).await;
        }
    }
}

impl Model {
    async fn compare(&mut self, home: &mut dyn Home, act: &Act, at: &str) {
        match act {
            Act::Reopen => home.reopen().await,
            Act::Scan(after, limit) => {
                let page =
                    home.store().scan(DEVICE, Scan::all().after(IDS[*after]).limit(*limit)).await.unwrap();
                let expected = self.documents.range(IDS[*after]..).filter(|(id, _)| **id != IDS[*after]);
                let expected: Vec<_> =
                    expected.map(|(id, found)| ((*id).to_owned(), found.clone())).collect();
                let shown = if *limit == 0 { expected.len() } else { expected.len().min(*limit) };
                assert_eq!(page.entries, expected[..shown], "{at}");
                assert_eq!(page.next.is_some(), shown < expected.len(), "{at}");
            }
            Act::Commit(operations, appends) => self.commit(&*home.store(), operations, appends, at).await,
        }
        for log in LOGS {
            let entries = home.store().log_read(log, 1, 0).await.unwrap();
            let expected = self.logs.get(log).cloned().unwrap_or_default();
            assert!(entries.iter().map(|entry| &entry.body).eq(&expected), "{at}");
        }
    }

    async fn commit(
        &mut self,
        store: &dyn FleetStore,
        operations: &[(usize, Expecting, Option<Vec<u8>>)],
        appends: &[usize],
        at: &str,
    ) {
        let (mut transaction, mut holds, mut named) = (Transaction::new(), true, BTreeSet::new());
        for (id, expecting, change) in operations {
            let found = self.documents.get(IDS[*id]).map(|document| document.revision);
            let expect = match expecting {
                Expecting::Nothing => Expect::Absent,
                Expecting::TheCurrent => found.map_or(Expect::Absent, Expect::Revision),
                Expecting::AnOlder => Expect::Revision(Revision(found.map_or(1, |found| found.0 - 1))),
                Expecting::Anything => Expect::Any,
            };
            holds &= expect.holds(found) && named.insert(id);
            transaction = match change {
                Some(body) => transaction.put(DEVICE, IDS[*id], expect, body.clone()),
                None => transaction.delete(DEVICE, IDS[*id], expect),
            };
        }
        for log in appends {
            transaction = transaction.append(LOGS[*log], [*log as u8]);
        }
        holds &= !(operations.is_empty() && appends.is_empty());
        let result = store.commit(transaction).await;
        assert_eq!(result.is_ok(), holds, "{result:?} {at}");
        let Ok(Committed { revision, log_seqs }) = result else { return };
        for (id, _, change) in operations {
            match change {
                Some(body) => self.documents.insert(IDS[*id], Document { revision, body: body.clone() }),
                None => self.documents.remove(IDS[*id]),
            };
        }
        for (log, seq) in appends.iter().zip(log_seqs) {
            let entries = self.logs.entry(LOGS[*log]).or_default();
            entries.push(vec![*log as u8]);
            assert_eq!(seq, entries.len() as u64, "{at}");
        }
    }
}
