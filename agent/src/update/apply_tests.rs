//! The updater as a whole: real files, real signatures, real machine; the controller, the server and
//! the probe are stand-ins at their traits. Time is virtual.

use super::*;
use crate::update::{
    bundles::BundleFiles,
    testing::{DAY, Signers, device, today},
    transfer::{BlockLink, Blocks, LinkDown},
};
use async_trait::async_trait;
use edgefleet_shared::{
    bundle::Manifest,
    desired::{Assigned, Threshold},
    digest::{BlobDigest, BundleDigest, EnvelopeDigest},
    ids::{AttemptId, BundleName},
    probe::{Confinement, PROBE_PROTOCOL, ProbeFailure, ProbeVerdict},
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
    /// Bundles the server cannot load, ones that misbehave, ones the probe refuses.
    unloadable: Mutex<BTreeSet<BundleDigest>>,
    sick: Mutex<BTreeSet<BundleName>>,
    refused: Mutex<BTreeSet<BundleDigest>>,
    probes: Mutex<u32>,
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
            header: BlockHeader { schema: TRANSFER_SCHEMA, id: request.id.clone(), object: request.object, answer },
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
        tokio::time::sleep(Duration::from_millis(100)).await;
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
    async fn activate(
        &self,
        slot: &SlotName,
        files: BundleFiles,
        manifest: Manifest,
        name: BundleName,
        digest: BundleDigest,
        attempt: AttemptId,
    ) -> Result<(), Refusal> {
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
    }
    fn health(&self, slot: &SlotName) -> SlotHealth {
        let serving = self.serving.lock();
        match serving.get(slot).filter(|(name, _)| self.sick.lock().contains(name)) {
            Some((name, _)) => SlotHealth::Bad(format!("`{name}` fails 9 of 10 requests")),
            None => SlotHealth::Good,
        }
    }
    fn thresholds(&self, slot: &SlotName, thresholds: Vec<Threshold>) {
        self.thresholds.lock().insert(slot.clone(), thresholds.len());
    }
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
        Self { home: home.to_owned(), _dir: None, signers, outside, reserve: 0, running: None }
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

    async fn start(&mut self) {
        let blocks = Blocks::new(self.outside.clone(), device(), &format!("r{}", rand::rng().random::<u32>()));
        *self.outside.blocks.lock() = Some(blocks.clone());
        self.outside.serving.lock().clear(); // a new process serves nothing
        let config = UpdaterConfig {
            data_dir: self.home.join("data"),
            trust_dir: self.home.join("trust"),
            device: device(),
            hardware: "x86".into(),
            reserve_bytes: self.reserve,
            random: [7; 16],
            clock: today,
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
        let (tx, rx) = mpsc::channel(8);
        self.running = Some((tx, tokio::spawn(updater.run(rx))));
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

#[tokio::test(start_paused = true)]
async fn a_signed_bundle_is_fetched_tested_served_and_committed() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 700_000);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    let report = rig.until_phase("digits", 1, Phase::Committed).await;
    assert_eq!((report.generation, report.trust_version, report.refused), (1, 1, None));
    assert_eq!(rig.serving("digits"), Some(1));
    assert_eq!(rig.terminals(), [(Phase::Committed, 1)]);
    let terminal = rig.outside.terminals.lock()[0].clone();
    assert_eq!(terminal.fetched_bytes, one.bytes, "every byte once");
    assert!((60_000..120_000).contains(&terminal.took_ms), "{} ms with probation", terminal.took_ms);
    assert_eq!(*rig.outside.probes.lock(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_bundle_serves_before_any_network() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 50_000);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.kill().await;
    *rig.outside.down.lock() = true;
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1), "at the moment start() returns");
}

#[tokio::test(start_paused = true)]
async fn going_back_to_the_bundle_before_asks_the_network_for_nothing() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until_phase("digits", 2, Phase::Committed).await;
    let asked = rig.outside.asked.lock().len();
    let back = Assigned { attempt: AttemptId { number: 9, ..one.assigned.attempt.clone() }, ..one.assigned };
    rig.desire(3, &[("digits", &back)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    assert_eq!((rig.serving("digits"), rig.outside.asked.lock().len()), (Some(1), asked));
    assert_eq!(*rig.outside.probes.lock(), 2);
    let serving = rig.outside.serving.lock().values().next().unwrap().1.number;
    assert_eq!(serving, 9, "the server knows the attempt it measures for");
}

#[tokio::test(start_paused = true)]
async fn what_the_probe_refuses_is_not_served_and_not_tried_again() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.outside.refused.lock().insert(two.digest);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    let report = rig.until_phase("digits", 2, Phase::PreflightFailed).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!((error.code, error.generation), (RefusalCode::GoldenMismatch, Some(2)));
    assert!(error.message.contains("0.7 instead of 0.1"));
    assert_eq!(rig.serving("digits"), Some(1));
    rig.kill().await;
    rig.start().await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.desire(3, &[("digits", &two.assigned)]).await;
    rig.until("generation 3", |r| r.generation == 3).await;
    assert_eq!(*rig.outside.probes.lock(), 2, "not probed again");
    assert_eq!(rig.terminals(), [(Phase::Committed, 1), (Phase::PreflightFailed, 2)]);
    assert!(!rig.home.join("data/bundles/blobs/sha256").join(BlobDigest::of(&two.model).to_hex()).exists());
}

