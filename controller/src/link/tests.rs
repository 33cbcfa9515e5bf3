//! The controller's end of the conversation with real parts: fleet, store, broker, driver. Only the devices
//! are events put into the loop.

use super::{EventLoop, EventTotals, HandOut, Resends, Takeovers};
use crate::{
    broker::{
        Broker, BrokerEvent, EVENT_CAPACITY,
        embedded::{EmbeddedBroker, EmbeddedParams},
        tls::{ClockTime, mqtt_server_config},
    },
    clock,
    desired::DesiredStates,
    driver::{Driver, DriverHandle, DriverParts, Order},
    findings::{FindingCode, Findings},
    fleet::testing::{ADDRESS, TestDevice, TestFleet, actor, expect_enrolled},
    ingest::{Ingest, Monitoring, Surroundings},
    rollout::{
        Bucket, Plan, Release,
        plan::{Limits as PlanLimits, OnOverlap},
    },
    rollouts::{Calendars, Documents, NewRolloutRequest, RolloutDriver, RolloutParts, Rollouts},
    signing::setup,
    transfer::{BlockServer, Library, LibraryError, Limits},
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    desired::Settings,
    digest::EnvelopeDigest,
    ids::{BootId, BundleName, DeviceId},
    reported::{ClockQuality, Facts, REPORTED_SCHEMA, Reported},
    selector::Selector,
    telemetry::Ack,
    time::Timestamp,
    topics::Channel,
    transfer::FetchObject,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

struct Nothing;

#[async_trait]
impl Library for Nothing {
    async fn size(&self, _: &FetchObject) -> Result<Option<u64>, LibraryError> {
        Ok(None)
    }
    async fn read(&self, object: &FetchObject, _: u64, _: u64) -> Result<Bytes, LibraryError> {
        Err(LibraryError { object: format!("{object:?}"), reason: "there is nothing".into() })
    }
}

#[async_trait]
impl Surroundings for Nothing {
    fn labels(&self, _: &DeviceId) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    async fn is_known(&self, _: &BundleName) -> bool {
        false
    }
    fn is_isolated(&self, _: &DeviceId) -> bool {
        false
    }
    async fn acknowledge(&self, _: &DeviceId, _: Ack) {}
}

struct Bench {
    test: TestFleet,
    events: mpsc::Sender<BrokerEvent>,
    totals: Arc<EventTotals>,
    hand_out: Arc<HandOut>,
    rollouts: Rollouts,
    findings: Arc<Findings>,
    orders: DriverHandle,
    stop: CancellationToken,
    looping: JoinHandle<()>,
}

impl Bench {
    async fn new() -> Self {
        let test = TestFleet::at(clock::now()).await;
        let (fleet, dir) = (test.fleet.clone(), test.dir.path());
        let (store, audit) = (fleet.store().clone(), fleet.audit_log().clone());
        let server = fleet.ca().server();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(fleet.ca().certificate().clone()).expect("a root");
        let time = Arc::new(ClockTime(clock::wall()));
        let tls = mqtt_server_config(server.chain.clone(), server.key.clone_key(), roots, time).expect("TLS");
        let (broker, _connections) = EmbeddedBroker::start(EmbeddedParams {
            data_dir: dir.join("broker"),
            listen: "127.0.0.1:0".parse().expect("an address"),
            tls: Arc::new(ArcSwap::from_pointee(tls)),
            admission: fleet.clone(),
            clock: clock::wall(),
            max_connections: None,
            max_connections_per_address: None,
            event_capacity: EVENT_CAPACITY,
        })
        .await
        .expect("a broker");
        let broker: Arc<dyn Broker> = Arc::new(broker);
        let keys = setup::open_or_create(dir, clock::now()).expect("keys");
        let findings = Arc::new(Findings::open(store.clone(), audit.clone()).await.expect("findings"));
        let states = DesiredStates::new(store.clone(), keys.online.clone(), Settings::default());
        let hand_out = Arc::new(HandOut::new(states, broker.clone(), keys.trust.clone(), findings.clone()));
        let documents = Documents::new(store.clone());
        let rollouts = Rollouts::new(documents.clone(), audit.clone(), fleet.clone());
        let calendar = Calendars::open(store.clone(), audit.clone()).await.expect("a calendar");
        let monitoring = Monitoring::open(store.clone(), audit.clone()).await.expect("monitoring");
        let (ingest, queue) = Ingest::new(store, rollouts.clone(), Arc::new(Nothing), monitoring);
        tokio::spawn(ingest.run());
        let blocks = BlockServer::new(Arc::new(Nothing), broker, Limits::NONE);
        let totals = Arc::new(EventTotals::default());
        let (driver, orders) = Driver::new(DriverParts {
            rollouts: rollouts.clone(),
            hand_out: hand_out.clone(),
            fleet: fleet.clone(),
            blocks: blocks.clone(),
            findings: findings.clone(),
        });
        let (rollout_driver, clerk) = RolloutDriver::new(RolloutParts {
            documents,
            audit,
            key: keys.online.clone(),
            roster: fleet.clone(),
            devices: orders.clone(),
            calendar,
            rollouts: rollouts.clone(),
        });
        let event_loop = EventLoop {
            fleet: fleet.clone(),
            hand_out: hand_out.clone(),
            ingest: queue,
            clerk,
            blocks: blocks.clone(),
            findings: findings.clone(),
            replies: broadcast::channel(8).0,
            totals: totals.clone(),
            takeovers: Mutex::new(Takeovers::default()),
            resends: Mutex::new(Resends::default()),
        };
        let stop = CancellationToken::new();
        let (events, receiver) = mpsc::channel(EVENT_CAPACITY);
        let looping = tokio::spawn(event_loop.run(receiver, stop.clone()));
        tokio::spawn(driver.run(stop.clone()));
        tokio::spawn(rollout_driver.run(stop.clone()));
        Self { test, events, totals, hand_out, rollouts, findings, orders, stop, looping }
    }

    async fn devices(&self, count: u32) -> Vec<DeviceId> {
        let invite = self.test.invite(count).await;
        let mut devices = Vec::new();
        for _ in 0..count {
            let request = TestDevice::new().request(&invite.code);
            let response = self.test.fleet.enroll(&request, ADDRESS).await.expect("enrolled");
            devices.push(expect_enrolled(response).device);
        }
        devices
    }

    async fn assign(&self, supersede: bool, bundle: &str, id: &str) -> edgefleet_shared::ids::RolloutId {
        let bundle: BundleName = bundle.parse().expect("a bundle");
        let mut plan =
            Plan::single_stage((&bundle.model).into(), bundle.clone(), vec![Selector::everything()]);
        plan.limits = PlanLimits::none();
        if supersede {
            plan.rollout.on_overlap = OnOverlap::Supersede;
        }
        let envelope = EnvelopeDigest::of(b"release");
        let request = NewRolloutRequest {
            plan,
            release: Release { bundle, envelope, envelope_size: 7, download: 7 },
            confirmed: true,
            start: true,
            reason: String::new(),
        };
        let id: edgefleet_shared::ids::RolloutId = id.parse().expect("an id");
        self.rollouts.start(request, id.clone(), &actor(), clock::now()).await.expect("started");
        id
    }

    async fn generation(&self, device: &DeviceId) -> u64 {
        let stored = self.hand_out.states().stored(device).await.expect("a look");
        stored.map_or(0, |record| record.desired.generation)
    }

    /// What is wanted of the device in its only slot. A rollout that another one takes the place of may take back
    /// its own wish first: generations are not counted here.
    async fn wants(&self, device: &DeviceId, bundle: &str) -> bool {
        let stored = self.hand_out.states().stored(device).await.expect("a look");
        let slots = stored.map(|record| record.desired.slots).unwrap_or_default();
        slots.values().any(|slot| slot.active.bundle.to_string() == bundle)
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.looping).await.expect("in time").expect("no panic");
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn report(device: &DeviceId, generation: u64, cpu: &str) -> BrokerEvent {
    let report = Reported {
        schema: REPORTED_SCHEMA,
        device: device.clone(),
        boot: BootId::from_random([1; 16]),
        seq: 0,
        at: Timestamp::EPOCH,
        clock: ClockQuality::Plausible,
        generation,
        trust_version: 1,
        nonce: None,
        slots: BTreeMap::new(),
        refused: None,
        facts: Facts { cpu: cpu.into(), ..Facts::default() },
    };
    let payload = serde_json::to_vec(&report).expect("plain data").into();
    BrokerEvent::Message { device: device.clone(), channel: Channel::Reported, payload, retained: false }
}

/// Each report changes what is stored, so each is a durable write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_many_devices_share_their_writes_and_none_is_lost() {
    const DEVICES: u32 = 100;
    const EACH: u64 = 20;
    let bench = Bench::new().await;
    let devices = bench.devices(DEVICES).await;
    let begun = Instant::now();
    for round in 0..EACH {
        for device in &devices {
            bench.events.send(report(device, 0, &format!("cpu {round}"))).await.expect("the loop runs");
        }
    }
    let last = format!("cpu {}", EACH - 1);
    until("every last report is there", || async {
        devices
            .iter()
            .all(|device| bench.test.fleet.device(device).is_ok_and(|known| known.status.facts.cpu == last))
    })
    .await;
    let took = begun.elapsed();
    println!("{} reports in {took:?}", u64::from(DEVICES) * EACH);
    assert_eq!(bench.totals.shed.load(std::sync::atomic::Ordering::Relaxed), 0);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_identity_is_found_gets_nothing_new_and_goes_on_once_a_person_resolved_it() {
    let bench = Bench::new().await;
    let devices = bench.devices(2).await;
    let (shared, other) = (&devices[0], &devices[1]);
    bench.assign(false, "digits@1", "r-1").await;
    until("both have their first generation", || async {
        bench.generation(shared).await == 1 && bench.generation(other).await == 1
    })
    .await;
    for _ in 0..3 {
        let takeover = BrokerEvent::Takeover { device: shared.clone() };
        bench.events.send(takeover).await.expect("the loop runs");
    }
    until("it is found", || async { bench.findings.isolates(shared) }).await;
    bench.assign(true, "digits@2", "r-2").await;
    until("the other goes on", || async { bench.wants(other, "digits@2").await }).await;
    assert_eq!(bench.generation(shared).await, 1);
    let code = FindingCode::DuplicateIdentity;
    bench.findings.resolve(&actor(), shared, code, clock::now()).await.expect("resolved");
    bench.orders.order(Order::Devices(vec![shared.clone()])).await;
    until("it goes on", || async { bench.wants(shared, "digits@2").await }).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_generation_is_a_finding_and_a_possible_one_is_gone_beyond() {
    let bench = Bench::new().await;
    let devices = bench.devices(2).await;
    bench.assign(false, "digits@1", "r-1").await;
    until("both have a generation", || async {
        bench.generation(&devices[0]).await == 1 && bench.generation(&devices[1]).await == 1
    })
    .await;
    bench.events.send(report(&devices[0], 1 << 40, "x")).await.expect("the loop runs");
    bench.events.send(report(&devices[1], 40, "x")).await.expect("the loop runs");
    until("both are found", || async { bench.findings.list().len() == 2 }).await;
    assert_eq!(bench.findings.of(&devices[0])[0].code, FindingCode::ImpossibleGeneration);
    assert_eq!(bench.findings.of(&devices[1])[0].code, FindingCode::ControllerStateBehind);
    assert_eq!((bench.generation(&devices[0]).await, bench.generation(&devices[1]).await), (1, 41));
    // The device was set right, and then the finding resolved: it obeys again. In the other order a change in
    // between would meet the old claim.
    bench.events.send(report(&devices[0], 0, "y")).await.expect("the loop runs");
    until("the right claim is heard", || async {
        bench.test.fleet.device(&devices[0]).is_ok_and(|known| known.status.facts.cpu == "y")
    })
    .await;
    bench.hand_out.states().believe(&devices[0]).await.expect("believed");
    bench.assign(true, "digits@2", "r-2").await;
    until("it goes on", || async { bench.wants(&devices[0], "digits@2").await }).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_device_leaves_its_rollout_and_nothing_is_wanted_of_it() {
    let bench = Bench::new().await;
    let devices = bench.devices(2).await;
    let rollout = bench.assign(false, "digits@1", "r-1").await;
    until("both have a generation", || async {
        bench.generation(&devices[0]).await == 1 && bench.generation(&devices[1]).await == 1
    })
    .await;
    bench.test.fleet.remove_device(&actor(), &devices[0], None).await.expect("removed");
    bench.orders.order(Order::Removed(devices[0].clone())).await;
    until("it is out of the rollout", || async {
        let counts = bench.rollouts.show(&rollout).await.expect("a rollout").stages[0].counts.clone();
        counts.get(Bucket::Removed) == 1 && bench.generation(&devices[0]).await == 0
    })
    .await;
    assert_eq!(bench.hand_out.states().wanted_devices().await.expect("a list"), [devices[1].clone()]);
    bench.stop().await;
}
