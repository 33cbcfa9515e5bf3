//! How devices behave, apart from what they serve: rules for the fleet or for a part of it, changed while it runs.
//!
//! [`rule`] is pure. [`SettingsRules`] keeps the rules in memory, for every desired state that is composed, and in one
//! small document.

mod rule;

pub use rule::{Rule, SettingError, check, resolve, usual_order};

use crate::{
    desired::SettingsSource,
    fleet::{Actor, Fleet, attributes::scope_attributes},
    store::{
        Expect, FleetStore, Kind, Repository, StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use edgefleet_shared::{desired::Settings, ids::DeviceId, selector::Selector, time::Timestamp};
use parking_lot::RwLock;
use serde_json::{Map, Value};
use std::sync::Arc;
use tokio::sync::Mutex;

const SETTINGS: Kind = Kind::new("settings");
const ID: &str = "rules";
/// Rules at a time: each is looked at for every device.
const MAX_RULES: usize = 100;
/// Largest rule, bytes of JSON.
const MAX_RULE_BYTES: usize = 16 << 10;

/// Why the rules did not change.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error("rule `{name}` cannot be taken: {source}")]
    Setting { name: String, source: SettingError },
    #[error("a rule's name has 1 to 40 lower-case letters, digits and `-`, not {found:?}")]
    Name { found: String },
    #[error("rule `{name}` sets nothing")]
    Empty { name: String },
    #[error("rule `{name}` has {found} bytes, {MAX_RULE_BYTES} are allowed")]
    TooLarge { name: String, found: usize },
    #[error("there are {MAX_RULES} rules already; remove one")]
    Full,
    #[error("rule `{name}` would end at {until}, which is over")]
    Over { name: String, until: Timestamp },
    #[error("there is no rule named `{name}`")]
    Unknown { name: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A rule as somebody wants it.
#[derive(Clone, Debug)]
pub struct NewRule {
    pub name: String,
    pub order: u32,
    pub select: Option<Selector>,
    pub set: Map<String, Value>,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
}

/// All rules. Cheap to clone.
#[derive(Clone)]
pub struct SettingsRules {
    audit: Arc<AuditLog>,
    documents: Repository<Vec<Rule>>,
    fleet: Arc<Fleet>,
    now: Arc<RwLock<Arc<[Rule]>>>,
    gate: Arc<Mutex<()>>,
}

impl SettingsSource for SettingsRules {
    /// Of a device that is not known, what holds for the whole fleet.
    fn of(&self, device: &DeviceId) -> Settings {
        let rules = self.current();
        if rules.is_empty() {
            return Settings::default();
        }
        let labels = self.fleet.device(device).map(|known| known.device.labels.clone()).unwrap_or_default();
        resolve(&rules, &scope_attributes(device, &labels))
    }
}

impl SettingsRules {
    /// Reads the rules.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(
        store: Arc<dyn FleetStore>,
        audit: Arc<AuditLog>,
        fleet: Arc<Fleet>,
    ) -> Result<Self, StoreError> {
        let documents = Repository::<Vec<Rule>>::new(store, SETTINGS);
        let found = documents.find_json(ID).await?.map(|found| found.value).unwrap_or_default();
        let now = Arc::new(RwLock::new(Arc::from(found)));
        Ok(Self { audit, documents, fleet, now, gate: Arc::default() })
    }

    pub fn current(&self) -> Arc<[Rule]> {
        self.now.read().clone()
    }

    /// Writes a rule, in place of one of the same name. Devices are told by the caller.
    ///
    /// # Errors
    /// [`RuleError`].
    pub async fn put(&self, actor: &Actor, new: NewRule, now: Timestamp) -> Result<Rule, RuleError> {
        let NewRule { name, order, select, set, until } = new;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 40 || !name.chars().all(fits) {
            return Err(RuleError::Name { found: name.chars().take(60).collect() });
        }
        if set.is_empty() {
            return Err(RuleError::Empty { name });
        }
        let found = serde_json::to_vec(&set).map_or(0, |json| json.len());
        if found > MAX_RULE_BYTES {
            return Err(RuleError::TooLarge { name, found });
        }
        check(&set).map_err(|source| RuleError::Setting { name: name.clone(), source })?;
        if let Some(until) = until.filter(|until| *until <= now) {
            return Err(RuleError::Over { name, until });
        }
        let rule = Rule { name, order, select, set, by: actor.name().to_owned(), at: now, until };
        let added = rule.clone();
        self.change(actor, "settings.put", &rule.name.clone(), now, |rules| {
            rules.retain(|old| old.name != rule.name);
            if rules.len() >= MAX_RULES {
                return Err(RuleError::Full);
            }
            rules.push(rule);
            rules.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
            Ok(())
        })
        .await?;
        Ok(added)
    }

    /// # Errors
    /// [`RuleError`].
    pub async fn remove(&self, actor: &Actor, name: &str, now: Timestamp) -> Result<Rule, RuleError> {
        let unknown = || RuleError::Unknown { name: name.chars().take(60).collect() };
        let mut removed = None;
        self.change(actor, "settings.remove", name, now, |rules| {
            let at = rules.iter().position(|rule| rule.name == name).ok_or_else(unknown)?;
            removed = Some(rules.remove(at));
            Ok(())
        })
        .await?;
        removed.ok_or_else(unknown)
    }

    /// Takes away the rules whose time is over, and says which. Devices are told by the caller.
    ///
    /// # Errors
    /// [`RuleError::Store`].
    pub async fn end(&self, now: Timestamp) -> Result<Vec<String>, RuleError> {
        let over: Vec<_> =
            self.current().iter().filter(|rule| rule.is_over(now)).map(|rule| rule.name.clone()).collect();
        let mut ended = Vec::new();
        for name in over {
            // Somebody may have written it anew meanwhile.
            let mut is_over = false;
            self.change(&Actor::controller(), "settings.end", &name, now, |rules| {
                let before = rules.len();
                rules.retain(|rule| rule.name != name || !rule.is_over(now));
                is_over = rules.len() < before;
                if is_over { Ok(()) } else { Err(RuleError::Unknown { name: name.clone() }) }
            })
            .await
            .or_else(|error| if matches!(error, RuleError::Unknown { .. }) { Ok(()) } else { Err(error) })?;
            if is_over {
                ended.push(name);
            }
        }
        Ok(ended)
    }

    async fn change(
        &self,
        actor: &Actor,
        action: &str,
        name: &str,
        now: Timestamp,
        change: impl FnOnce(&mut Vec<Rule>) -> Result<(), RuleError>,
    ) -> Result<(), RuleError> {
        // One process has the store: the gate is enough, the revision is the second lock.
        let _gate = self.gate.lock().await;
        let found = self.documents.find_json(ID).await?;
        let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Revision(found.revision));
        let before = found.map(|found| found.value).unwrap_or_default();
        let mut next = before.clone();
        change(&mut next)?;
        let of = |rules: &[Rule]| {
            let rule = rules.iter().find(|rule| rule.name == name);
            rule.and_then(|rule| serde_json::to_string(rule).ok())
        };
        let draft = AuditDraft {
            at: now.to_string(),
            who: actor.name().to_owned(),
            action: action.to_owned(),
            subject: format!("settings/{}", name.chars().take(60).collect::<String>()),
            before: of(&before),
            after: of(&next),
            ..AuditDraft::default()
        };
        let transaction = Transaction::new().put_json(SETTINGS, ID, expect, &next)?;
        self.audit.commit(transaction, &[draft]).await?;
        *self.now.write() = Arc::from(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{
        devices::DevicePatch,
        testing::{TestFleet, actor, start},
    };
    use serde_json::json;

    fn new(name: &str, select: Option<&str>, set: Value) -> NewRule {
        let Value::Object(set) = set else { panic!("an object") };
        let select = select.map(|s| s.parse().unwrap());
        NewRule { name: name.into(), order: usual_order(), select, set, until: None }
    }

    async fn open(home: &TestFleet) -> SettingsRules {
        let (store, audit) = (home.fleet.store().clone(), home.fleet.audit_log().clone());
        SettingsRules::open(store, audit, home.fleet.clone()).await.unwrap()
    }

    #[tokio::test]
    async fn rules_follow_labels_are_audited_and_survive_a_restart() {
        let home = TestFleet::new().await;
        let (_, enrolled) = home.enrolled().await;
        let device = enrolled.device;
        let rules = open(&home).await;
        rules.put(&actor(), new("fleet", None, json!({"window_secs": 60})), start()).await.unwrap();
        let line = new("line-4", Some("line=4"), json!({"window_secs": 10}));
        rules.put(&actor(), line.clone(), start()).await.unwrap();
        assert_eq!(rules.of(&device).window_secs, 60);
        let labels = [("line".to_owned(), Some("4".to_owned()))].into();
        let patch = DevicePatch { labels, ..DevicePatch::default() };
        home.fleet.patch_device(&actor(), &device, &patch, None).await.unwrap();
        assert_eq!(rules.of(&device).window_secs, 10);
        let again = open(&home).await;
        assert_eq!((again.current().len(), again.of(&device).window_secs), (2, 10));
        again.remove(&actor(), "line-4", start()).await.unwrap();
        assert_eq!(again.of(&device).window_secs, 60);
        assert!(matches!(again.remove(&actor(), "line-4", start()).await, Err(RuleError::Unknown { .. })));
        let stranger = "dev-nobody".parse().unwrap();
        assert_eq!(again.of(&stranger).window_secs, 60);
    }

    #[tokio::test]
    async fn a_rule_ends_when_its_time_is_over() {
        let home = TestFleet::new().await;
        let rules = open(&home).await;
        let hour = |n: u64| start() + std::time::Duration::from_secs(n * 3_600);
        let for_hours = |name: &str, n: Option<u64>| NewRule {
            until: n.map(hour),
            ..new(name, None, json!({"window_secs": 60}))
        };
        for (name, ends) in [("short", Some(1)), ("long", Some(9)), ("for-good", None)] {
            rules.put(&actor(), for_hours(name, ends), start()).await.unwrap();
        }
        let late = rules.put(&actor(), for_hours("late", Some(1)), hour(2)).await.unwrap_err();
        assert!(matches!(late, RuleError::Over { .. }), "{late}");
        assert!(rules.end(start()).await.unwrap().is_empty());
        assert_eq!(rules.end(hour(2)).await.unwrap(), ["short"]);
        // Prolonged in time.
        rules.put(&actor(), for_hours("long", Some(20)), hour(3)).await.unwrap();
        assert!(rules.end(hour(10)).await.unwrap().is_empty());
        let names: Vec<_> = open(&home).await.current().iter().map(|rule| rule.name.clone()).collect();
        assert_eq!(names, ["for-good", "long"]);
    }

    #[tokio::test]
    async fn rules_that_make_no_sense_are_refused() {
        let home = TestFleet::new().await;
        let rules = open(&home).await;
        let put = async |rule| rules.put(&actor(), rule, start()).await.unwrap_err();
        assert!(matches!(
            put(new("Plant 7", None, json!({"window_secs": 60}))).await,
            RuleError::Name { .. }
        ));
        assert!(matches!(put(new("a", None, json!({}))).await, RuleError::Empty { .. }));
        assert!(matches!(put(new("a", None, json!({"window": 60}))).await, RuleError::Setting { .. }));
        let large = json!({"transport": "x".repeat(20_000)});
        assert!(matches!(put(new("a", None, large)).await, RuleError::TooLarge { .. }));
        for n in 0..MAX_RULES {
            let rule = new(&format!("r-{n}"), None, json!({"window_secs": 60}));
            rules.put(&actor(), rule, start()).await.unwrap();
        }
        assert!(matches!(put(new("more", None, json!({"window_secs": 60}))).await, RuleError::Full));
        assert_eq!(rules.current().len(), MAX_RULES);
    }
}