#[tokio::test(start_paused = true)]
async fn a_release_that_no_publisher_signed_is_refused_before_its_manifest_is_fetched() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 90_000);
    let forged = {
        let thief = Signers::new();
        let raw = thief.release(2, &one.manifest);
        rig.outside.objects.lock().insert(FetchObject::Blob(BlobDigest::of(&raw)), raw.clone());
        rig.signers.assigned(&raw, 2, 2)
    };
    rig.start().await;
    rig.desire(1, &[("digits", &forged)]).await;
    let report = rig.until_phase("digits", 2, Phase::VerifyFailed).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!(error.code, RefusalCode::SignatureInvalid);
    assert_eq!(rig.outside.asked.lock().len(), 1, "only the release was asked for");
    assert_eq!(rig.serving("digits"), None);
}

#[tokio::test(start_paused = true)]
async fn a_sick_bundle_goes_back_without_the_network() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.outside.sick.lock().insert(two.assigned.bundle.clone());
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until("2 on probation or beyond", |_| rig.serving("digits") == Some(2)).await;
    *rig.outside.down.lock() = true;
    let report = rig.until_phase("digits", 2, Phase::RolledBackLocal).await;
    assert_eq!(report.slots.values().next().unwrap().active.as_ref().unwrap().bundle.counter, 1);
    assert_eq!(rig.serving("digits"), Some(1));
    assert_eq!(rig.terminals().last(), Some(&(Phase::RolledBackLocal, 2)));
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_does_not_load_leaves_the_former_serving() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.outside.unloadable.lock().insert(two.digest);
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until_phase("digits", 2, Phase::PreflightFailed).await;
    assert_eq!(rig.serving("digits"), Some(1));
    assert_eq!(*rig.outside.probes.lock(), 3, "tested once more before the second try");
}

