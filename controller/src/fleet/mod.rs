//! Who belongs to the fleet: certificates, invites, devices, and the people and programs that may change them.
//!
//! [`Fleet`] is the whole of it as plain async methods; the API, the command line and tests call the same ones.
//! State lives in the [`FleetStore`]; every change is written in one transaction with its audit entry. What a
//! connection asks at every handshake ([`Fleet::admits`], [`Fleet::authenticate`]) is answered from memory.
//! One process owns the data folder ([`data_dir`]), so memory cannot fall behind.
//!
//! | document kind | id | holds |
//! |---|---|---|
//! | `device` | device id, never deleted | [`devices::Device`] |
//! | `device-key` | SHA-256 of a public key (hex) | the device that has or had it |
//! | `device-status` | device id | [`devices::Status`]: presence, facts, last report |
//! | `revoked-serial` | serial number | [`revocation::RevokedSerial`] |
//! | `invite` | invite id | [`invites::Invite`] |
//! | `token` | token id | [`tokens::Token`] |

mod attempts;
pub mod attributes;
pub mod ca;
pub mod certificate;
pub mod data_dir;
pub mod devices;
mod enroll;
mod error;
pub mod index;
pub mod invites;
pub mod revocation;
pub mod roles;
pub mod secret;
pub mod server_names;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod tokens;

pub use enroll::Counters;
pub use error::{Class, FleetError};
pub use index::Counts;

use crate::{
    clock::Clock,
    store::{
        FleetStore, Repository, Scan,
        audit::{AuditDraft, AuditEntry, AuditLog},
    },
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use attempts::FailedAttempts;
use ca::Ca;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::{DeviceId, InviteId},
    time::Timestamp,
};
use index::DeviceIndex;
use parking_lot::RwLock;
use std::sync::Arc;

/// How often a change is tried again after another writer was faster.
const MAX_ATTEMPTS: usize = 50;

/// Signed trust documents, as the signing part keeps them.
pub trait TrustChain: Send + Sync {
    /// Digest of the newest document: what new join codes pin.
    fn newest(&self) -> EnvelopeDigest;
    /// The exact bytes of the documents from `pin` to the newest, in order; `None` if `pin` is not one of them.
    fn since(&self, pin: &EnvelopeDigest) -> Option<Vec<Vec<u8>>>;
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What the fleet asks of the broker.
#[async_trait]
pub trait Sessions: Send + Sync {
    /// Ends the device's session if it has one; it may come back.
    ///
    /// # Errors
    /// Whatever kept the session alive.
    async fn kick(&self, device: &DeviceId) -> Result<(), Cause>;
    /// Ends the device's session for good.
    ///
    /// # Errors
    /// Whatever kept the session alive. The device is refused at its next connect all the same.
    async fn revoke(&self, device: &DeviceId) -> Result<(), Cause>;
    /// The device has other labels: settings may be others.
    async fn relabelled(&self, _device: &DeviceId) {}
}

/// Where devices find this controller; known once the listeners have their ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// `https://host:port`, as join codes carry it.
    pub url: String,
    pub mqtt_host: String,
    pub mqtt_port: u16,
}

/// Who asks for a change, as the audit log names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// The controller itself.
    pub fn controller() -> Self {
        Self("controller".into())
    }
    pub fn token(id: &str, name: &str) -> Self {
        Self(format!("token:{id} ({name})"))
    }
    pub fn device(id: &DeviceId) -> Self {
        Self(format!("device:{id}"))
    }
    pub fn invite(id: &InviteId) -> Self {
        Self(format!("invite:{id}"))
    }
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Part of a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// What to ask for next; `None` on the last page.
    pub next: Option<String>,
}

/// What [`Fleet::open`] is made of.
pub struct FleetParts {
    pub store: Arc<dyn FleetStore>,
    /// The one of this process: everything that audits shares it.
    pub audit: Arc<AuditLog>,
    pub ca: Arc<Ca>,
    pub trust: Arc<dyn TrustChain>,
    pub clock: Clock,
    pub endpoints: Endpoints,
}

