//! The updater as a whole: real files, real signatures, real machine; the controller, the server and
//! the probe are stand-ins at their traits. Time is virtual.

mod beside;
mod disk;
mod kills;
mod stories;

use super::*;
use crate::update::{
    bundles::BundleFiles,
    testing::{DAY, Signers, device, today},
    transfer::{BlockLink, Blocks, LinkDown},
};
use async_trait::async_trait;
use edgefleet_shared::{
    bundle::Manifest,
    desired::{Assigned, ShadowSettings, Threshold},
    digest::{BlobDigest, BundleDigest, EnvelopeDigest},
    ids::{AttemptId, BundleName},
    probe::{Confinement, PROBE_PROTOCOL, ProbeFailure, ProbeVerdict},
    reported::{Phase, ShedReason},
    telemetry::batch::TerminalReport,
    transfer::{
        BlockAnswer, BlockFrame, BlockHeader, FetchObject, FetchRequest, TRANSFER_SCHEMA, block_length,
    },
    trust::{Trust, envelope::TRUST_TYPE, seal},
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, fs};

type Slot = &'static str;

/// The controller's side of the transfer, and everything the updater touches.
#[derive(Default)]
struct Outside {
    objects: Mutex<HashMap<FetchObject, Vec<u8>>>,
    asked: Mutex<Vec<FetchObject>>,
    asked_bytes: Mutex<u64>,
    down: Mutex<bool>,
    blocks: Mutex<Option<Arc<Blocks>>>,
    serving: Mutex<BTreeMap<SlotName, (BundleName, AttemptId)>>,
    shadows: Mutex<BTreeMap<SlotName, (BundleName, AttemptId)>>,
    shadow_loads: Mutex<u32>,
    /// Bundles the server cannot load, ones that misbehave, ones the probe refuses.
    unloadable: Mutex<BTreeSet<BundleDigest>>,
    /// What runs on nothing but an engine of a slot.
    needed: Mutex<Option<String>>,
    sick: Mutex<BTreeSet<BundleName>>,
    refused: Mutex<BTreeSet<BundleDigest>>,
    probes: Mutex<u32>,
    /// So many next probes panic.
    broken_probes: Mutex<u32>,
    /// Probes that run now, and the most that ever did.
    testing: Mutex<(u32, u32)>,
    thresholds: Mutex<BTreeMap<SlotName, usize>>,
    terminals: Mutex<Vec<TerminalReport>>,
    outbox_broken: Mutex<bool>,
    report: watch::Sender<Option<DeviceReport>>,
}

#[async_trait]
impl BlockLink for Outside {
    async fn send(&self, request: FetchRequest) -> Result<(), LinkDown> {
        if *self.down.lock() {
            return Err(LinkDown);
        }
        self.asked.lock().push(request.object);
        let data = self.objects.lock().get(&request.object).cloned();
        let frame = |answer, payload: &[u8]| BlockFrame {
            header: BlockHeader {
                schema: TRANSFER_SCHEMA,
                id: request.id.clone(),
                object: request.object,
                answer,
            },
            payload: Bytes::copy_from_slice(payload),
        };
        let frames: Vec<_> = match &data {
            None => vec![frame(BlockAnswer::NotFound, b"")],
            Some(data) => request
                .blocks
                .iter()
                .flat_map(|(from, to)| *from..*to)
                .map(|index| {
                    let (size, total) = (request.block_bytes, data.len() as u64);
                    let len = block_length(index, size, total);
                    *self.asked_bytes.lock() += len;
                    let start = (index * u64::from(size)) as usize;
                    let answer = BlockAnswer::Block { index, block_bytes: size, total_bytes: total };
                    frame(answer, &data[start..start + len as usize])
                })
                .collect(),
        };
        let blocks = self.blocks.lock().clone().unwrap();
        tokio::spawn(async move {
            for frame in frames {
                tokio::time::sleep(Duration::from_millis(10)).await;
                blocks.deliver(frame);
            }
        });
        Ok(())
    }
}