#[tokio::test(start_paused = true)]
async fn damaged_files_are_noticed_at_the_start_and_fetched_anew() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 90_000), rig.publish(2, 90_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &two.assigned)]).await;
    rig.until_phase("digits", 2, Phase::Committed).await;
    rig.kill().await;
    let path = rig.home.join("data/bundles/blobs/sha256").join(BlobDigest::of(&two.model).to_hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1_000] ^= 4;
    fs::write(&path, bytes).unwrap();
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1), "the one before serves meanwhile");
    rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!(rig.serving("digits"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn refused_documents_are_reported_and_change_nothing() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    rig.start().await;
    rig.desire(5, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    let code = |r: &DeviceReport| r.refused.as_ref().map(|r| r.code);
    rig.desire(4, &[]).await;
    rig.until("replay refused", |r| code(r) == Some(RefusalCode::GenerationReplayed)).await;
    rig.desire(5, &[]).await;
    rig.until("equivocation refused", |r| code(r) == Some(RefusalCode::Equivocation)).await;
    rig.tell(Command::Desired(Bytes::from_static(b"junk"))).await;
    rig.until("junk refused", |r| code(r) == Some(RefusalCode::DocumentMalformed)).await;
    let foreign = Signers::new();
    let raw = foreign.seal_desired(&foreign.desired_document(9, &[]));
    rig.tell(Command::Desired(raw.into())).await;
    let report = rig.until("foreign refused", |r| code(r) == Some(RefusalCode::SignatureInvalid)).await;
    assert_eq!((report.generation, rig.serving("digits")), (5, Some(1)));
    rig.desire(5, &[("digits", &one.assigned)]).await;
    rig.until("the sound one again", |r| r.refused.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_trust_document_is_fetched_first_or_reported() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    rig.start().await;
    let mut desired = rig.signers.desired_document(1, &[("digits", one.assigned.clone())]);
    desired.trust_version = 3;
    let raw: Bytes = rig.signers.seal_desired(&desired).into();
    rig.outside.objects.lock().insert(FetchObject::Trust(2), rig.signers.trust(2));
    rig.tell(Command::Desired(raw.clone())).await;
    let report =
        rig.until("trust 3 missed", |r| r.refused.as_ref().is_some_and(|r| r.code == RefusalCode::TrustBehind)).await;
    assert_eq!((report.trust_version, report.generation), (2, 0), "as far as the chain went");
    rig.outside.objects.lock().insert(FetchObject::Trust(3), rig.signers.trust(3));
    rig.tell(Command::Desired(raw)).await;
    let report = rig.until_phase("digits", 1, Phase::Committed).await;
    assert_eq!((report.trust_version, report.refused), (3, None));
}

#[tokio::test(start_paused = true)]
async fn a_rotated_controller_key_is_learnt_from_the_next_trust_document() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    rig.start().await;
    let successor = Signers::new();
    let mut next: Trust = rig.signers.trust_document(2);
    next.keys.insert(successor.controller.public().id(), successor.controller.public());
    next.roles.controller.keys = vec![successor.controller.public().id()];
    let raw = seal(TRUST_TYPE, &next, &[&rig.signers.root]);
    rig.outside.objects.lock().insert(FetchObject::Trust(2), raw);
    let desired = rig.signers.desired_document(1, &[("digits", one.assigned.clone())]);
    rig.tell(Command::Desired(successor.seal_desired(&desired).into())).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    // The old key is worth nothing any more, after a restart too.
    rig.kill().await;
    rig.start().await;
    rig.desire(2, &[]).await;
    rig.until("revoked key refused", |r| {
        r.refused.as_ref().is_some_and(|r| r.code == RefusalCode::SignatureInvalid)
    })
    .await;
    assert_eq!(rig.serving("digits"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_trust_state_goes_on_serving_and_takes_only_an_answer_to_its_nonce() {
    let mut rig = Rig::new();
    let (one, two) = (rig.publish(1, 5_000), rig.publish(2, 5_000));
    rig.start().await;
    rig.desire(7, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.kill().await;
    for side in ["trust/trust.a", "trust/trust.b"] {
        fs::write(rig.home.join(side), b"torn").unwrap();
    }
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1));
    let report = rig.until("nonce reported", |r| r.nonce.is_some()).await;
    rig.desire(3, &[("digits", &two.assigned)]).await; // a replay, now that no generation is known
    rig.until("refused", |r| r.refused.as_ref().is_some_and(|r| r.code == RefusalCode::StateLost)).await;
    let mut answer = rig.signers.desired_document(8, &[("digits", two.assigned.clone())]);
    answer.nonce = report.nonce;
    rig.tell(Command::Desired(rig.signers.seal_desired(&answer).into())).await;
    let report = rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!((report.nonce, report.generation), (None, 8));
}

#[tokio::test(start_paused = true)]
async fn slots_are_independent_and_share_what_they_can() {
    let mut rig = Rig::new();
    let (one, two, bad) = (rig.publish(1, 400_000), rig.publish(2, 400_000), rig.publish(3, 400_000));
    rig.outside.refused.lock().insert(bad.digest);
    rig.start().await;
    let slots = [("a", &one.assigned), ("b", &two.assigned), ("c", &bad.assigned), ("d", &one.assigned)];
    rig.desire(1, &slots).await;
    rig.until_phase("c", 3, Phase::PreflightFailed).await;
    for (slot, counter) in [("a", 1), ("b", 2), ("d", 1)] {
        rig.until_phase(slot, counter, Phase::Committed).await;
        assert_eq!(rig.serving(slot), Some(counter));
    }
    let model = FetchObject::Blob(BlobDigest::of(&one.model));
    let bytes = *rig.outside.asked_bytes.lock();
    assert!(rig.outside.asked.lock().contains(&model));
    assert!(bytes < one.bytes + two.bytes + bad.bytes + 5_000, "{bytes}: a shared blob came twice");
    // One slot gone: the others do not notice.
    rig.desire(2, &[("a", &one.assigned), ("b", &two.assigned)]).await;
    rig.until("d is gone", |r| r.slots.len() == 2).await;
    assert_eq!((rig.serving("a"), rig.serving("b"), rig.serving("d")), (Some(1), Some(2), None));
    let models = rig.home.join("data/bundles/blobs/sha256");
    assert!(models.join(BlobDigest::of(&one.model).to_hex()).exists(), "slot a still names it");
    assert!(!models.join(BlobDigest::of(&bad.model).to_hex()).exists());
}

#[tokio::test(start_paused = true)]
async fn terminal_reports_wait_for_a_broken_outbox() {
    let mut rig = Rig::new();
    let one = rig.publish(1, 5_000);
    *rig.outside.outbox_broken.lock() = true;
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.stop().await;
    assert_eq!(rig.terminals(), []);
    *rig.outside.outbox_broken.lock() = false;
    rig.start().await;
    assert_eq!(rig.terminals(), [(Phase::Committed, 1)]);
    rig.stop().await;
    rig.start().await;
    assert_eq!(rig.terminals().len(), 1, "once it is taken over, it is not offered again");
}

/// The heart of it: killed at any moment of an update, the device serves a whole bundle at once after
/// its restart and ends where it should.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_moment_leaves_a_serving_device_that_gets_there() {
    let mut phases = BTreeMap::<Phase, u32>::new();
    for n in 0..60u64 {
        let mut rig = Rig::new();
        let (one, two) = (rig.publish(1, 60_000), rig.publish(2, 1_300_000));
        rig.start().await;
        rig.desire(1, &[("digits", &one.assigned)]).await;
        rig.until_phase("digits", 1, Phase::Committed).await;
        rig.desire(2, &[("digits", &two.assigned)]).await;
        // An update takes about 0.7 s and 60 s of probation; dense where things happen.
        let at = if n < 50 { n * 15 } else { n * 1_200 };
        tokio::time::sleep(Duration::from_millis(at)).await;
        rig.kill().await;
        let seen = rig.outside.report.borrow().as_ref().map(|r| r.slots.values().next().unwrap().phase);
        *phases.entry(seen.unwrap()).or_default() += 1;
        *rig.outside.down.lock() = true;
        rig.start().await;
        assert!(matches!(rig.serving("digits"), Some(1 | 2)), "killed after {at} ms");
        *rig.outside.down.lock() = false;
        rig.desire(2, &[("digits", &two.assigned)]).await;
        rig.until_phase("digits", 2, Phase::Committed).await;
        assert_eq!(rig.serving("digits"), Some(2));
        let terminals = rig.terminals();
        assert_eq!(terminals.iter().filter(|t| **t == (Phase::Committed, 2)).count(), 1, "{terminals:?}");
    }
    for phase in [Phase::Fetching, Phase::Testing, Phase::Switching, Phase::Probation, Phase::Committed] {
        assert!(phases.get(&phase).is_some_and(|n| *n > 0), "no kill struck in {phase}: {phases:?}");
    }
}

/// A small file system of its own, where root may mount one.
struct Tmpfs(PathBuf);
impl Tmpfs {
    fn mount(bytes: u64) -> Option<Self> {
        let path = tempfile::tempdir().unwrap().keep();
        let size = format!("size={bytes}");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .stderr(std::process::Stdio::null())
            .status();
        if status.is_ok_and(|s| s.success()) {
            return Some(Self(path));
        }
        let _ = fs::remove_dir(&path);
        eprintln!("not run: this user may not mount a tmpfs");
        None
    }
}
impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_does_not_fit_is_refused_before_a_byte_is_fetched() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let mut rig = Rig::at(&disk.0);
    rig.reserve = 1 << 20;
    let (one, big) = (rig.publish(1, 500_000), rig.publish(2, 3_500_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &big.assigned)]).await;
    let report = rig.until_phase("digits", 2, Phase::DownloadFailed).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!(error.code, RefusalCode::DiskFull);
    assert!(!rig.outside.asked.lock().contains(&FetchObject::Blob(BlobDigest::of(&big.model))));
    assert_eq!(rig.serving("digits"), Some(1));
    rig.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_up_meanwhile_costs_the_part_and_nothing_else() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let mut rig = Rig::at(&disk.0);
    let (one, big) = (rig.publish(1, 500_000), rig.publish(2, 2_000_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &big.assigned)]).await;
    rig.until("halfway", |r| {
        r.slots.values().next().unwrap().progress.is_some_and(|p| p.done_bytes > 0)
    })
    .await;
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![1; 8 << 20]).unwrap_err();
    let full = |r: &DeviceReport| {
        let slot = r.slots.values().next().unwrap();
        slot.last_error.as_ref().is_some_and(|e| e.code == RefusalCode::DiskFull)
            || r.refused.as_ref().is_some_and(|e| e.code == RefusalCode::DiskFull)
    };
    rig.until("full", full).await;
    assert_eq!(rig.serving("digits"), Some(1));
    // With the disk still full, a restart serves all the same.
    rig.kill().await;
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1));
    fs::remove_file(&filler).unwrap();
    rig.desire(2, &[("digits", &big.assigned)]).await;
    rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!(rig.serving("digits"), Some(2));
    rig.kill().await;
}

