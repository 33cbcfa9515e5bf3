//! Who gets which message: one router for what is stored and for controllers, many for devices.
//!
//! mqtt5's router walks over all subscriptions at every connect and disconnect, under the lock that
//! routing needs: with 3,000 devices a connect took three times as long as with 500 (measured). A
//! device's topics concern nobody else, so devices are spread over [`SHARDS`] routers without storage;
//! each walk is that much shorter. The library keeps all retained messages on disk and serves
//! controllers, whose wildcard filters cost a scan per message only there.

use edgefleet_shared::{
    ids::DeviceId,
    topics::{self, MAX_PAYLOAD_BYTES, ROOT},
};
use mqtt5::broker::{
    router::MessageRouter,
    storage::{DynamicStorage, QueueLimits},
};
use mqtt5_protocol::packet::publish::PublishPacket;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};
use tokio::time::Instant;

/// 15,000 devices with six subscriptions each leave 1,400 per walk.
const SHARDS: usize = 64;

pub(super) struct Routes {
    library: Arc<MessageRouter>,
    shards: Vec<Arc<MessageRouter>>,
}

impl Routes {
    /// Loads the retained messages from `storage`; `limits` bound the overflow queue of each client.
    pub(super) async fn load(storage: Arc<DynamicStorage>, limits: QueueLimits) -> mqtt5::Result<Self> {
        let library = MessageRouter::with_storage(storage).with_retained_limits(0, MAX_PAYLOAD_BYTES);
        library.initialize().await?;
        let shards =
            (0..SHARDS).map(|_| Arc::new(MessageRouter::new().with_fallback_queue_limits(limits))).collect();
        let routes = Self { library: Arc::new(library), shards };
        for packet in routes.stored(&format!("{ROOT}/#")).await {
            routes.hand_out(&packet.with_retain(true)).await;
        }
        Ok(routes)
    }

    /// The router that a connection of this identity belongs to.
    pub(super) fn of(&self, identity: &DeviceId) -> &Arc<MessageRouter> {
        if super::is_controller(identity) { &self.library } else { self.shard(identity) }
    }

    fn shard(&self, device: &DeviceId) -> &Arc<MessageRouter> {
        let mut hasher = DefaultHasher::new();
        device.hash(&mut hasher);
        &self.shards[hasher.finish() as usize % SHARDS]
    }

    /// A message to devices; on disk before it is delivered, if it is retained.
    pub(super) async fn to_devices(&self, packet: &PublishPacket) {
        self.keep(packet).await;
        self.hand_out(packet).await;
    }

    /// A message that only controllers may read.
    ///
    /// All routing has a deadline that has passed: a full lane overflows into the client's bounded
    /// queue at once instead of holding the sender for seconds.
    pub(super) async fn keep(&self, packet: &PublishPacket) {
        self.library.route_message_with_deadline(packet, None, Instant::now()).await;
    }

    async fn hand_out(&self, packet: &PublishPacket) {
        match topics::parse(&packet.topic_name) {
            Some((device, _)) => {
                self.shard(&device).route_message_with_deadline(packet, None, Instant::now()).await;
            }
            None => {
                for shard in &self.shards {
                    shard.route_message_with_deadline(packet, None, Instant::now()).await;
                }
            }
        }
    }

    /// Retained messages that match.
    pub(super) async fn stored(&self, filter: &str) -> Vec<PublishPacket> {
        self.library.get_retained_messages(filter).await
    }

    /// Drops what gone clients left behind.
    pub(super) async fn sweep(&self) {
        for router in self.shards.iter().chain([&self.library]) {
            router.sweep_sessions().await;
        }
    }
}
