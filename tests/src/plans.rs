//! Plans as the API takes them, and what became of attempts.

use edgefleet_controller::clock;
use edgefleet_shared::ids::{BundleName, SlotName};
use serde_json::{Value, json};

/// Everybody at once, without statistics and without limits, in place of whatever runs there.
pub fn assign(bundle: &str, selector: &str, probation_secs: u64) -> Value {
    let slot = match bundle.parse::<BundleName>() {
        Ok(name) => SlotName::from(&name.model).to_string(),
        Err(_) => bundle.to_owned(), // the controller says what is wrong with it
    };
    let many = 1_000_000_000_u64;
    json!({
        "plan": {
            "rollout": {
                "slot": slot,
                "bundle": bundle,
                "allow_downgrade": "a test goes back and forth",
                "on_overlap": "supersede",
            },
            "select": [selector],
            "assign": { "controls_per_canary": 0, "strata": [] },
            "limits": { "start_per_min": many, "cap_per_min": many, "concurrency": "100%" },
            "stages": [{ "name": "all", "size": "100%" }],
            "hard": {
                "failed": "100%",
                "verify_failed": many,
                "rolled_back": many,
                "lost": many,
                "preflight_failed": many,
            },
            "on_fail": "freeze",
            // A failure is an end, at once.
            "retry": { "download": 1, "activation": 1, "penalties": 0 },
            "probation": probation_secs,
        },
        "confirmed": true,
    })
}

/// Whether a device is done with its attempt, well or badly.
pub fn has_ended(attempt: &Value) -> bool {
    let ends = ["committed", "failed", "timed-out", "lost", "cancelled", "superseded", "removed", "reverted"];
    attempt["state"].as_str().is_some_and(|state| ends.contains(&state))
}

/// A lab of named devices, canaries, everybody: hard rules only, without limits and soaks. Canaries and the
/// rest wait for most of their devices, not for those in trouble.
pub fn staged(bundle: &str, lab: &[&str]) -> Value {
    let mut plan = assign(bundle, "", 2)["plan"].take();
    plan["rollout"]["on_overlap"] = "refuse".into();
    plan["assign"]["controls_per_canary"] = 1.into();
    plan["stages"] = json!([
        { "name": "lab", "devices": lab },
        { "name": "canary", "size": 8, "coverage": "50%" },
        { "name": "all", "size": "100%", "coverage": "80%" },
    ]);
    plan["hard"] = json!({});
    plan["retry"] = json!({});
    plan["on_fail"] = "revert".into();
    plan
}

/// A window that is open now and for hours where clocks show UTC, and closed half a world away.
pub fn open_in_utc() -> Value {
    let hour = (clock::now().as_millis() / 3_600_000 + 23) % 24;
    json!({ "cron": format!("0 {hour} * * *"), "for": "6h", "zone": "device-local" })
}
