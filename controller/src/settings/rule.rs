//! Pure: from rules to the settings of one device.

use edgefleet_shared::{
    desired::{Settings, TelemetrySettings},
    selector::Selector,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Longest window, profile or heartbeat, seconds: beyond a day nobody would call it telemetry.
const LONGEST_SECS: u64 = 86_400;
/// Least and most telemetry of a day, bytes: with less not a single profile would ever be sent.
const DAILY_BYTES: [u64; 2] = [10_000, 1 << 40];

/// Some settings for some devices. Rules apply in ascending `order`, then by name; a later one wins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    pub name: String,
    #[serde(default = "usual_order")]
    pub order: u32,
    /// Over labels and `id`, nothing that a device says of itself; absent: the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Selector>,
    /// A merge patch over the defaults (RFC 7396), with the fields of [`Settings`].
    pub set: Map<String, Value>,
    pub by: String,
    pub at: Timestamp,
    /// When it ends by itself; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Rule {
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Of a rule that says none: room before it and behind.
pub fn usual_order() -> u32 {
    100
}

/// Why settings cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("`{field}` is no setting; known are {known}")]
    Unknown { field: String, known: String },
    #[error("the settings are malformed: {reason}")]
    Malformed { reason: String },
    #[error("`{field}` is {found}, it may be {least} to {most}")]
    Range { field: &'static str, found: u64, least: u64, most: u64 },
}

fn known() -> Map<String, Value> {
    let mut all = match serde_json::to_value(Settings::default()) {
        Ok(Value::Object(all)) => all,
        _ => Map::new(), // plain data: it is an object
    };
    // Left out where nothing differs from the default.
    let telemetry = serde_json::to_value(TelemetrySettings::default()).unwrap_or_default();
    all.entry("telemetry").or_insert(telemetry);
    all
}

/// RFC 7396: objects are merged, `null` takes away, everything else replaces.
fn merge(into: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(patch)) = (&mut *into, patch) else {
        into.clone_from(patch);
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn merged<'a>(patches: impl IntoIterator<Item = &'a Map<String, Value>>) -> Result<Settings, SettingError> {
    let mut all = Value::Object(known());
    for patch in patches {
        merge(&mut all, &Value::Object(patch.clone()));
    }
    serde_json::from_value(all).map_err(|e| SettingError::Malformed { reason: e.to_string() })
}

/// Checks what a rule wants to set, by itself.
///
/// # Errors
/// [`SettingError`].
pub fn check(set: &Map<String, Value>) -> Result<(), SettingError> {
    let all = known();
    // Fields that are left out where they are empty have no default to be seen here: they are known by surviving.
    let settings = merged([set])?;
    let survivors = serde_json::to_value(&settings).unwrap_or_default();
    for (field, value) in set {
        if !all.contains_key(field) && !value.is_null() && survivors.get(field).is_none() {
            let known = all.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(SettingError::Unknown { field: field.clone(), known });
        }
        let (Some(Value::Object(all)), Value::Object(given)) = (all.get(field), value) else { continue };
        if let Some((inner, _)) =
            given.iter().find(|(key, value)| !all.contains_key(*key) && !value.is_null())
        {
            let known = all.keys().map(|key| format!("{field}.{key}")).collect::<Vec<_>>().join(", ");
            return Err(SettingError::Unknown { field: format!("{field}.{inner}"), known });
        }
    }
    let bounds = [
        ("window_secs", settings.window_secs, 1, LONGEST_SECS),
        ("profile_secs", settings.profile_secs, 0, LONGEST_SECS),
        ("heartbeat_secs", settings.heartbeat_secs, 1, LONGEST_SECS),
        ("block_bytes", u64::from(settings.block_bytes), 4 << 10, 128 << 10),
    ];
    let hold = ("telemetry.hold_secs", settings.telemetry.hold_secs, 0, LONGEST_SECS);
    let daily = Some(settings.telemetry.bytes_per_day).filter(|bytes| *bytes > 0);
    let daily = daily.map(|bytes| ("telemetry.bytes_per_day", bytes, DAILY_BYTES[0], DAILY_BYTES[1]));
    for (field, found, least, most) in bounds.into_iter().chain([hold]).chain(daily) {
        if found < least || found > most {
            return Err(SettingError::Range { field, found, least, most });
        }
    }
    Ok(())
}

/// The settings of a device with these labels. A rule that does not fit any more (stored by another version) is
/// passed over: one bad rule must not leave a device without settings.
pub fn resolve(rules: &[Rule], attributes: &BTreeMap<String, String>) -> Settings {
    let mut mine: Vec<_> =
        rules.iter().filter(|rule| rule.select.as_ref().is_none_or(|s| s.matches(attributes))).collect();
    mine.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
    let mut taken: Vec<&Map<String, Value>> = Vec::new();
    let mut settings = Settings::default();
    for rule in mine {
        taken.push(&rule.set);
        match merged(taken.iter().copied()) {
            Ok(next) => settings = next,
            Err(_) => drop(taken.pop()),
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::desired::Metered;
    use serde_json::json;

    fn rule(name: &str, order: u32, select: Option<&str>, set: Value) -> Rule {
        let Value::Object(set) = set else { panic!("an object") };
        let select = select.map(|text| text.parse().unwrap());
        Rule { name: name.into(), order, select, set, by: "ann".into(), at: Timestamp::EPOCH, until: None }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn later_rules_win_and_selectors_choose() {
        let rules = [
            rule("b", 100, Some("site=plant-7"), json!({"window_secs": 60})),
            rule("a", 200, Some("role=kiosk"), json!({"window_secs": 30, "transport": "mqtt"})),
            rule("fleet", 1, None, json!({"window_secs": 120, "profile_secs": 600})),
        ];
        let of = |pairs| {
            let found = resolve(&rules, &labels(pairs));
            (found.window_secs, found.profile_secs, found.heartbeat_secs)
        };
        assert_eq!(of(&[]), (120, 600, 60));
        assert_eq!(of(&[("site", "plant-7")]), (60, 600, 60));
        assert_eq!(of(&[("site", "plant-7"), ("role", "kiosk")]), (30, 600, 60));
        assert_eq!(resolve(&[], &labels(&[])), Settings::default());
    }

    #[test]
    fn a_rule_that_does_not_fit_any_more_is_passed_over() {
        let rules = [
            rule("a", 1, None, json!({"window_secs": "soon"})),
            rule("b", 2, None, json!({"profile_secs": 60})),
        ];
        let found = resolve(&rules, &labels(&[]));
        assert_eq!((found.window_secs, found.profile_secs), (300, 60));
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |set: Value| {
            let Value::Object(set) = set else { panic!("an object") };
            check(&set).unwrap_err().to_string()
        };
        assert!(wrong(json!({"window": 5})).starts_with("`window` is no setting; known are "));
        assert_eq!(wrong(json!({"window_secs": 0})), "`window_secs` is 0, it may be 1 to 86400");
        assert!(wrong(json!({"window_secs": "5"})).starts_with("the settings are malformed: invalid type"));
        assert!(wrong(json!({"transport": "pigeon"})).contains("unknown variant `pigeon`"));
        assert_eq!(
            wrong(json!({"telemetry": {"bytes": 5}})),
            "`telemetry.bytes` is no setting; known are telemetry.bytes_per_day, telemetry.hold_secs, telemetry.metered"
        );
        assert_eq!(
            wrong(json!({"telemetry": {"bytes_per_day": 9}})),
            "`telemetry.bytes_per_day` is 9, it may be 10000 to 1099511627776"
        );
        assert!(wrong(json!({"telemetry": {"metered": "never"}})).contains("unknown variant `never`"));
        assert!(wrong(json!({"telemetry": 5})).starts_with("the settings are malformed"));
        for fine in [
            json!({"window_secs": 5, "transport": "https", "profile_secs": 0}),
            json!({"telemetry": {"bytes_per_day": 60_000, "metered": "essential"}}),
            json!({"telemetry": {"bytes_per_day": 0, "metered": null}}),
            json!({"telemetry": null}),
        ] {
            let Value::Object(fine) = fine else { panic!("an object") };
            assert_eq!(check(&fine), Ok(()), "{fine:?}");
        }
    }

    #[test]
    fn a_rule_may_set_one_field_of_a_field_and_leave_the_other() {
        let rules = [
            rule("a", 1, None, json!({"telemetry": {"bytes_per_day": 60_000, "metered": "essential"}})),
            rule("b", 2, Some("site=ship"), json!({"telemetry": {"bytes_per_day": 10_000}})),
        ];
        let of = |pairs| resolve(&rules, &labels(pairs)).telemetry;
        let metered = Metered::Essential;
        assert_eq!(of(&[]), TelemetrySettings { bytes_per_day: 60_000, metered, hold_secs: 0 });
        let ship = TelemetrySettings { bytes_per_day: 10_000, metered, hold_secs: 0 };
        assert_eq!(of(&[("site", "ship")]), ship);
    }
}
