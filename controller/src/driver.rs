//! The loop that keeps devices up to date: changed desired states, expiring documents, removed devices.
//!
//! It decides nothing. Every step may be interrupted anywhere and repeated: the store says what is
//! left to do, and sending a desired state twice does no harm.
//!
//! Two strands run beside each other, so that a long one delays no other: orders about single devices, and
//! passes over all devices. Rollouts have a driver of their own, [`crate::rollouts`].

use crate::{
    clock,
    desired::Reason,
    findings::Findings,
    fleet::{Fleet, devices::DeviceState},
    link::HandOut,
    rollouts::Rollouts,
    transfer::BlockServer,
};
use edgefleet_shared::ids::DeviceId;
use futures::{StreamExt as _, stream};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// How often expiring desired states are looked for.
const RENEWAL_PASS: Duration = Duration::from_secs(3_600);
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// Orders that may wait; more wait with their sender.
const ORDERS: usize = 256;
/// Devices brought up to date at a time: their writes share an fsync.
const AT_A_TIME: usize = 64;

/// What the driver can be asked to do.
#[derive(Debug)]
pub enum Order {
    /// Bring these devices up to date.
    Devices(Vec<DeviceId>),
    /// Forget what was wanted of a device that left the fleet.
    Removed(DeviceId),
    /// A new trust document: tell everybody, and everybody's desired state names it.
    TrustChanged,
    /// Everybody's desired state has to be looked at again; those that are still right stay.
    SettingsChanged,
}

/// Where orders go. Cheap to clone.
#[derive(Clone)]
pub struct DriverHandle(mpsc::Sender<Order>);

impl DriverHandle {
    /// Orders go where a test reads them.
    #[cfg(test)]
    pub(crate) fn to(orders: mpsc::Sender<Order>) -> Self {
        Self(orders)
    }

    /// Waits while too many orders wait already; an order after shutdown is dropped, the store
    /// remembers what it was about.
    pub async fn order(&self, order: Order) {
        if self.0.send(order).await.is_err() {
            tracing::debug!("driver.stopped");
        }
    }
}

/// What the driver is made of.
pub struct DriverParts {
    pub rollouts: Rollouts,
    pub hand_out: Arc<HandOut>,
    pub fleet: Arc<Fleet>,
    pub blocks: Arc<BlockServer>,
    pub findings: Arc<Findings>,
}

pub struct Driver {
    orders: mpsc::Receiver<Order>,
    work: Work,
}

struct Work {
    parts: DriverParts,
    /// Everybody's desired state has to be looked at again.
    everybody: Notify,
}

impl Driver {
    pub fn new(parts: DriverParts) -> (Self, DriverHandle) {
        let (sender, orders) = mpsc::channel(ORDERS);
        let work = Work { parts, everybody: Notify::new() };
        (Self { orders, work }, DriverHandle(sender))
    }

    /// Runs until every handle is gone or `stop` is cancelled. Starts with what an earlier process left
    /// undone.
    pub async fn run(self, stop: CancellationToken) {
        let Self { orders, work } = self;
        work.parts.hand_out.announce_trust().await;
        work.everybody.notify_one();
        tokio::select! {
            () = work.orders(orders) => {}
            () = work.passes() => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Work {
    async fn orders(&self, mut orders: mpsc::Receiver<Order>) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Devices(devices)) => self.devices(devices).await,
                    Some(Order::Removed(device)) => self.removed(&device).await,
                    Some(Order::TrustChanged) => {
                        self.parts.hand_out.announce_trust().await;
                        self.everybody.notify_one();
                    }
                    Some(Order::SettingsChanged) => self.everybody.notify_one(),
                },
                _ = housekeeping.tick() => self.parts.blocks.forget_idle(),
            }
        }
    }

    async fn passes(&self) {
        let mut renewal = tokio::time::interval(RENEWAL_PASS);
        loop {
            let states = self.parts.hand_out.states();
            let devices = tokio::select! {
                () = self.everybody.notified() => states.wanted_devices().await,
                _ = renewal.tick() => states.expiring(clock::now()).await,
            };
            match devices {
                Ok(devices) => self.devices(devices).await,
                Err(error) => tracing::error!(%error, "desired.list"),
            }
        }
    }

    async fn devices(&self, devices: Vec<DeviceId>) {
        stream::iter(devices)
            .for_each_concurrent(AT_A_TIME, |device| async move {
                // It may have left while a rollout was being written, or just before the last stop.
                let known = self.parts.fleet.device(&device);
                if known.as_ref().is_ok_and(|known| known.device.state == DeviceState::Removed) {
                    return self.removed(&device).await;
                }
                // What the device itself said last, so that a change still answers its nonce.
                let report = known.ok().and_then(|known| known.status.reported.clone());
                let reason = report.map_or_else(Reason::default, |report| Reason {
                    reported: Some(report.generation),
                    nonce: report.nonce,
                });
                self.parts.hand_out.send(&device, &reason, false).await;
            })
            .await;
    }

    /// Intents go last: while they are there, the next start comes back to this.
    async fn removed(&self, device: &DeviceId) {
        let DriverParts { rollouts, hand_out, blocks, findings, .. } = &self.parts;
        blocks.forget(device);
        hand_out.clear(device).await;
        let done = async {
            rollouts.left_fleet(device, clock::now()).await?;
            findings.forget(device).await?;
            hand_out.states().forget(device).await
        };
        if let Err(error) = done.await {
            tracing::error!(%device, %error, "device.forget");
        }
    }
}
