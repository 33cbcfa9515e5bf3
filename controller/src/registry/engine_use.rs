//! Which devices run a bundle with what, by hardware class, from what they report. Pure. Devices make up what they
//! like: what is counted is bounded, and the many go before the few.

use edgefleet_shared::{
    digest::BundleDigest,
    reported::{EngineReport, Facts, RefusalCode, Reported, WhyAgain},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write as _};

/// Hardware classes that are told apart.
const MOST_CLASSES: usize = 64;
/// Setups, and refusals, of one class.
const MOST_OF_CLASS: usize = 24;

/// How the devices that serve a bundle run it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EngineUse {
    /// Devices that serve it.
    pub devices: u64,
    /// Those of them that do not say how they run it.
    pub silent: u64,
    /// Those that made the choice anew since they started because the bundle had become slower.
    pub drifted: u64,
    /// Largest class first.
    pub classes: Vec<ClassUse>,
    /// Classes beyond the bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_classes: u64,
}

/// Devices of one hardware class that say how they run a bundle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClassUse {
    /// The fact `hardware`; empty where devices have none.
    #[schema(example = "pi-4")]
    pub hardware: String,
    pub devices: u64,
    /// What they run it with, most used first.
    pub setups: Vec<SetupUse>,
    /// What they do not use, most frequent first.
    pub refused: Vec<SetupRefusal>,
}

/// A setup in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SetupUse {
    #[schema(example = "onnxruntime/f32/1")]
    pub setup: String,
    pub devices: u64,
    /// Median of the medians these devices measured for one inference of the smallest golden input, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_ms: Option<f64>,
    /// Devices that measured one.
    pub measured: u64,
}

/// A setup that is not used, by verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SetupRefusal {
    #[schema(example = "tract/f32/1")]
    pub setup: String,
    /// Absent: it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub code: Option<RefusalCode>,
    pub devices: u64,
    /// In the words of one of the devices.
    pub reason: String,
}

fn devices(count: u64) -> String {
    format!("{count} device{}", if count == 1 { "" } else { "s" })
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Default)]
struct Class<'a> {
    devices: u64,
    setups: BTreeMap<&'a str, (u64, Vec<f64>)>,
    refused: BTreeMap<(&'a str, Option<RefusalCode>), (u64, &'a str)>,
}

impl EngineUse {
    /// Of the devices that serve the bundle, in whichever slot.
    pub fn of<'a>(bundle: BundleDigest, devices: impl Iterator<Item = (&'a Facts, &'a Reported)>) -> Self {
        let mut found = Self::default();
        let mut classes: BTreeMap<&str, Class<'_>> = BTreeMap::new();
        for (facts, reported) in devices {
            let serves = |digest: Option<BundleDigest>| digest.is_some_and(|digest| digest == bundle);
            let mut slots =
                reported.slots.values().filter(|slot| serves(slot.active.as_ref().and_then(|a| a.digest)));
            let Some(slot) = slots.next() else { continue };
            found.devices += 1;
            let Some(engine) = slot.engine.as_ref().filter(|engine| engine.digest == bundle) else {
                found.silent += 1;
                continue;
            };
            found.drifted += u64::from(engine.again.as_ref().is_some_and(|a| a.why == WhyAgain::Drifted));
            classes.entry(&facts.hardware).or_default().add(engine);
        }
        let mut all: Vec<ClassUse> = classes.into_iter().map(|(name, class)| class.told(name)).collect();
        // Stable: by name among the equal.
        all.sort_by_key(|class| std::cmp::Reverse(class.devices));
        found.more_classes = all.len().saturating_sub(MOST_CLASSES) as u64;
        all.truncate(MOST_CLASSES);
        Self { classes: all, ..found }
    }

    /// For people; `None` where nobody says how it runs the bundle.
    pub fn words(&self) -> Option<String> {
        // Of a bundle that nobody serves, or an engine pack: nothing runs it.
        if self.classes.is_empty() {
            return None;
        }
        let mut text = format!("RUNS on {}", devices(self.devices));
        let noted = [
            (self.silent, "not telling how"),
            (self.drifted, "having chosen anew because it had become slower"),
        ];
        for (count, what) in noted.into_iter().filter(|(count, _)| *count > 0) {
            text += &format!("; {count} {what}");
        }
        for class in &self.classes {
            let name = if class.hardware.is_empty() { "(no hardware class)" } else { &class.hardware };
            // Writing to memory cannot fail.
            let _ = write!(text, "\n  {name}: {}", devices(class.devices));
            for one in &class.setups {
                let median = one.median_ms.map_or("not measured".to_owned(), |ms| format!("{ms:.3} ms"));
                let _ = write!(text, "\n    {:<22} {:>6}  {median}", one.setup, one.devices);
            }
            for one in &class.refused {
                let code = one.code.map_or("not tried", RefusalCode::as_str);
                let _ = write!(
                    text,
                    "\n    {:<22} {:>6}  refused, {code}: {}",
                    one.setup, one.devices, one.reason
                );
            }
        }
        if self.more_classes > 0 {
            let _ = write!(text, "\n  and {} more hardware classes", self.more_classes);
        }
        Some(text)
    }
}

