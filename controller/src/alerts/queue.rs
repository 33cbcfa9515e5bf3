//! The durable queue: what was raised becomes one delivery per channel, and a delivery moves from state to state.
//!
//! Every move is one transaction, so a process that dies leaves each delivery in exactly one state. Between the
//! receiver's answer and the transaction it may die, too: then the receiver is told again, with the same key.

use super::{
    channel::{Channel, ChannelName},
    delivery::{DEAD, DELIVERED, Delivery, DeliveryState, Outcome, PENDING, RAISED, delivery_id},
    event::AlertEvent,
    schedule::{Next, after_failure},
    sender::Tried,
};
use crate::store::{Expect, FleetStore, Kind, Repository, Scan, StoreError, Transaction};
use edgefleet_shared::time::Timestamp;
use std::sync::Arc;

/// Deliveries that may wait for one channel. The oldest alert is of most use to whoever comes back, so beyond
/// this it is the newest that is given up at once.
pub(super) const MAX_PENDING: usize = 1_000;
/// Deliveries kept per channel and state once they are over.
const MAX_KEPT: usize = 500;
/// Raised alerts read at a time.
const PAGE: usize = 100;

/// Adds `event` to a larger transaction: it is raised if that happens, and only then.
///
/// # Errors
/// [`StoreError::Unreadable`] if it has no JSON form; it always has.
pub fn outbox(transaction: Transaction, event: &AlertEvent) -> Result<Transaction, StoreError> {
    transaction.put_json(RAISED, event.id.as_str(), Expect::Any, event)
}

pub(super) struct Queue {
    store: Arc<dyn FleetStore>,
    raised: Repository<AlertEvent>,
    deliveries: [Repository<Delivery>; 3],
}

/// Where a delivery of this state stands among the repositories.
fn kind_of(state: DeliveryState) -> Kind {
    match state {
        DeliveryState::Pending => PENDING,
        DeliveryState::Delivered => DELIVERED,
        DeliveryState::Dead => DEAD,
    }
}

/// What became of one round of routing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Routed {
    pub(super) queued: usize,
    /// Given up at once, because too many wait: one entry for each, by name.
    pub(super) dropped: Vec<ChannelName>,
}

impl Queue {
    pub(super) fn new(store: Arc<dyn FleetStore>) -> Self {
        let of = |kind| Repository::new(store.clone(), kind);
        Self {
            raised: Repository::new(store.clone(), RAISED),
            deliveries: [of(PENDING), of(DELIVERED), of(DEAD)],
            store,
        }
    }

    pub(super) async fn raise(&self, event: &AlertEvent) -> Result<(), StoreError> {
        self.store.commit(outbox(Transaction::new(), event)?).await.map(|_| ())
    }

