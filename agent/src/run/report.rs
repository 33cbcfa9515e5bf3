//! Says the whole state: at every connect, after every change, and at least once per heartbeat.

use super::running::EngineStatus;
use crate::{
    identity::TrustedClock,
    link::{LinkHandle, QoS},
    store::outbox::Outbox,
    update::{DeviceReport, Reports, world::SettingsWatch},
};
use async_trait::async_trait;
use edgefleet_shared::{
    ids::{BootId, DeviceId},
    reported::{Facts, MAX_REPORT_BYTES, REPORTED_SCHEMA, Reported},
    telemetry::{RecordBody, TerminalReport},
    topics::Channel,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

/// Changes that come together are told together.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Shortest and longest heartbeat a controller may ask for.
const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// The newest word of the updater; `None` before its first.
pub(super) type Latest = watch::Receiver<Option<DeviceReport>>;

/// Where the updater's reports go.
pub(super) struct ReportsTo {
    pub(super) latest: watch::Sender<Option<DeviceReport>>,
    pub(super) outbox: Outbox,
    pub(super) clock: Arc<TrustedClock>,
}

#[async_trait]
impl Reports for ReportsTo {
    fn reported(&self, report: DeviceReport) {
        self.clock.raise(report.floor);
        self.latest.send_replace(Some(report));
    }
    async fn terminal(&self, report: TerminalReport) -> anyhow::Result<()> {
        self.outbox.append(RecordBody::Terminal(report)).await?;
        Ok(())
    }
}

/// Publishes `reported`.
pub(super) struct Reporter {
    pub(super) link: LinkHandle,
    pub(super) device: DeviceId,
    pub(super) boot: BootId,
    /// Reports sent in this boot.
    pub(super) sent: u64,
    /// But for the engines, which come and go with packs.
    pub(super) facts: Facts,
    pub(super) engines: EngineStatus,
    pub(super) clock: Arc<TrustedClock>,
    pub(super) latest: Latest,
    pub(super) settings: SettingsWatch,
    /// Report now: connected, or told to.
    pub(super) now: Arc<Notify>,
}

/// Within bounds: the sum of any clock and `u64::MAX` seconds is a panic, and settings are kept over
/// restarts.
fn heartbeat(secs: u64) -> Duration {
    Duration::from_secs(secs).clamp(HEARTBEAT.0, HEARTBEAT.1)
}

impl Reporter {
    /// Runs until the updater is gone.
    pub(super) async fn run(mut self) {
        let mut last = Instant::now();
        loop {
            let heartbeat = heartbeat(self.settings.borrow().heartbeat_secs);
            tokio::select! {
                () = self.now.notified() => {}
                changed = self.latest.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A report that was asked for need not wait.
                    timeout(DEBOUNCE, self.now.notified()).await.ok();
                }
                // A shorter heartbeat counts from the next round on.
                changed = self.settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
                () = sleep_until(last + heartbeat) => {}
            }
            last = Instant::now();
            self.publish().await;
        }
    }

    async fn publish(&mut self) {
        let Some(report) = self.latest.borrow_and_update().clone() else { return };
        self.sent += 1;
        let mut slots = report.slots;
        self.engines.tell(&mut slots);
        let mut reported = Reported {
            schema: REPORTED_SCHEMA,
            device: self.device.clone(),
            boot: self.boot,
            seq: self.sent,
            at: self.clock.local(),
            clock: self.clock.quality(),
            generation: report.generation,
            trust_version: report.trust_version,
            nonce: report.nonce,
            slots,
            refused: report.refused,
            facts: Facts { engines: self.engines.names(), ..self.facts.clone() },
        };
        let mut json = serde_json::to_vec(&reported).unwrap_or_default(); // plain data: cannot fail
        if json.len() > MAX_REPORT_BYTES {
            // Of very many slots: where they are counts more than how they run.
            reported.forget_engines();
            json = serde_json::to_vec(&reported).unwrap_or_default();
        }
        if let Err(reason) = self.link.publish(Channel::Reported, json, true, QoS::AtLeastOnce).await {
            tracing::debug!(%reason, "state not reported; it is at the next connect");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_heartbeat_a_controller_can_ask_for_overflows_the_clock() {
        for (secs, wanted) in [(0, HEARTBEAT.0), (60, Duration::from_secs(60)), (u64::MAX, HEARTBEAT.1)] {
            assert_eq!(heartbeat(secs), wanted);
            let _ = Instant::now() + heartbeat(secs);
        }
    }
}
