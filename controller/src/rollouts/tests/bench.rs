//! A store on disk, a fleet that is played, and processes of the controller that can be started and killed.

use super::{
    devices::{Devices, SLOT, slot},
    stores::{Checked, Coated, Death, Mortal},
};
use crate::{
    alerts::{AlertEvent, AlertKind, RAISED},
    clock,
    desired::{DesiredStates, Reason, intent_id},
    driver::{DriverHandle, Order},
    fleet::Actor,
    rollout::{Attempt, Event, Plan, Release, Rollout, Share, Stage, StateName, plan::Limits},
    rollouts::{
        Calendars, Clerk, Documents, Ears, NewRolloutRequest, OrderError, RolloutDriver, RolloutParts,
        Rollouts, StartError,
    },
    signing::{setup, signer::OnlineKey, trust_store::TrustStore},
    store::{
        FleetStore, Repository, StoreError, Transaction,
        audit::AuditLog,
        sled_home::{SledConfig, SledStore},
    },
};
use edgefleet_shared::{
    desired::Settings,
    digest::EnvelopeDigest,
    ids::{BundleName, DeviceId, RolloutId},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);
/// The same places in every run.
const SEED: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

pub(super) fn author() -> Actor {
    Actor::token("1", "author")
}
pub(super) fn other() -> Actor {
    Actor::token("2", "other")
}

/// Two stages without statistics; ten minutes are a second.
pub(super) fn plan(bundle: &str) -> Plan {
    let mut plan = Plan::new(slot(), bundle.parse().unwrap());
    let sized = |name: &str, size| Stage { size: Some(size), ..Stage::named(name) };
    plan.stages = vec![
        Stage { coverage: Some(Share::Percent(100.0)), ..sized("canary", Share::Count(4)) },
        Stage { dynamic: true, ..sized("all", Share::Percent(100.0)) },
    ];
    plan.limits = Limits::none();
    plan.assign.seed = SEED.to_owned();
    plan.assign.strata = Vec::new();
    plan.time_scale = 600.0;
    plan
}

/// What outlives a process.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    store: Arc<Coated<Checked>>,
    key: OnlineKey,
    pub(super) trust: Arc<TrustStore>,
    pub(super) devices: Arc<Devices>,
    pub(super) documents: Documents,
}

impl Bench {
    pub(super) async fn new(devices: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SledStore::open(SledConfig::new(dir.path().join("store"))).await.unwrap();
        let store = Checked::around(Arc::new(store));
        let keys = setup::open_or_create(dir.path(), clock::now()).unwrap();
        let documents = Documents::new(store.clone());
        let bench =
            Self { dir, store, key: keys.online, trust: keys.trust, devices: Arc::default(), documents };
        for number in 1..=devices {
            bench.devices.add(&format!("dev-{number:02}"));
        }
        bench
    }

    /// With `digits@1` on everybody, by a rollout `r-1` that is completed.
    pub(super) async fn on_first(devices: usize) -> Self {
        let bench = Self::new(devices).await;
        let process = bench.start(None).await;
        let mut first = plan("digits@1");
        first.stages.remove(0);
        first.stages[0].dynamic = false; // or it would take in whoever comes later
        process.roll(first, "r-1").await;
        bench.reaches("r-1", StateName::Completed).await;
        bench
            .until("everybody has the first release", || async {
                bench.devices.all().values().all(|device| device.ends.is_empty() && device.active.is_some())
            })
            .await;
        process.kill().await;
        bench
    }

    /// A process of the controller that may have to die.
    pub(super) async fn start(&self, death: Option<Death>) -> Process {
        self.open(death, true).await
    }

    /// One that takes orders and carries nothing out.
    pub(super) async fn start_idle(&self) -> Process {
        self.open(None, false).await
    }