    /// Gives what was raised to the channels that want it.
    pub(super) async fn route(&self, channels: &[&Channel], now: Timestamp) -> Result<Routed, StoreError> {
        let mut done = Routed::default();
        loop {
            let page = self.raised.list(Scan::all().limit(PAGE)).await?;
            if page.entries.is_empty() {
                return Ok(done);
            }
            for (id, found) in page.entries {
                // If it is raised again meanwhile the revision is another, and this is done once more.
                let expect = Expect::Revision(found.revision);
                let mut transaction = Transaction::new().delete(RAISED, id, expect);
                for channel in channels.iter().filter(|channel| channel.wants.wants(&found.value)) {
                    let id = delivery_id(&channel.name, &found.value);
                    if self.is_known(&id).await? {
                        continue;
                    }
                    let mut delivery = Delivery::new(&channel.name, found.value.clone(), now);
                    if self.waiting(&channel.name).await? >= MAX_PENDING {
                        delivery.state = DeliveryState::Dead;
                        delivery.last = Some(Outcome {
                            ok: false,
                            status: None,
                            latency_ms: 0,
                            error: Some(format!("{MAX_PENDING} alerts wait for this channel already")),
                        });
                        done.dropped.push(channel.name.clone());
                    } else {
                        done.queued += 1;
                    }
                    transaction =
                        transaction.put_json(kind_of(delivery.state), id, Expect::Absent, &delivery)?;
                }
                match self.store.commit(transaction).await {
                    Ok(_) | Err(StoreError::StaleRevision { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    async fn is_known(&self, id: &str) -> Result<bool, StoreError> {
        for kind in [PENDING, DELIVERED, DEAD] {
            if self.store.get(kind, id).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn waiting(&self, channel: &ChannelName) -> Result<usize, StoreError> {
        let scan = Scan::all().prefix(format!("{channel}/")).limit(MAX_PENDING);
        Ok(self.store.scan(PENDING, scan).await?.entries.len())
    }

    /// All of one state, the oldest first; `channel`: only of this one.
    pub(super) async fn list(
        &self,
        state: DeliveryState,
        channel: Option<&str>,
    ) -> Result<Vec<Delivery>, StoreError> {
        let prefix = channel.map_or_else(String::new, |name| format!("{name}/"));
        let all = self.deliveries[state as usize].list_all(&prefix).await?;
        let mut all: Vec<_> = all.into_iter().map(|(_, found)| found.value).collect();
        all.sort_by(|a, b| (a.event.at, &a.event.id).cmp(&(b.event.at, &b.event.id)));
        Ok(all)
    }

    /// Writes down that these deliveries go as one message, before it is tried.
    pub(super) async fn bind(
        &self,
        channel: &ChannelName,
        members: &mut [Delivery],
        digest: &str,
    ) -> Result<(), StoreError> {
        let mut transaction = Transaction::new();
        for member in members {
            member.digest = Some(digest.to_owned());
            transaction =
                transaction.put_json(PENDING, delivery_id(channel, &member.event), Expect::Any, member)?;
        }
        self.store.commit(transaction).await.map(|_| ())
    }

    /// Writes what a try did to `delivery` and gives back how it stands now.
    pub(super) async fn settle(
        &self,
        channel: &ChannelName,
        delivery: &Delivery,
        tried: Tried,
        now: Timestamp,
        jitter: f64,
    ) -> Result<Delivery, StoreError> {
        let mut after = delivery.clone();
        after.tries = after.tries.saturating_add(1);
        after.next = now;
        after.state = if tried.outcome.ok {
            DeliveryState::Delivered
        } else if tried.hopeless {
            DeliveryState::Dead
        } else {
            match after_failure(after.tries, after.raised, now, jitter, tried.asked) {
                Next::At(at) => {
                    after.next = at;
                    DeliveryState::Pending
                }
                Next::GiveUp => DeliveryState::Dead,
            }
        };
        after.last = Some(tried.outcome);
        self.put(channel, &after).await?;
        Ok(after)
    }

    /// Puts a delivery where its state belongs, and only there.
    pub(super) async fn put(&self, channel: &ChannelName, delivery: &Delivery) -> Result<(), StoreError> {
        let id = delivery_id(channel, &delivery.event);
        let mut transaction = Transaction::new();
        if delivery.state != DeliveryState::Pending {
            transaction = transaction.delete(PENDING, id.clone(), Expect::Any);
        }
        transaction = transaction.put_json(kind_of(delivery.state), id, Expect::Any, delivery)?;
        self.store.commit(transaction).await?;
        if delivery.state != DeliveryState::Pending {
            self.prune(channel, delivery.state).await?;
        }
        Ok(())
    }

    /// Drops the oldest beyond what is kept.
    async fn prune(&self, channel: &ChannelName, state: DeliveryState) -> Result<(), StoreError> {
        let all = self.list(state, Some(channel.as_str())).await?;
        let surplus = all.len().saturating_sub(MAX_KEPT);
        let transaction = all.iter().take(surplus).fold(Transaction::new(), |transaction, one| {
            transaction.delete(kind_of(state), delivery_id(channel, &one.event), Expect::Any)
        });
        if !transaction.operations.is_empty() {
            self.store.commit(transaction).await?;
        }
        Ok(())
    }

    /// Gives up what waits for channels that the settings do not have any more.
    pub(super) async fn abandon(&self, known: &[&Channel], now: Timestamp) -> Result<usize, StoreError> {
        let mut count = 0;
        for mut delivery in self.list(DeliveryState::Pending, None).await? {
            if known.iter().any(|channel| channel.name.as_str() == delivery.channel) {
                continue;
            }
            let Ok(name) = delivery.channel.parse::<ChannelName>() else { continue };
            delivery.state = DeliveryState::Dead;
            delivery.next = now;
            let error = Some("the settings have no such channel any more".to_owned());
            delivery.last = Some(Outcome { ok: false, status: None, latency_ms: 0, error });
            self.put(&name, &delivery).await?;
            count += 1;
        }
        Ok(count)
    }
}
