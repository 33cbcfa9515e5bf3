//! Small pieces that let the parts meet: each part names what it needs as a trait.

use super::{packs::Packs, report::Latest};
use crate::{
    capture::upload::{Answer, Carrier},
    engine::{choosing::EngineChooser, probe},
    identity::TrustedClock,
    link::{LinkHandle, QoS},
    monitor::{Moment, MonitorClock, RecordSink, SinkError},
    serving::http::{Metric, StatusProvider},
    store::outbox::Outbox,
    update::{
        BlockLink, BundleFiles, HttpsSource, LinkDown, Probe, RangeSource,
        https::{RangeError, RangeStream},
    },
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Kind, Manifest},
    digest::BlobDigest,
    probe::ProbeVerdict,
    telemetry::RecordBody,
    topics::Channel,
    transfer::FetchRequest,
};
use parking_lot::RwLock;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Time since the agent's start, and the wall clock with what is known of it.
pub(super) struct AgentClock {
    pub(super) started: Instant,
    pub(super) trusted: Arc<TrustedClock>,
}
impl MonitorClock for AgentClock {
    fn now(&self) -> Moment {
        let mono_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Moment { mono_ms, wall: self.trusted.local(), clock: self.trusted.quality() }
    }
}

/// Finished windows go to the outbox.
pub(super) struct ToOutbox(pub(super) Outbox);
impl RecordSink for ToOutbox {
    fn append(&self, record: RecordBody) -> Result<(), SinkError> {
        self.0.append_soon(record).map_err(|e| SinkError { reason: e.to_string() })
    }
}

/// The updater tries bundles in confined children of this very program: models with every engine that is
/// here, engine packs with every model.
pub(super) struct ChildProbe {
    pub(super) chooser: Arc<EngineChooser>,
    pub(super) packs: Arc<Packs>,
}
#[async_trait]
impl Probe for ChildProbe {
    async fn probe(&self, files: BundleFiles, manifest: &Manifest) -> ProbeVerdict {
        let files = probe::BundleFiles { manifest: files.manifest_path, blobs: files.blobs_dir };
        let (chooser, packs) = (self.chooser.clone(), self.packs.clone());
        let (bundle, manifest) = (files.clone(), manifest.clone());
        let work = move || match manifest.kind {
            Kind::Model => chooser.try_bundle(&bundle, &manifest),
            Kind::Engine => packs.test(&bundle, &manifest),
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(verdict) => verdict,
            Err(error) => probe::untried(&files, &format!("the probe was cut off: {error}")),
        }
    }
}

/// The link exists only after what uses it was made.
#[derive(Default)]
pub(super) struct LateLink(OnceLock<LinkHandle>);
impl LateLink {
    pub(super) fn set(&self, link: LinkHandle) {
        self.0.set(link).ok(); // set once, by `run`
    }
    pub(super) fn get(&self) -> Option<&LinkHandle> {
        self.0.get()
    }
}
#[async_trait]
impl BlockLink for LateLink {
    async fn send(&self, request: FetchRequest) -> Result<(), LinkDown> {
        let json = serde_json::to_vec(&request).unwrap_or_default(); // plain data: cannot fail
        let link = self.get().ok_or(LinkDown)?;
        link.publish(Channel::Fetch, json, false, QoS::AtLeastOnce).await.map_err(|_| LinkDown)
    }
}

/// Downloads over HTTPS with whichever certificate is current.
pub(super) struct CurrentHttps(pub(super) ArcSwap<HttpsSource>);
#[async_trait]
impl RangeSource for CurrentHttps {
    async fn get(&self, digest: BlobDigest, from: u64, to: u64) -> Result<RangeStream, RangeError> {
        self.0.load_full().get(digest, from, to).await
    }
}