/// Real kills: a second process runs the whole story and is killed (SIGKILL) at each failpoint in turn;
/// this one then restarts the device from its files.
#[cfg(feature = "failpoints")]
mod kills {
    use super::*;
    use crate::failpoint::NAMES;
    use std::{os::unix::process::ExitStatusExt, process::Command as Process};

    const HOME: &str = "EDGEFLEET_TEST_HOME";

    fn rig(home: &Path) -> Rig {
        let signers = Signers::kept_in(home);
        let outside = Arc::new(Outside::default());
        outside.objects.lock().insert(FetchObject::Trust(2), signers.trust(2));
        Rig { home: home.to_owned(), _dir: None, signers, outside, reserve: 0, running: None }
    }

    /// One committed, two committed, three goes back; trust 2 on the way.
    #[tokio::test(start_paused = true)]
    #[ignore = "run by the kill matrix in a process of its own"]
    async fn story() {
        let home = PathBuf::from(std::env::var_os(HOME).expect("started by the matrix"));
        let mut rig = rig(&home);
        let (one, two, three) = (rig.publish(1, 60_000), rig.publish(2, 1_300_000), rig.publish(3, 9_000));
        rig.outside.sick.lock().insert(three.assigned.bundle.clone());
        rig.start().await;
        rig.desire(1, &[("digits", &one.assigned)]).await;
        rig.until_phase("digits", 1, Phase::Committed).await;
        let mut desired = rig.signers.desired_document(2, &[("digits", two.assigned.clone())]);
        desired.trust_version = 2;
        rig.tell(Command::Desired(rig.signers.seal_desired(&desired).into())).await;
        rig.until_phase("digits", 2, Phase::Committed).await;
        rig.desire(3, &[("digits", &three.assigned)]).await;
        rig.until_phase("digits", 3, Phase::RolledBackLocal).await;
        rig.desire(4, &[]).await;
        rig.until("gone", |r| r.slots.is_empty() || r.slots.values().all(|s| s.phase == Phase::Idle)).await;
        rig.kill().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_kill_at_every_durable_step_is_survived() {
        let mut struck = 0;
        // Names are passed often: the first, third and sixth time are different moments.
        for (name, nth) in NAMES.iter().flat_map(|name| [1, 3, 6].map(|nth| (*name, nth))) {
            let dir = tempfile::tempdir().unwrap();
            let mut rig = rig(dir.path());
            let raw = rig.signers.trust(1);
            TrustStore::create(&dir.path().join("trust"), &raw, EnvelopeDigest::of(&raw)).unwrap();
            let status = Process::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "update::apply::tests::kills::story"])
                .env(HOME, dir.path())
                .env("EDGEFLEET_FAILPOINT", format!("{name}#{nth}"))
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap();
            if nth > 1 && status.success() {
                continue; // not passed that often
            }
            assert_eq!(status.signal(), Some(9), "{name}#{nth}: {status}");
            struck += 1;

            let two = {
                rig.publish(1, 60_000);
                rig.publish(3, 9_000);
                rig.publish(2, 1_300_000)
            };
            *rig.outside.down.lock() = true;
            rig.start().await;
            let report = rig.outside.report.borrow().clone().unwrap();
            assert_eq!(report.nonce, None, "{name}#{nth}: the trust state survived");
            if let Some(active) = report.slots.values().next().and_then(|slot| slot.active.clone()) {
                assert_eq!(rig.serving("digits"), Some(active.bundle.counter), "{name}#{nth}");
            }
            *rig.outside.down.lock() = false;
            let again = Assigned { attempt: AttemptId { number: 99, ..two.assigned.attempt }, ..two.assigned };
            rig.desire(9, &[("digits", &again)]).await;
            rig.until("two serves", |r| {
                r.slots.values().any(|s| {
                    s.phase == Phase::Committed && s.active.as_ref().is_some_and(|a| a.attempt.number == 99)
                })
            })
            .await;
            assert_eq!(rig.serving("digits"), Some(2), "{name}#{nth}");
            rig.stop().await;
            let left: Vec<_> = fs::read_dir(dir.path().join("data/bundles/blobs/sha256"))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| n.contains('.'))
                .collect();
            assert_eq!(left, Vec::<String>::new(), "{name}#{nth}: parts were left behind");
        }
        println!("{struck} kills at {} failpoints", NAMES.len());
        assert!(struck > 2 * NAMES.len());
    }
}