    async fn open(&self, death: Option<Death>, running: bool) -> Process {
        let store = Mortal::around(self.store.clone(), death);
        let shared: Arc<dyn FleetStore> = store.clone();
        let audit = Arc::new(AuditLog::new(shared.clone()));
        let documents = Documents::new(shared.clone());
        let roster = self.devices.clone();
        let rollouts = Rollouts::new(documents.clone(), audit.clone(), roster.clone());
        let calendar = Calendars::open(shared.clone(), audit.clone()).await.unwrap();
        let (sender, orders) = mpsc::channel(256);
        let (driver, clerk) = RolloutDriver::new(RolloutParts {
            documents: documents.clone(),
            audit: audit.clone(),
            key: self.key.clone(),
            roster,
            devices: DriverHandle::to(sender.clone()),
            calendar: calendar.clone(),
            rollouts: rollouts.clone(),
        });
        let line = Line {
            states: DesiredStates::new(shared, self.key.clone(), Settings::default()),
            devices: self.devices.clone(),
            documents,
            clerk,
            rollouts: rollouts.clone(),
        };
        let mut tasks = JoinSet::new();
        if running {
            tasks.spawn(driver.run(CancellationToken::new()));
            tasks.spawn(line.run(orders));
        }
        Process { store, rollouts, calendar, audit, orders: sender, tasks }
    }

    pub(super) async fn rollout(&self, id: &str) -> Rollout {
        self.documents.rollouts.find_json(id).await.unwrap().unwrap().value
    }

    pub(super) async fn attempts(&self, id: &str) -> BTreeMap<DeviceId, Attempt> {
        let all = self.documents.attempts.list_all(&format!("{id}/")).await.unwrap();
        all.into_iter().map(|(_, found)| (found.value.device.clone(), found.value)).collect()
    }

    /// The bundle that is wanted of a device.
    pub(super) async fn wanted(&self, device: &DeviceId) -> Option<String> {
        let found = self.documents.intents.find_json(&intent_id(device, &slot())).await.unwrap()?;
        found.value.active.map(|active| active.bundle.to_string())
    }

    /// The bundle that a device runs.
    pub(super) fn runs(&self, device: &DeviceId) -> Option<String> {
        self.devices.with(device, |device| device.active.as_ref().map(|active| active.bundle.to_string()))
    }