/// Captures go to the controller with the same certificate.
#[async_trait]
impl Carrier for CurrentHttps {
    async fn put(&self, id: BlobDigest, file: Bytes) -> Answer {
        let path = format!("/api/v1/device/captures/{id}");
        match self.0.load_full().put(&path, file).await {
            Ok((status, ..)) if status.is_success() => Answer::Stored,
            // What is wrong with these bytes stays wrong; everything else may pass.
            Ok((status, _, why)) if matches!(status.as_u16(), 400 | 413 | 415 | 422) => {
                Answer::Refused { why: format!("{status}: {why}") }
            }
            Ok((status, after, why)) => {
                Answer::Later { why: format!("{status}: {why}"), after: after.map(Duration::from_secs) }
            }
            Err(error) => Answer::Later { why: error.to_string(), after: None },
        }
    }
}

/// `link` in `GET /v1/status` and `/metrics`.
pub(super) struct LinkStatus {
    pub(super) link: Arc<LateLink>,
    pub(super) controller: String,
    /// Why there is no session now.
    pub(super) trouble: Arc<RwLock<Option<String>>>,
}
impl StatusProvider for LinkStatus {
    fn name(&self) -> &'static str {
        "link"
    }
    fn status(&self) -> Value {
        let Some(link) = self.link.get() else { return json!({"connected": false}) };
        let stats = link.stats();
        json!({
            "connected": link.is_connected(),
            "controller": self.controller,
            "trouble": *self.trouble.read(),
            "connects": stats.connects.load(Ordering::Relaxed),
            "takeovers": stats.takeovers.load(Ordering::Relaxed),
            "malformed": stats.malformed.load(Ordering::Relaxed),
            "overflowed": stats.overflowed.load(Ordering::Relaxed),
        })
    }
    fn metrics(&self) -> Vec<Metric> {
        let Some(link) = self.link.get() else { return vec![] };
        let stats = link.stats();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        [
            (
                "edgefleet_link_connected",
                "1 while there is a session with the controller.",
                f64::from(u8::from(link.is_connected())),
            ),
            (
                "edgefleet_link_connects_total",
                "Sessions with the controller since the start.",
                count(&stats.connects),
            ),
            (
                "edgefleet_link_takeovers_total",
                "Sessions lost to another agent with this device's identity.",
                count(&stats.takeovers),
            ),
            (
                "edgefleet_link_malformed_messages_total",
                "Messages from the controller that were not understood.",
                count(&stats.malformed),
            ),
            (
                "edgefleet_link_overflowed_messages_total",
                "Messages from the controller that nobody took in time.",
                count(&stats.overflowed),
            ),
        ]
        .map(|(name, help, value)| Metric { name, help, value })
        .into()
    }
}

pub(super) struct OutboxStatus(pub(super) Outbox);
impl StatusProvider for OutboxStatus {
    fn name(&self) -> &'static str {
        "outbox"
    }
    fn status(&self) -> Value {
        json!({"records": self.0.len(), "bytes": self.0.bytes(), "lost": self.0.lost()})
    }
    fn metrics(&self) -> Vec<Metric> {
        [
            (
                "edgefleet_outbox_records",
                "Telemetry records the controller has not acknowledged.",
                self.0.len() as f64,
            ),
            ("edgefleet_outbox_bytes", "Bytes of these records.", self.0.bytes() as f64),
            (
                "edgefleet_outbox_lost_records_total",
                "Telemetry records lost since the start: dropped, refused or damaged.",
                self.0.lost() as f64,
            ),
        ]
        .map(|(name, help, value)| Metric { name, help, value })
        .into()
    }
}

pub(super) struct UpdateStatus(pub(super) Latest);
impl StatusProvider for UpdateStatus {
    fn name(&self) -> &'static str {
        "update"
    }
    fn status(&self) -> Value {
        let Some(report) = self.0.borrow().clone() else { return Value::Null };
        json!({
            "generation": report.generation,
            "trust_version": report.trust_version,
            "state_lost": report.nonce.is_some(),
            "slots": report.slots,
            "refused": report.refused,
        })
    }
}
