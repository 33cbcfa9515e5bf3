use super::*;
use crate::{
    desired::{INTENT, Intent},
    store::{
        FleetStore, Repository, StoreError,
        audit::AuditLog,
        sled_home::{SledConfig, SledStore},
    },
};
use async_trait::async_trait;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::{BundleName, DeviceId},
    selector::Selector,
    time::Timestamp,
};
use std::sync::Arc;

/// A fleet of numbered devices; selectors decide nothing here, the fleet's own tests cover them.
struct Numbered(usize);

#[async_trait]
impl Roster for Numbered {
    async fn select(
        &self,
        _: &[Selector],
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceId>, StoreError> {
        let all = (0..self.0).map(|n| format!("dev-{n:05}").parse().expect("a device id"));
        Ok(all.filter(|device| after.is_none_or(|after| device > after)).take(limit).collect())
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    store: Arc<dyn FleetStore>,
    audit: Arc<AuditLog>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temp folder");
        let (store, _) = SledStore::open(SledConfig::new(dir.path().join("store"))).await.expect("a store");
        let store: Arc<dyn FleetStore> = Arc::new(store);
        let audit = Arc::new(AuditLog::new(store.clone()));
        Self { _dir: dir, store, audit }
    }
    fn service(&self, devices: usize) -> Assignments {
        Assignments::new(self.store.clone(), self.audit.clone(), Arc::new(Numbered(devices)))
    }
    async fn intents(&self) -> Vec<Intent> {
        let all = Repository::<Intent>::new(self.store.clone(), INTENT).list_all("").await.expect("intents");
        all.into_iter().map(|(_, intent)| intent.value).collect()
    }
}

fn request(bundle: &str) -> AssignRequest {
    let bundle: BundleName = bundle.parse().expect("a bundle name");
    AssignRequest {
        slot: (&bundle.model).into(),
        release: EnvelopeDigest::of(bundle.to_string().as_bytes()),
        bundle,
        release_size: 1,
        selectors: vec![Selector::everything()],
        probation_secs: 1,
        supersede: false,
        confirmed: true,
        by: "test".into(),
        reason: None,
    }
}

fn id(text: &str) -> edgefleet_shared::ids::RolloutId {
    text.parse().expect("a rollout id")
}

const NOW: Timestamp = Timestamp::EPOCH;

#[tokio::test]
async fn an_interrupted_assignment_goes_on_where_its_cursor_stands() {
    let bench = Bench::new().await;
    let service = bench.service(1_200);
    service.start(request("digits@1"), id("r-1"), NOW).await.expect("started");
    assert_eq!(service.advance(&id("r-1"), NOW).await.expect("first chunk").len(), 500);
    drop(service); // the process dies here
    let service = bench.service(1_200);
    assert_eq!(service.unfinished().await.expect("list"), [id("r-1")]);
    let mut reached = 0;
    loop {
        match service.advance(&id("r-1"), NOW).await.expect("chunk").len() {
            0 => break,
            n => reached += n,
        }
    }
    assert_eq!(reached, 700);
    assert_eq!(bench.intents().await.len(), 1_200);
    let record = service.show(&id("r-1")).await.expect("rollout");
    assert_eq!((record.state, record.counts.total), (RolloutState::Running, 1_200));
    assert!(service.unfinished().await.expect("list").is_empty());
}

#[tokio::test]
async fn many_devices_need_a_confirmation_and_an_empty_selection_is_an_error() {
    for (devices, confirmed, wanted) in
        [(0, true, "no enrolled device"), (11, false, "11 devices"), (10, false, ""), (11, true, "")]
    {
        let bench = Bench::new().await;
        let mut asked = request("digits@1");
        asked.confirmed = confirmed;
        let answer = bench.service(devices).start(asked, id(&format!("r-{devices}-{confirmed}")), NOW).await;
        match answer {
            Ok(_) => assert_eq!(wanted, "", "{devices} {confirmed}"),
            Err(error) => assert!(!wanted.is_empty() && error.to_string().contains(wanted), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_running_rollout_is_superseded_only_when_told_so() {
    let bench = Bench::new().await;
    let service = bench.service(3);
    service.start(request("digits@1"), id("r-1"), NOW).await.expect("started");
    service.advance(&id("r-1"), NOW).await.expect("chunk");
    let refused = service.start(request("digits@2"), id("r-2"), NOW).await;
    assert!(matches!(refused, Err(AssignError::Conflict { devices: 3, .. })), "{refused:?}");
    let mut second = request("digits@2");
    second.supersede = true;
    service.start(second, id("r-2"), NOW).await.expect("started");
    service.advance(&id("r-2"), NOW).await.expect("chunk");
    let first = service.show(&id("r-1")).await.expect("rollout");
    assert_eq!(first.state, RolloutState::Superseded { by: id("r-2") });
    assert_eq!(first.counts.superseded, 3);
    assert!(bench.intents().await.iter().all(|intent| intent.active.bundle.counter == 2));
    let devices = service.attempts(&id("r-2"), None, 10).await.expect("attempts");
    service.removed(&devices[0].device, NOW).await.expect("removed");
    assert_eq!(service.show(&id("r-2")).await.expect("rollout").counts.removed, 1);
    bench.audit.verify().await.expect("an unbroken audit chain");
}

#[tokio::test]
async fn a_rollout_that_is_still_being_written_is_in_the_way_of_another() {
    let bench = Bench::new().await;
    let service = bench.service(700);
    service.start(request("digits@1"), id("r-1"), NOW).await.expect("started");
    let refused = service.start(request("digits@2"), id("r-2"), NOW).await;
    assert!(matches!(refused, Err(AssignError::Conflict { devices: 700, .. })), "{refused:?}");
    service.advance(&id("r-1"), NOW).await.expect("chunk");
    let refused = service.start(request("digits@2"), id("r-2"), NOW).await;
    assert!(matches!(refused, Err(AssignError::Conflict { devices: 700, .. })), "{refused:?}");
}

#[tokio::test]
async fn of_two_starts_at_once_one_finds_the_devices_taken() {
    let bench = Bench::new().await;
    let service = bench.service(3);
    let (a, b) = (id("r-1"), id("r-2"));
    let (one, two) =
        tokio::join!(service.start(request("digits@1"), a, NOW), service.start(request("digits@2"), b, NOW));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
}

/// Whatever the clock in the ids says and whichever is carried out first.
#[tokio::test]
async fn a_rollout_that_was_cut_off_takes_no_device_back_from_a_later_one() {
    let bench = Bench::new().await;
    let service = bench.service(600);
    service.start(request("digits@1"), id("r-9"), NOW).await.expect("started");
    service.advance(&id("r-9"), NOW).await.expect("500 of 600");
    let mut second = request("digits@2");
    second.supersede = true;
    service.start(second, id("r-1"), NOW).await.expect("started");
    while !service.advance(&id("r-1"), NOW).await.expect("chunk").is_empty() {}
    assert_eq!(service.advance(&id("r-9"), NOW).await.expect("the rest").len(), 100);
    assert!(bench.intents().await.iter().all(|intent| intent.active.bundle.counter == 2));
    let first = service.show(&id("r-9")).await.expect("rollout");
    assert_eq!((first.counts.total, first.counts.superseded, first.is_open()), (600, 600, false));
    let second = service.show(&id("r-1")).await.expect("rollout");
    assert_eq!((second.counts.total, second.counts.finished()), (600, 0));
}