    pub(super) async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        let begun = Instant::now();
        while !holds().await {
            if begun.elapsed() > DEADLINE {
                for (_, rollout) in self.documents.rollouts.list_all("").await.unwrap() {
                    eprintln!("{}", serde_json::to_string_pretty(&rollout.value).unwrap());
                }
                eprintln!("{:#?}", self.devices.all());
                panic!("waited in vain: {what}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn reaches(&self, id: &str, state: StateName) {
        let what = format!("{id} is {state} and has nothing left to do");
        self.until(&what, || async {
            let rollout = self.rollout(id).await;
            rollout.state.name() == state && rollout.pending.is_empty()
        })
        .await;
    }

    /// Kinds of the alerts about one rollout, by time.
    pub(super) async fn alerts(&self, rollout: &str) -> Vec<AlertKind> {
        let raised = Repository::<AlertEvent>::new(self.documents.store.clone(), RAISED);
        let all = raised.list_all("").await.unwrap();
        let mut all: Vec<_> = all.into_iter().map(|(_, found)| found.value).collect();
        all.retain(|event| event.subject.rollout.as_ref().is_some_and(|id| id.as_str() == rollout));
        all.sort_by_key(|event| event.at);
        all.into_iter().map(|event| event.kind).collect()
    }

    /// Nothing that was ever committed broke an invariant, and nobody had two turns.
    pub(super) fn check(&self) {
        let broken = self.store.coat.broken.lock();
        assert!(broken.is_empty(), "{broken:#?}");
        assert!(self.store.coat.commits.load(Ordering::SeqCst) > 0 && self.dir.path().exists());
        for (id, device) in self.devices.all() {
            let mut told = device.told.clone();
            told.dedup();
            assert_eq!(told, device.told, "{id} was told twice");
        }
    }
}

/// A controller, as far as rollouts go.
pub(super) struct Process {
    store: Arc<Coated<Mortal>>,
    pub(super) rollouts: Rollouts,
    pub(super) calendar: Calendars,
    pub(super) audit: Arc<AuditLog>,
    orders: mpsc::Sender<Order>,
    tasks: JoinSet<()>,
}

impl Process {
    pub(super) async fn start_rollout(&self, plan: Plan, id: &str) -> Result<Rollout, StartError> {
        let bundle: BundleName = plan.rollout.bundle.clone();
        let envelope = EnvelopeDigest::of(bundle.to_string().as_bytes());
        let request = NewRolloutRequest {
            plan,
            release: Release { bundle, envelope, envelope_size: 7, download: 7 },
            confirmed: true,
            start: true,
            reason: String::new(),
        };
        self.rollouts.start(request, id.parse().unwrap(), &author(), clock::now()).await
    }

    pub(super) async fn roll(&self, plan: Plan, id: &str) {
        self.start_rollout(plan, id).await.unwrap();
    }

    pub(super) async fn order(&self, id: &str, actor: &Actor, event: Event) -> Result<Rollout, OrderError> {
        let id: RolloutId = id.parse().unwrap();
        self.rollouts.order(&id, actor, "rollout.order", &event, clock::now()).await
    }

    /// Devices come to see what is wanted of them, and say where they are.
    pub(super) async fn visit(&self, devices: &[DeviceId]) {
        self.orders.send(Order::Devices(devices.to_vec())).await.unwrap();
    }

    /// The device leaves the fleet.
    pub(super) async fn remove(&self, devices: &Devices, id: &DeviceId) {
        devices.with(id, |device| device.enrolled = false);
        self.orders.send(Order::Removed(id.clone())).await.unwrap();
    }

    /// Returns once it has died of its own death.
    pub(super) async fn dies(mut self) {
        self.store.coat.died().await;
        self.tasks.shutdown().await;
    }

    pub(super) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// The way from desired states to devices, and back what they say: what the device driver and the link do.
struct Line {
    states: DesiredStates,
    devices: Arc<Devices>,
    documents: Documents,
    clerk: Clerk,
    rollouts: Rollouts,
}

impl Line {
    async fn run(self, mut orders: mpsc::Receiver<Order>) {
        // Everybody connects anew.
        for device in self.devices.ids() {
            self.bring(&device).await;
        }
        while let Some(order) = orders.recv().await {
            match order {
                Order::Devices(devices) => {
                    for device in devices {
                        self.bring(&device).await;
                    }
                }
                Order::Removed(device) => {
                    self.rollouts.left_fleet(&device, clock::now()).await.unwrap();
                    self.states.forget(&device).await.unwrap();
                }
                Order::TrustChanged | Order::SettingsChanged => {}
            }
        }
    }

    async fn bring(&self, device: &DeviceId) {
        let generation = self.devices.with(device, |device| device.generation);
        let reason = Reason { reported: Some(generation), nonce: None };
        self.states.refresh(device, &reason, 1, clock::now()).await.unwrap();
        let record = self.states.stored(device).await.unwrap();
        let Some((report, ends)) = self.devices.meets(device, record.as_ref().map(|record| &record.desired))
        else {
            return;
        };
        assert!(report.slots.keys().all(|slot| slot.as_str() == SLOT));
        self.clerk.take(report).await;
        for end in ends {
            loop {
                let mut working = self.rollouts.working();
                let mut ears = Ears::new(&self.documents);
                ears.hear(&mut working, device, &end, true, clock::now()).await.unwrap();
                match self.documents.store.commit(working.stage(Transaction::new()).unwrap()).await {
                    Ok(_) => break self.rollouts.after(working.aftermath()),
                    Err(StoreError::StaleRevision { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            // Acknowledged.
            self.devices.with(device, |device| device.ends.retain(|other| other.seq != end.seq));
        }
    }
}
