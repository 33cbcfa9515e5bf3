//! Which devices can take a bundle, from what they say of themselves. Pure, and a forecast: each device proves
//! it before it activates.

use super::record::BundleRecord;
use edgefleet_shared::{bundle::Manifest, reported::Facts};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What a bundle needs of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Hardware classes; empty is any.
    hardware: Vec<String>,
    /// Architectures; empty is any.
    targets: BTreeSet<String>,
    /// Engines that gave right answers when it was pushed; empty is not known.
    engines: BTreeSet<String>,
    /// The bundle's own limit; 0 is none.
    memory_bytes: u64,
}

/// What a device lacks, the first of these that is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lack {
    Hardware,
    Architecture,
    Engine,
    Memory,
}

impl Needs {
    pub fn of(record: &BundleRecord, manifest: Option<&Manifest>) -> Self {
        let mut needs = Self { hardware: record.hardware.clone(), ..Self::default() };
        if let Some(manifest) = manifest {
            needs.memory_bytes = manifest.limits.peak_memory_bytes;
            // One variant for any architecture is enough.
            if manifest.artifacts.iter().all(|artifact| !artifact.targets.is_empty()) {
                needs.targets = manifest.artifacts.iter().flat_map(|a| a.targets.clone()).collect();
            }
        }
        let passed = record.checks.verdict.iter().flat_map(|verdict| &verdict.passed);
        needs.engines = passed.filter_map(|setup| setup.split('/').next()).map(str::to_owned).collect();
        needs
    }

    /// `None`: as far as is known it can run the bundle.
    pub fn lacking(&self, facts: &Facts) -> Option<Lack> {
        let arch = |target: &String| *target == facts.arch || arm(target, &facts.arch);
        let names = facts.engines.iter().filter_map(|engine| engine.split(' ').next());
        let mut names = names.peekable();
        if !self.hardware.is_empty() && !self.hardware.contains(&facts.hardware) {
            Some(Lack::Hardware)
        } else if !self.targets.is_empty() && !self.targets.iter().any(arch) {
            Some(Lack::Architecture)
        } else if !self.engines.is_empty()
            && names.peek().is_some()
            && !names.any(|n| self.engines.contains(n))
        {
            Some(Lack::Engine)
        } else if facts.memory_bytes > 0 && facts.memory_bytes < self.memory_bytes {
            Some(Lack::Memory)
        } else {
            None
        }
    }

    fn words(&self, lack: &Lack) -> String {
        let list = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join(" or ");
        match lack {
            Lack::Hardware => format!("not of hardware class {}", self.hardware.join(" or ")),
            Lack::Architecture => format!("not {}", list(&self.targets)),
            Lack::Engine => format!("without {}", list(&self.engines).replace("onnxruntime", "ONNX Runtime")),
            Lack::Memory => format!("with less than {} MiB of memory", self.memory_bytes.div_ceil(1 << 20)),
        }
    }
}

/// 32-bit ARM has several names.
fn arm(target: &str, arch: &str) -> bool {
    let names = ["arm", "armv6l", "armv7l"];
    names.contains(&target) && names.contains(&arch)
}

/// How many of some devices can run a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Ability {
    pub devices: u64,
    pub able: u64,
    /// Never said what they are.
    #[serde(default)]
    pub silent: u64,
    /// The others by what they lack, in words that follow a number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lacking: BTreeMap<String, u64>,
}

impl Ability {
    pub fn of<'a>(needs: &Needs, devices: impl Iterator<Item = &'a Facts>) -> Self {
        let mut found = Self::default();
        for facts in devices {
            found.devices += 1;
            if facts.arch.is_empty() {
                found.silent += 1;
            } else if let Some(lack) = needs.lacking(facts) {
                *found.lacking.entry(needs.words(&lack)).or_default() += 1;
            } else {
                found.able += 1;
            }
        }
        found
    }

    /// Everybody can.
    pub fn is_full(&self) -> bool {
        self.able == self.devices
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} devices can run it", self.able, self.devices)?;
        self.lacking.iter().try_for_each(|(lack, count)| write!(f, "; {count} {lack}"))?;
        match self.silent {
            0 => Ok(()),
            silent => write!(f, "; {silent} not heard of yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(arch: &str, engines: &[&str], memory: u64) -> Facts {
        let engines = engines.iter().map(|engine| (*engine).to_owned()).collect();
        Facts { arch: arch.into(), engines, memory_bytes: memory, hardware: "pi4".into(), ..Facts::default() }
    }

    fn needs() -> Needs {
        Needs {
            hardware: vec![],
            targets: ["aarch64".to_owned()].into(),
            engines: ["onnxruntime".to_owned()].into(),
            memory_bytes: 64 << 20,
        }
    }

    #[test]
    fn devices_are_counted_by_the_first_thing_they_lack() {
        let fleet = [
            facts("aarch64", &["tract 0.23.9", "onnxruntime 1.31.1"], 1 << 30),
            facts("aarch64", &["tract 0.23.9", "onnxruntime"], 0),
            // From before engines were told: not counted out.
            facts("aarch64", &[], 1 << 30),
            facts("aarch64", &["tract 0.23.9"], 1 << 30),
            facts("aarch64", &["tract 0.23.9"], 1 << 20),
            facts("aarch64", &["onnxruntime 1.31.1"], 1 << 20),
            facts("x86_64", &["onnxruntime 1.31.1"], 1 << 30),
            Facts::default(),
        ];
        let found = Ability::of(&needs(), fleet.iter());
        assert_eq!(
            found.to_string(),
            "3 of 8 devices can run it; 1 not aarch64; 1 with less than 64 MiB of memory; 2 without ONNX Runtime; \
             1 not heard of yet"
        );
        assert!(!found.is_full());
        let any = Ability::of(&Needs::default(), fleet[..7].iter());
        assert_eq!((any.to_string().as_str(), any.is_full()), ("7 of 7 devices can run it", true));
    }

    #[test]
    fn hardware_classes_and_names_of_arm_are_as_a_device_reads_them() {
        let mut wanted = needs();
        wanted.hardware = vec!["pi5".into()];
        assert_eq!(wanted.lacking(&facts("aarch64", &[], 0)), Some(Lack::Hardware));
        wanted.hardware.push("pi4".into());
        assert_eq!(wanted.lacking(&facts("aarch64", &[], 0)), None);
        wanted.targets = ["armv7l".to_owned()].into();
        assert_eq!(wanted.lacking(&facts("arm", &[], 0)), None);
        assert_eq!(wanted.lacking(&facts("aarch64", &[], 0)), Some(Lack::Architecture));
    }
}
