//! The shell around [`decide`]: loads, signs and saves desired states.

use super::{
    compose::compose,
    decide::{Decision, Reason, decide},
    intent::{INTENT, Intent},
};
use crate::{
    captures::record::{CAPTURE_POLICY, PolicyRecord},
    signing::signer::{OnlineKey, SignerError},
    store::{Expect, FleetStore, Kind, Repository, Scan, StoreError, Transaction},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::{
    capture::CapturePolicy,
    desired::{Desired, Settings},
    ids::DeviceId,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

pub const DESIRED: Kind = Kind::new("desired");
/// Records looked at in one go while searching for those that expire.
const EXPIRY_PAGE: usize = 500;

/// The last signed desired state of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DesiredRecord {
    pub desired: Desired,
    /// Base64 of the envelope's exact bytes.
    pub envelope: String,
    /// Set while the device's claims are not believed, until [`DesiredStates::believe`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
}

/// What to send to a device now.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    pub generation: u64,
    pub envelope: Vec<u8>,
    /// Whether this call made it, rather than found it.
    pub changed: bool,
    /// The device was ahead of the store: its controller came back from a backup.
    pub was_behind: bool,
}

/// Why a desired state could not be produced.
#[derive(Debug, thiserror::Error)]
pub enum DesiredError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not sign the desired state of {device}")]
    Sign { device: DeviceId, source: SignerError },
    #[error("device {device} is quarantined: {reason}")]
    Quarantined { device: DeviceId, reason: String },
    #[error("the stored envelope of {device} is damaged")]
    Damaged { device: DeviceId },
}

/// Says how a device is to behave, apart from what it serves.
pub trait SettingsSource: Send + Sync {
    fn of(&self, device: &DeviceId) -> Settings;
}

/// The same for all.
impl SettingsSource for Settings {
    fn of(&self, _: &DeviceId) -> Settings {
        self.clone()
    }
}

/// Desired states of all devices. Cheap to clone.
#[derive(Clone)]
pub struct DesiredStates {
    store: Arc<dyn FleetStore>,
    records: Repository<DesiredRecord>,
    intents: Repository<Intent>,
    policies: Repository<PolicyRecord>,
    key: OnlineKey,
    settings: Arc<dyn SettingsSource>,
}

impl DesiredStates {
    pub fn new(store: Arc<dyn FleetStore>, key: OnlineKey, settings: impl SettingsSource + 'static) -> Self {
        Self {
            records: Repository::new(store.clone(), DESIRED),
            intents: Repository::new(store.clone(), INTENT),
            policies: Repository::new(store.clone(), CAPTURE_POLICY),
            store,
            key,
            settings: Arc::new(settings),
        }
    }

    pub async fn stored(&self, device: &DeviceId) -> Result<Option<DesiredRecord>, StoreError> {
        Ok(self.records.find_json(device.as_str()).await?.map(|found| found.value))
    }