impl<'a> Class<'a> {
    fn add(&mut self, engine: &'a EngineReport) {
        self.devices += 1;
        let setup = self.setups.entry(&engine.setup).or_default();
        setup.0 += 1;
        setup.1.extend(engine.median_ms());
        let mut seen = std::collections::BTreeSet::new();
        for refused in &engine.refused {
            // A device counts once, however often it says the same.
            if seen.insert((&refused.setup, refused.code)) {
                self.refused.entry((&refused.setup, refused.code)).or_insert((0, &refused.reason)).0 += 1;
            }
        }
    }

    fn told(self, hardware: &str) -> ClassUse {
        let setups = self.setups.into_iter().map(|(setup, (devices, times))| SetupUse {
            setup: setup.to_owned(),
            devices,
            measured: times.len() as u64,
            median_ms: median(times),
        });
        let refused = self.refused.into_iter().map(|((setup, code), (devices, reason))| SetupRefusal {
            setup: setup.to_owned(),
            code,
            devices,
            reason: reason.to_owned(),
        });
        let (mut setups, mut refused): (Vec<_>, Vec<_>) = (setups.collect(), refused.collect());
        setups.sort_by_key(|one| std::cmp::Reverse(one.devices));
        refused.sort_by_key(|one| (std::cmp::Reverse(one.devices), one.code.is_none()));
        setups.truncate(MOST_OF_CLASS);
        refused.truncate(MOST_OF_CLASS);
        ClassUse { hardware: hardware.to_owned(), devices: self.devices, setups, refused }
    }
}

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_unstable_by(f64::total_cmp);
    let middle = times.len() / 2;
    let upper = *times.get(middle)?;
    match times.len() % 2 {
        0 => Some(f64::midpoint(times[middle - 1], upper)),
        _ => Some(upper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::reported::{ChosenAgain, MeasuredSetup, RefusedSetup};
    use serde_json::json;

    fn bundle() -> BundleDigest {
        BundleDigest::of(b"digits@2")
    }

    fn device(hardware: &str, engine: Option<EngineReport>) -> (Facts, Reported) {
        let facts = Facts { hardware: hardware.into(), ..Facts::default() };
        let installed =
            json!({"bundle": "digits@2", "digest": bundle(), "attempt": {"rollout": "r-1", "number": 1}});
        let mut reported: Reported = serde_json::from_value(json!({
            "schema": 1, "device": "dev-1", "boot": "00".repeat(16), "at": "2026-11-23T08:00:00Z",
            "clock": "plausible", "generation": 1, "trust_version": 1, "facts": {},
            "slots": {"digits": {"phase": "committed", "active": installed}},
        }))
        .unwrap();
        reported.slots.values_mut().for_each(|slot| slot.engine.clone_from(&engine));
        (facts, reported)
    }

    fn runs(setup: &str, ms: Option<f64>, refused: &[(&str, Option<RefusalCode>)]) -> Option<EngineReport> {
        let refused = refused.iter().map(|(setup, code)| RefusedSetup {
            setup: (*setup).into(),
            code: *code,
            reason: "a reason".into(),
        });
        Some(EngineReport {
            digest: bundle(),
            setup: setup.into(),
            current: true,
            rounds: 50,
            measured: vec![MeasuredSetup { setup: setup.into(), median_ms: ms, batch: None }],
            refused: refused.collect(),
            again: None,
        })
    }

    fn of(devices: &[(Facts, Reported)]) -> EngineUse {
        EngineUse::of(bundle(), devices.iter().map(|(facts, reported)| (facts, reported)))
    }

    #[test]
    fn devices_are_told_by_hardware_class_with_the_median_of_their_medians() {
        let wrong = Some(RefusalCode::GoldenMismatch);
        let mut drifted = runs("tract/f32/1", Some(9.0), &[]).unwrap();
        drifted.again = Some(ChosenAgain {
            why: WhyAgain::Drifted,
            at: "2026-11-23T08:00:00Z".parse().unwrap(),
            from: "onnxruntime/f32/1".into(),
            times: 1,
        });
        let other = EngineReport { digest: BundleDigest::of(b"x"), ..drifted.clone() };
        let mut elsewhere = device("pi-4", Some(drifted.clone()));
        elsewhere.1.slots.clear();
        let fleet = [
            device(
                "pi-4",
                runs("onnxruntime/f32/1", Some(1.0), &[("tract/f32/1", wrong), ("tract/f32/1", wrong)]),
            ),
            device("pi-4", runs("onnxruntime/f32/1", Some(3.0), &[("tract/f32/1", wrong)])),
            device("pi-4", runs("onnxruntime/f32/1", Some(90.0), &[("tract/f16/1", None)])),
            device("pi-4", runs("tract/f32/1", None, &[])),
            device("", Some(drifted)),
            // It speaks of another bundle than it serves, or not at all, or serves another.
            device("pi-4", Some(other)),
            device("pi-4", None),
            elsewhere,
        ];
        let found = of(&fleet);
        assert_eq!((found.devices, found.silent, found.drifted), (7, 2, 1));
        insta::assert_snapshot!(found.words().unwrap());
        assert_eq!(found.classes[0].setups[0].median_ms, Some(3.0));
        assert_eq!((found.classes[0].refused[0].devices, found.classes[0].refused[0].code), (2, wrong));
        assert_eq!(of(&[]).words(), None);
    }

    #[test]
    fn what_devices_make_up_stays_bounded_and_behind_what_many_say() {
        let mut fleet: Vec<_> = (0..200)
            .map(|n| device(&format!("class-{n}"), runs(&format!("engine-{n}/f32/1"), Some(1.0), &[])))
            .collect();
        for n in 0..100 {
            let setup = if n < 50 { "tract/f32/1".to_owned() } else { format!("made-up-{n}") };
            fleet.push(device("pi-5", runs(&setup, Some(1.0), &[(&setup, None)])));
        }
        let found = of(&fleet);
        assert_eq!((found.classes.len(), found.more_classes), (MOST_CLASSES, 201 - MOST_CLASSES as u64));
        let first = &found.classes[0];
        assert_eq!((first.hardware.as_str(), first.setups.len()), ("pi-5", MOST_OF_CLASS));
        assert_eq!((first.setups[0].setup.as_str(), first.setups[0].devices), ("tract/f32/1", 50));
        assert_eq!(first.refused.len(), MOST_OF_CLASS);
    }

    #[test]
    fn a_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }
}