#[async_trait]
impl Probe for Outside {
    async fn probe(&self, files: BundleFiles, manifest: &Manifest) -> ProbeVerdict {
        *self.probes.lock() += 1;
        {
            let mut broken = self.broken_probes.lock();
            if *broken > 0 {
                *broken -= 1;
                panic!("the probe's own code is broken");
            }
            let mut testing = self.testing.lock();
            *testing = (testing.0 + 1, testing.1.max(testing.0 + 1));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.testing.lock().0 -= 1;
        let bytes = fs::read(&files.manifest_path).unwrap();
        for blob in manifest.blobs() {
            let data = fs::read(files.blobs_dir.join(blob.digest.to_hex())).unwrap();
            assert_eq!(BlobDigest::of(&data), blob.digest, "an unverified blob reached the probe");
        }
        let digest = BundleDigest::of(&bytes);
        let failure = self.refused.lock().contains(&digest).then(|| ProbeFailure {
            code: RefusalCode::GoldenMismatch,
            message: "golden `seven`: 0.7 instead of 0.1".into(),
            node: None,
            op: None,
        });
        ProbeVerdict {
            passed: vec![],
            protocol: PROBE_PROTOCOL,
            agent_version: "test".into(),
            bundle: manifest.name(),
            digest,
            ok: failure.is_none(),
            failure,
            engine: None,
            golden: vec![],
            operators: BTreeMap::new(),
            measured: None,
            confinement: Confinement {
                landlock: "enforced".into(),
                seccomp: "enforced".into(),
                limits: "enforced".into(),
            },
        }
    }
}

#[async_trait]
impl Host for Outside {
    async fn activate(&self, slot: &SlotName, bundle: Loadable) -> Result<(), Refusal> {
        let Loadable { files, manifest, name, digest, attempt } = bundle;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let model = &manifest.artifacts[0].blob;
        let data = fs::read(files.blobs_dir.join(model.digest.to_hex())).unwrap();
        assert_eq!(BlobDigest::of(&data), model.digest, "an unverified model would be served");
        if self.unloadable.lock().contains(&digest) {
            return Err(Refusal {
                code: RefusalCode::ActivationFailed,
                retry: RefusalCode::ActivationFailed.retry(),
                message: "does not load".into(),
                subject: None,
                attempt: None,
                generation: None,
                at: today(),
            });
        }
        self.serving.lock().insert(slot.clone(), (name, attempt));
        Ok(())
    }
    async fn deactivate(&self, slot: &SlotName) {
        self.serving.lock().remove(slot);
        self.shadows.lock().remove(slot);
    }
    fn needed(&self, _: &SlotName) -> Option<String> {
        self.needed.lock().clone()
    }
    async fn shadow(
        &self,
        slot: &SlotName,
        bundle: Loadable,
        _settings: ShadowSettings,
    ) -> Result<(), Refusal> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(self.serving.lock().contains_key(slot), "a shadow of nothing");
        *self.shadow_loads.lock() += 1;
        self.shadows.lock().insert(slot.clone(), (bundle.name, bundle.attempt));
        Ok(())
    }
    async fn stop_shadow(&self, slot: &SlotName) {
        self.shadows.lock().remove(slot);
    }
    fn shadowed(&self, slot: &SlotName) -> Option<ShadowStatus> {
        let (name, _) = self.shadows.lock().get(slot)?.clone();
        let health = if self.sick.lock().contains(&name) {
            let reason = format!("`{name}` fails 9 of 10 mirrored requests");
            SlotHealth::Bad { code: RefusalCode::Unhealthy, reason }
        } else {
            SlotHealth::Good
        };
        let shed = [(ShedReason::QueueFull, 2)].into();
        Some(ShadowStatus { mirrored: 7, shed, health })
    }
    fn health(&self, slot: &SlotName) -> SlotHealth {
        let serving = self.serving.lock();
        match serving.get(slot).filter(|(name, _)| self.sick.lock().contains(name)) {
            Some((name, _)) => SlotHealth::Bad {
                code: RefusalCode::Unhealthy,
                reason: format!("`{name}` fails 9 of 10 requests"),
            },
            None => SlotHealth::Good,
        }
    }
    fn thresholds(&self, slot: &SlotName, thresholds: Vec<Threshold>) {
        self.thresholds.lock().insert(slot.clone(), thresholds.len());
    }
    fn slower(&self, _: &SlotName, _: Option<u32>) {}
}

#[async_trait]
impl Reports for Outside {
    fn reported(&self, report: DeviceReport) {
        self.report.send_replace(Some(report));
    }
    async fn terminal(&self, report: TerminalReport) -> anyhow::Result<()> {
        anyhow::ensure!(!*self.outbox_broken.lock(), "the outbox is broken");
        self.terminals.lock().push(report);
        Ok(())
    }
}

struct Bundle {
    assigned: Assigned,
    digest: BundleDigest,
    manifest: Vec<u8>,
    model: Vec<u8>,
    bytes: u64,
}

