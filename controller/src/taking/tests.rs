//! In `cli/advice_tests.rs`: against a whole controller. Here: names.

use super::*;

#[test]
fn a_step_without_a_manifest_is_no_bundle() {
    let json = r#"{"text":"x","step":"make-bundle","from":"digits@1","bundle":"digits@2",
        "change":{"of":"calibration"},"outcome":"done"}"#;
    let step: TakenStep = serde_json::from_str(json).unwrap();
    assert!(step.bundle().is_none());
}
