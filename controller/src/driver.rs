//! The loop that carries decisions out: unfinished assignments, changed devices, expiring documents.
//!
//! It decides nothing. Every step may be interrupted anywhere and repeated: the store says what is
//! left to do, and sending a desired state twice does no harm.

use crate::{
    assignments::{AssignError, Assignments},
    clock,
    desired::Reason,
    fleet::Fleet,
    link::HandOut,
    transfer::BlockServer,
};
use edgefleet_shared::ids::{DeviceId, RolloutId};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// How often expiring desired states are looked for.
const RENEWAL_PASS: Duration = Duration::from_secs(3_600);
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// Orders that may wait; more wait with their sender.
const ORDERS: usize = 256;

/// What the driver can be asked to do.
#[derive(Debug)]
pub enum Order {
    /// Carry this rollout out from where it stands.
    Rollout(RolloutId),
    /// Bring these devices up to date.
    Devices(Vec<DeviceId>),
    /// A new trust document: tell everybody, and everybody's desired state names it.
    TrustChanged,
}

/// Where orders go. Cheap to clone.
#[derive(Clone)]
pub struct DriverHandle(mpsc::Sender<Order>);

impl DriverHandle {
    /// Waits while too many orders wait already; an order after shutdown is dropped, the store
    /// remembers what it was about.
    pub async fn order(&self, order: Order) {
        if self.0.send(order).await.is_err() {
            tracing::debug!("driver.stopped");
        }
    }
}

pub struct Driver {
    orders: mpsc::Receiver<Order>,
    assignments: Assignments,
    hand_out: Arc<HandOut>,
    fleet: Arc<Fleet>,
    blocks: Arc<BlockServer>,
}

impl Driver {
    pub fn new(
        assignments: Assignments,
        hand_out: Arc<HandOut>,
        fleet: Arc<Fleet>,
        blocks: Arc<BlockServer>,
    ) -> (Self, DriverHandle) {
        let (sender, orders) = mpsc::channel(ORDERS);
        (Self { orders, assignments, hand_out, fleet, blocks }, DriverHandle(sender))
    }

    /// Runs until every handle is gone. Starts with what an earlier process left undone.
    pub async fn run(mut self) {
        self.hand_out.announce_trust().await;
        match self.assignments.unfinished().await {
            Ok(left) => {
                for rollout in left {
                    self.rollout(&rollout).await;
                }
            }
            Err(error) => tracing::error!(%error, "rollout.resume"),
        }
        self.everybody().await;
        let mut renewal = tokio::time::interval(RENEWAL_PASS);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    None => return,
                    Some(Order::Rollout(id)) => self.rollout(&id).await,
                    Some(Order::Devices(devices)) => self.devices(&devices).await,
                    Some(Order::TrustChanged) => {
                        self.hand_out.announce_trust().await;
                        self.everybody().await;
                    }
                },
                _ = renewal.tick() => self.renew().await,
                _ = housekeeping.tick() => self.blocks.forget_idle(),
            }
        }
    }

    async fn rollout(&self, id: &RolloutId) {
        loop {
            match self.assignments.advance(id, clock::now()).await {
                Ok(devices) if devices.is_empty() => return,
                Ok(devices) => self.devices(&devices).await,
                Err(AssignError::Store(crate::store::StoreError::StaleRevision { .. })) => {}
                Err(error) => {
                    // Stays unfinished in the store; the next start, or the next order, goes on.
                    tracing::error!(rollout = %id, %error, "rollout.advance");
                    return;
                }
            }
        }
    }

    async fn devices(&self, devices: &[DeviceId]) {
        for device in devices {
            self.hand_out.send(device, &self.reason(device), false).await;
        }
    }

    async fn everybody(&self) {
        match self.hand_out.states().wanted_devices().await {
            Ok(devices) => self.devices(&devices).await,
            Err(error) => tracing::error!(%error, "desired.list"),
        }
    }

    async fn renew(&self) {
        match self.hand_out.states().expiring(clock::now()).await {
            Ok(devices) => self.devices(&devices).await,
            Err(error) => tracing::error!(%error, "desired.renew"),
        }
    }

    /// What the device itself said last, so that an answer to its nonce is not lost by a change.
    fn reason(&self, device: &DeviceId) -> Reason {
        let known = self.fleet.device(device).ok();
        match known.as_ref().and_then(|known| known.status.reported.as_ref()) {
            Some(report) => Reason { reported: Some(report.generation), nonce: report.nonce.clone() },
            None => Reason::default(),
        }
    }
}