/// The fleet. Open it once per process and share it.
pub struct Fleet {
    store: Arc<dyn FleetStore>,
    audit: Arc<AuditLog>,
    ca: Arc<Ca>,
    trust: Arc<dyn TrustChain>,
    clock: Clock,
    endpoints: ArcSwap<Endpoints>,
    sessions: RwLock<Option<Arc<dyn Sessions>>>,
    invites: Repository<invites::Invite>,
    devices: Repository<devices::Device>,
    index: DeviceIndex,
    tokens: tokens::TokenIndex,
    failed: FailedAttempts,
    /// Enrolments queue here instead of losing to each other at the invite; the store's compare-and-set
    /// stays what decides.
    enrolling: tokio::sync::Mutex<()>,
    status_gates: status::Gates,
    counters: enroll::CounterCells,
}

impl Fleet {
    /// Reads all devices and tokens into memory.
    ///
    /// # Errors
    /// Store errors; [`crate::store::StoreError::Unreadable`] for a document of another version.
    pub async fn open(parts: FleetParts) -> Result<Self, FleetError> {
        let FleetParts { store, audit, ca, trust, clock, endpoints } = parts;
        let devices = Repository::new(Arc::clone(&store), devices::DEVICE);
        let invites = Repository::new(Arc::clone(&store), invites::INVITE);
        let index = DeviceIndex::default();
        let mut scan = Scan::all();
        loop {
            let page = devices.list(scan.clone()).await?;
            for (_, device) in page.entries {
                index.put(device);
            }
            match page.next {
                Some(next) => scan.after = Some(next),
                None => break,
            }
        }
        for (_, found) in
            Repository::<devices::Status>::new(Arc::clone(&store), devices::STATUS).list_all("").await?
        {
            // Nobody is connected to a controller that has just started; each device says so itself.
            let stored = devices::Status {
                online: false,
                reason: "not heard of since the controller started".into(),
                ..found.value
            };
            index.update_status(&stored.device.clone(), |status| *status = stored);
        }
        let tokens = tokens::TokenIndex::load(&store).await?;
        Ok(Self {
            store,
            audit,
            ca,
            trust,
            clock,
            endpoints: ArcSwap::from_pointee(endpoints),
            sessions: RwLock::new(None),
            invites,
            devices,
            index,
            tokens,
            failed: FailedAttempts::default(),
            enrolling: tokio::sync::Mutex::new(()),
            status_gates: status::Gates::default(),
            counters: enroll::CounterCells::default(),
        })
    }

    /// Ports are known after binding; join codes made afterwards carry them.
    pub fn set_endpoints(&self, endpoints: Endpoints) {
        self.endpoints.store(Arc::new(endpoints));
    }
    pub fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }
    /// The broker needs the fleet to admit devices and the fleet needs the broker to end sessions, so the
    /// second comes later. Without it, removing a device only refuses its next connect.
    pub fn set_sessions(&self, sessions: Arc<dyn Sessions>) {
        *self.sessions.write() = Some(sessions);
    }
    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }
    pub fn store(&self) -> &Arc<dyn FleetStore> {
        &self.store
    }
    pub fn audit_log(&self) -> &Arc<AuditLog> {
        &self.audit
    }
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Audit entries from number `from` (1 is the first) on.
    ///
    /// # Errors
    /// [`FleetError::Audit`].
    pub async fn audit_entries(&self, from: u64, limit: usize) -> Result<Page<AuditEntry>, FleetError> {
        let mut items =
            self.audit.read(from.max(1), limit.saturating_add(1)).await.map_err(FleetError::Audit)?;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|entry| entry.seq.to_string());
        Ok(Page { items, next })
    }

    fn draft(&self, actor: &Actor, action: &str, subject: String) -> AuditDraft {
        AuditDraft {
            at: self.now().to_string(),
            who: actor.name().to_owned(),
            action: action.to_owned(),
            subject,
            ..AuditDraft::default()
        }
    }
}
