//! Small bridges between parts that do not know each other.

use crate::{
    broker::{Broker, Message, Qos},
    driver::{DriverHandle, Order},
    findings::Findings,
    fleet::{Fleet, Sessions, TrustChain, attributes::Labels},
    ingest::{Cohort, Surroundings},
    lookout::{Heard, LookoutHandle},
    registry::Registry,
    signing::TrustStore,
};
use async_trait::async_trait;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::{BundleName, DeviceId},
    telemetry::Ack,
    topics::Channel,
};
use std::sync::Arc;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What ingestion asks of the registry and the broker.
pub(super) struct Around {
    pub registry: Arc<Registry>,
    pub broker: Arc<dyn Broker>,
    pub findings: Arc<Findings>,
    pub fleet: Arc<Fleet>,
    pub lookout: LookoutHandle,
}

#[async_trait]
impl Surroundings for Around {
    async fn is_known(&self, bundle: &BundleName) -> bool {
        match self.registry.find(bundle).await {
            Ok(found) => found.is_some(),
            Err(error) => {
                tracing::error!(%bundle, %error, "registry.find");
                false
            }
        }
    }

    fn is_isolated(&self, device: &DeviceId) -> bool {
        self.findings.isolates(device)
    }

    fn labels(&self, device: &DeviceId) -> Labels {
        self.fleet.device(device).map(|known| known.device.labels.clone()).unwrap_or_default()
    }

    fn profiled(&self, bundle: BundleName, device: DeviceId, cohort: Cohort) {
        self.lookout.tell(Heard { bundle, device, cohort });
    }

    async fn acknowledge(&self, device: &DeviceId, ack: Ack) {
        let message = Message {
            topic: Channel::Ack.of(device),
            payload: serde_json::to_vec(&ack).unwrap_or_default().into(), // plain data: cannot fail
            retain: false,
            qos: Qos::AtLeastOnce,
        };
        if let Err(error) = self.broker.publish(message).await {
            tracing::debug!(%device, %error, "telemetry.acknowledge");
        }
    }
}

/// The chain of trust documents, as enrolment hands it out.
pub(super) struct Chain(pub Arc<TrustStore>);

impl TrustChain for Chain {
    fn newest(&self) -> EnvelopeDigest {
        self.0.pin()
    }
    fn since(&self, pin: &EnvelopeDigest) -> Option<Vec<Vec<u8>>> {
        let all: Vec<_> = (1..=self.0.head().version).filter_map(|n| self.0.version(n)).collect();
        let from = all.iter().position(|raw| EnvelopeDigest::of(raw) == *pin)?;
        Some(all[from..].iter().map(|raw| raw.to_vec()).collect())
    }
}

/// The broker's sessions; the end of a device is also the end of what the controller wants of it.
pub(super) struct SessionsAndOrders {
    pub broker: Arc<dyn Broker>,
    pub orders: DriverHandle,
}

#[async_trait]
impl Sessions for SessionsAndOrders {
    async fn kick(&self, device: &DeviceId) -> Result<(), Cause> {
        Ok(self.broker.kick(device).await?)
    }
    async fn revoke(&self, device: &DeviceId) -> Result<(), Cause> {
        let ended = self.broker.revoke(device).await;
        // After the session: what it still said is cleared, too.
        self.orders.order(Order::Removed(device.clone())).await;
        Ok(ended?)
    }
    async fn relabelled(&self, device: &DeviceId) {
        self.orders.order(Order::Devices(vec![device.clone()])).await;
    }
}