struct Rig {
    home: PathBuf,
    _dir: Option<tempfile::TempDir>,
    signers: Signers,
    outside: Arc<Outside>,
    reserve: u64,
    clock: fn() -> Timestamp,
    running: Option<(mpsc::Sender<Command>, tokio::task::JoinHandle<()>)>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { _dir: Some(dir), ..Self::at(&tempfile::tempdir().unwrap().keep()) }.moved()
    }
    /// Puts the home into the folder that is removed at the end.
    fn moved(mut self) -> Self {
        if let Some(dir) = &self._dir {
            let former = std::mem::replace(&mut self.home, dir.path().join("home"));
            fs::rename(former, &self.home).unwrap();
        }
        self
    }
    fn at(home: &Path) -> Self {
        let signers = Signers::new();
        let raw = signers.trust(1);
        TrustStore::create(&home.join("trust"), &raw, EnvelopeDigest::of(&raw)).unwrap();
        let outside = Arc::new(Outside::default());
        Self { home: home.to_owned(), _dir: None, signers, outside, reserve: 0, clock: today, running: None }
    }

    /// Publishes `digits@counter` with a model of `len` bytes.
    fn publish(&self, counter: u64, len: usize) -> Bundle {
        let model: Vec<u8> = (0..len).map(|n| (n as u64 * 13 + counter) as u8).collect();
        let golden = b"golden".to_vec();
        let blob = |data: &[u8]| format!(r#""digest":"{}","size":{}"#, BlobDigest::of(data), data.len());
        let manifest = format!(
            r#"{{"schema":1,"model":{{"name":"digits","counter":{counter},"version":"1","task":""}},
            "artifacts":[{{"format":"onnx","precision":"f32",{}}}],
            "interface":{{"inputs":[{{"name":"x","datatype":"FP32","shape":[-1,4]}}],
                          "outputs":[{{"name":"y","datatype":"FP32","shape":[-1,2]}}]}},
            "golden":[{{"name":"g",{},"rtol":0.001,"atol":0.0}}],
            "limits":{{"peak_memory_bytes":1000000,"p95_latency_ms":50.0,"batch_max":8}}}}"#,
            blob(&model),
            blob(&golden),
        )
        .into_bytes();
        Manifest::parse(&manifest).unwrap();
        let release = self.signers.release(counter, &manifest);
        let assigned = self.signers.assigned(&release, counter, counter as u32);
        let bytes = (model.len() + golden.len() + manifest.len() + release.len()) as u64;
        for data in [&model, &golden, &manifest, &release] {
            self.outside.objects.lock().insert(FetchObject::Blob(BlobDigest::of(data)), data.clone());
        }
        Bundle { assigned, digest: BundleDigest::of(&manifest), manifest, model, bytes }
    }

    fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }
    async fn start(&mut self) {
        let updater = self.started().await;
        let (tx, rx) = mpsc::channel(8);
        self.running = Some((tx, tokio::spawn(updater.run(rx))));
    }
    /// Started, but not yet running.
    async fn started(&self) -> Updater {
        let blocks =
            Blocks::new(self.outside.clone(), device(), &format!("r{}", rand::rng().random::<u32>()));
        *self.outside.blocks.lock() = Some(blocks.clone());
        self.outside.serving.lock().clear(); // a new process serves nothing
        self.outside.shadows.lock().clear();
        let config = UpdaterConfig {
            data_dir: self.data_dir(),
            trust_dir: self.home.join("trust"),
            device: device(),
            hardware: "x86".into(),
            reserve_bytes: self.reserve,
            random: [7; 16],
            clock: self.clock,
        };
        let world = World {
            probe: self.outside.clone(),
            host: self.outside.clone(),
            reports: self.outside.clone(),
            blocks,
            https: None,
        };
        let mut updater = Updater::open(config, world).unwrap();
        updater.start().await;
        updater
    }
    /// As kill -9: nothing is told, nothing is flushed.
    async fn kill(&mut self) {
        if let Some((_, task)) = self.running.take() {
            task.abort();
            let _ = task.await;
        }
    }
    async fn stop(&mut self) {
        if let Some((tx, task)) = self.running.take() {
            tx.send(Command::Stop).await.unwrap();
            task.await.unwrap();
        }
    }
    async fn tell(&self, command: Command) {
        self.running.as_ref().unwrap().0.send(command).await.unwrap();
    }
    async fn desire(&self, generation: u64, slots: &[(Slot, &Assigned)]) {
        let slots: Vec<_> = slots.iter().map(|(name, a)| (*name, (*a).clone())).collect();
        let raw = self.signers.seal_desired(&self.signers.desired_document(generation, &slots));
        self.tell(Command::Desired(raw.into())).await;
    }
    /// Waits until the newest report is as wanted; two virtual days are the limit.
    async fn until(&self, what: &str, wanted: impl Fn(&DeviceReport) -> bool) -> DeviceReport {
        let mut reports = self.outside.report.subscribe();
        let seen = reports.wait_for(|r| r.as_ref().is_some_and(&wanted));
        match tokio::time::timeout(2 * DAY, seen).await {
            Ok(report) => report.unwrap().clone().unwrap(),
            Err(_) => panic!("never {what}: {:#?}", self.outside.report.borrow().clone()),
        }
    }
    async fn until_phase(&self, slot: Slot, counter: u64, phase: Phase) -> DeviceReport {
        let name: SlotName = slot.parse().unwrap();
        self.until(&format!("{slot} {phase}"), |r| {
            r.slots.get(&name).is_some_and(|s| {
                let about = s.target.as_ref().or(s.active.as_ref());
                s.phase == phase && about.is_some_and(|i| i.bundle.counter == counter)
            })
        })
        .await
    }
    fn serving(&self, slot: Slot) -> Option<u64> {
        self.outside.serving.lock().get(&slot.parse().unwrap()).map(|(name, _)| name.counter)
    }
    fn terminals(&self) -> Vec<(Phase, u64)> {
        self.outside.terminals.lock().iter().map(|r| (r.phase, r.target.bundle.counter)).collect()
    }
}