    /// Devices that somebody wants something of.
    pub async fn wanted_devices(&self) -> Result<Vec<DeviceId>, StoreError> {
        let mut devices = Vec::new();
        let mut scan = Scan::all();
        loop {
            let page = self.intents.list(scan.clone()).await?;
            devices.extend(page.entries.into_iter().map(|(_, intent)| intent.value.device));
            devices.dedup(); // ids start with the device, so equal ones are neighbours
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return Ok(devices),
            }
        }
    }

    /// Ends a quarantine. A device that still claims the impossible is quarantined again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn believe(&self, device: &DeviceId) -> Result<(), StoreError> {
        let change = |record| DesiredRecord { quarantined: None, ..record };
        match self.records.update(device.as_str(), change).await {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Brings the desired state of `device` up to date with its intents and returns it; `None` if
    /// nobody ever wanted anything of the device.
    ///
    /// # Errors
    /// [`DesiredError`]. Nothing is handed out that is not saved.
    pub async fn refresh(
        &self,
        device: &DeviceId,
        reason: &Reason,
        trust_version: u64,
        now: Timestamp,
    ) -> Result<Option<Outgoing>, DesiredError> {
        loop {
            let found = self.records.find_json(device.as_str()).await?;
            let intents: Vec<_> = self
                .intents
                .list_all(&format!("{device}/"))
                .await?
                .into_iter()
                .map(|(_, intent)| intent.value)
                .collect();
            if found.is_none() && intents.is_empty() && reason.nonce.is_none() {
                return Ok(None);
            }
            if let Some(why) = found.as_ref().and_then(|f| f.value.quarantined.clone()) {
                return Err(DesiredError::Quarantined { device: device.clone(), reason: why });
            }
            let stored = found.as_ref().map(|f| &f.value.desired);
            let was_behind = reason.reported.unwrap_or(0) > stored.map_or(0, |desired| desired.generation);
            let settings = self.settings_for(device, &intents).await?;
            let wanted = compose(device, &intents, &settings, trust_version);
            let (desired, quarantined) = match decide(stored, wanted, reason, now) {
                Decision::New(desired) | Decision::Resign(desired) => (desired, None),
                Decision::Quarantine { stored: generation, reported } => {
                    let why = format!("reports generation {reported}, {generation} was given out last");
                    let Some(stored) = stored else {
                        return Err(DesiredError::Quarantined { device: device.clone(), reason: why });
                    };
                    (stored.clone(), Some(why))
                }
                Decision::Keep => {
                    let Some(found) = found else { return Ok(None) };
                    let envelope = BASE64
                        .decode(&found.value.envelope)
                        .map_err(|_| DesiredError::Damaged { device: device.clone() })?;
                    let generation = found.value.desired.generation;
                    return Ok(Some(Outgoing { generation, envelope, changed: false, was_behind: false }));
                }
            };
            let envelope = self
                .key
                .sign_desired(&desired)
                .map_err(|source| DesiredError::Sign { device: device.clone(), source })?;
            let record = DesiredRecord {
                envelope: BASE64.encode(&envelope),
                quarantined: quarantined.clone(),
                desired,
            };
            let expect = found.map_or(Expect::Absent, |f| Expect::Revision(f.revision));
            let transaction = Transaction::new().put_json(DESIRED, device.as_str(), expect, &record)?;
            match self.store.commit(transaction).await {
                Ok(_) => {}
                Err(StoreError::StaleRevision { .. }) => continue, // somebody was faster: look again
                Err(error) => return Err(error.into()),
            }
            if let Some(reason) = quarantined {
                return Err(DesiredError::Quarantined { device: device.clone(), reason });
            }
            let generation = record.desired.generation;
            return Ok(Some(Outgoing { generation, envelope, changed: true, was_behind }));
        }
    }

    /// The settings of a device with these intents: capture policies only of the models it has, where no rule of
    /// settings says otherwise for a part of the fleet.
    async fn settings_for(&self, device: &DeviceId, intents: &[Intent]) -> Result<Settings, StoreError> {
        let mut settings = self.settings.of(device);
        for intent in intents {
            let Some(active) = &intent.active else { continue };
            if let Some(found) = self.policies.find_json(active.bundle.model.as_str()).await? {
                let of_rule = settings.captures.remove(&intent.slot);
                settings.captures.insert(intent.slot.clone(), captures_of(of_rule, found.value.policy));
            }
        }
        Ok(settings)
    }

    /// Devices whose desired state runs out within the renewal time.
    pub async fn expiring(&self, now: Timestamp) -> Result<Vec<DeviceId>, StoreError> {
        let soon = now + super::decide::RENEW_BEFORE;
        let mut devices = Vec::new();
        // Small pages: each record carries a whole envelope.
        let mut scan = Scan::all().limit(EXPIRY_PAGE);
        loop {
            let page = self.records.list(scan.clone()).await?;
            let due = page.entries.into_iter().filter(|(_, record)| record.value.desired.expires <= soon);
            devices.extend(due.map(|(_, record)| record.value.desired.device));
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return Ok(devices),
            }
        }
    }

    /// Forgets a removed device.
    pub async fn forget(&self, device: &DeviceId) -> Result<(), StoreError> {
        let mut transaction = Transaction::new().delete(DESIRED, device.as_str(), Expect::Any);
        for (id, _) in self.intents.list_all(&format!("{device}/")).await? {
            transaction = transaction.delete(INTENT, id, Expect::Any);
        }
        self.store.commit(transaction).await.map(|_| ())
    }
}

/// The newest generation that was signed for `device`; 0 if there is none.
///
/// # Errors
/// [`StoreError`].
pub async fn stored_generation(store: &dyn FleetStore, device: &DeviceId) -> Result<u64, StoreError> {
    let Some(found) = store.get(DESIRED, device.as_str()).await? else { return Ok(0) };
    let record: DesiredRecord = serde_json::from_slice(&found.body)
        .map_err(|source| StoreError::Unreadable { kind: DESIRED, id: device.to_string(), source })?;
    Ok(record.desired.generation)
}

/// What a device keeps of a slot: what a rule says for it, else the model's policy. What the model's policy keeps from
/// leaving a device leaves none, whatever a rule says.
fn captures_of(of_rule: Option<CapturePolicy>, of_model: CapturePolicy) -> CapturePolicy {
    let Some(mut policy) = of_rule else { return of_model };
    policy.redact.extend(of_model.redact);
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::capture::Redaction;

    #[test]
    fn a_rule_wins_over_the_models_policy_but_undoes_no_redaction() {
        let policy = |share, redact: &[(&str, Redaction)]| {
            let mut policy = CapturePolicy::default();
            policy.random.share = share;
            policy.redact = redact.iter().map(|(name, how)| ((*name).to_owned(), *how)).collect();
            policy
        };
        let of_model = policy(0.01, &[("face", Redaction::Drop)]);
        assert_eq!(captures_of(None, of_model.clone()), of_model);
        let of_rule = policy(0.5, &[("face", Redaction::Hash), ("plate", Redaction::Hash)]);
        let both = policy(0.5, &[("face", Redaction::Drop), ("plate", Redaction::Hash)]);
        assert_eq!(captures_of(Some(of_rule), of_model), both);
    }
}
