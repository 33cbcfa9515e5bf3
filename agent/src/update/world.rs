//! What the updater needs of the rest of the agent, as traits, and what it tells.

use super::{bundles::BundleFiles, https::RangeSource, transfer::Blocks};
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    bundle::Manifest,
    desired::{Settings, ShadowSettings, Threshold},
    digest::BundleDigest,
    ids::{AttemptId, BundleName, SlotName},
    message::TrustHead,
    probe::ProbeVerdict,
    reported::{Refusal, RefusalCode, ShedReason, SlotReport},
    telemetry::batch::TerminalReport,
    time::Timestamp,
};
use std::{collections::BTreeMap, sync::Arc};

/// Tests a bundle in a confined child process.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Never fails: what went wrong is in the verdict. A child outlives a dropped future, up to its own
    /// time limit.
    async fn probe(&self, files: BundleFiles, manifest: &Manifest) -> ProbeVerdict;
}

/// How a slot serves, as far as the server can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotHealth {
    Good,
    /// Sends a bundle on probation back, and ends a shadow. What, and why for people.
    Bad {
        code: RefusalCode,
        reason: String,
    },
}

/// A bundle whose files are on disk and were verified.
#[derive(Clone, Debug)]
pub struct Loadable {
    pub files: BundleFiles,
    pub manifest: Manifest,
    pub name: BundleName,
    pub digest: BundleDigest,
    pub attempt: AttemptId,
}

/// What a shadow was given to do since it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowStatus {
    /// Inputs it was given.
    pub mirrored: u64,
    /// Requests that were to be mirrored and were not.
    pub shed: BTreeMap<ShedReason, u64>,
    pub health: SlotHealth,
}

/// Serves bundles to clients.
#[async_trait]
pub trait Host: Send + Sync {
    /// Serves this bundle in `slot` from now on; requests in flight end on the one before.
    ///
    /// Idempotent: the bundle already served, perhaps under another attempt, costs nothing. If the
    /// future is dropped or fails, what was served before must go on; it may be called again at once.
    ///
    /// # Errors
    /// A refusal with [`RefusalCode::ActivationFailed`](edgefleet_shared::reported::RefusalCode) or a
    /// more precise code.
    async fn activate(&self, slot: &SlotName, bundle: Loadable) -> Result<(), Refusal>;
    /// Serves nothing in `slot` any more.
    async fn deactivate(&self, slot: &SlotName);
    /// What that serves runs on nothing but the engine of this slot, in words; `None` if the slot can be emptied.
    fn needed(&self, slot: &SlotName) -> Option<String>;
    /// Asked only while a bundle is on probation.
    fn health(&self, slot: &SlotName) -> SlotHealth;
    /// Runs this bundle on the inputs of the slot's active one, which notices nothing of it. Idempotent:
    /// the same bundle under the same attempt only takes the settings over.
    ///
    /// # Errors
    /// As [`activate`](Self::activate).
    async fn shadow(
        &self,
        slot: &SlotName,
        bundle: Loadable,
        settings: ShadowSettings,
    ) -> Result<(), Refusal>;
    /// Ends the slot's shadow, if it has one.
    async fn stop_shadow(&self, slot: &SlotName);
    /// `None` if the slot has no shadow.
    fn shadowed(&self, slot: &SlotName) -> Option<ShadowStatus>;
    /// What to count in this slot's requests, from the desired state. Called before the bundle serves.
    fn thresholds(&self, slot: &SlotName, thresholds: Vec<Threshold>);
    /// How slow the next bundle may be beside the one it replaces, percent. Called before it serves.
    fn slower(&self, slot: &SlotName, percent: Option<u32>);
}

/// The updater's part of a `Reported`; the link adds schema, device, boot, times and facts.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceReport {
    pub generation: u64,
    pub trust_version: u64,
    /// Highest signed time seen: what the local clock is judged by.
    pub floor: Timestamp,
    pub nonce: Option<String>,
    pub slots: BTreeMap<SlotName, SlotReport>,
    pub refused: Option<Refusal>,
}

/// Takes what the controller shall hear.
#[async_trait]
pub trait Reports: Send + Sync {
    /// The whole state, at every change; only the newest counts. Must not block.
    fn reported(&self, report: DeviceReport);
    /// Puts a terminal report into the outbox. Durable once `Ok`; it may come again after a kill.
    ///
    /// # Errors
    /// Any; it is offered again later.
    async fn terminal(&self, report: TerminalReport) -> anyhow::Result<()>;
}

/// Everything outside, as the updater sees it.
#[derive(Clone)]
pub struct World {
    pub probe: Arc<dyn Probe>,
    pub host: Arc<dyn Host>,
    pub reports: Arc<dyn Reports>,
    /// The link gives it every frame of `blocks` ([`Blocks::deliver`]).
    pub blocks: Arc<Blocks>,
    pub https: Option<Arc<dyn RangeSource>>,
}

/// What the link tells the updater.
#[derive(Clone, Debug)]
pub enum Command {
    /// Payload of `desired`, as it came.
    Desired(Bytes),
    TrustHead(TrustHead),
    /// The session is up (again): report in full, ask again for what was in flight.
    Connected,
    /// Report in full.
    Report,
    /// Write down that this is an orderly end, then return.
    Stop,
}

/// Settings in force; follow them with [`Updater::settings`](super::Updater::settings).
pub type SettingsWatch = tokio::sync::watch::Receiver<Settings>;
