//! Many open drifts, few incidents: grouped by what explains them.
//!
//! | seen | cause | one incident per |
//! |---|---|---|
//! | the cohort differs from its baseline | population | bundle and cohort; every device that follows its cohort is part of it |
//! | a device differs from its cohort and from its own usual | local, also where it drags the sum of its cohort along | bundle and device |
//! | more than a few such devices in one cohort | scattered | bundle and cohort |
//! | a device differs from its cohort, as it always did | none: another place, not a drift | |

use super::{
    decide::{DriftState, Reference},
    settings::DriftSettings,
};
use edgefleet_shared::{
    bundle::baseline::ChannelKind,
    ids::{BundleName, ChannelId, DeviceId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Channels and devices named in one incident; the rest is counted.
const NAMED: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// One device: dirt, a moved camera, a sensor.
    Local,
    /// The inputs of a whole cohort are no longer what the bundle was measured on.
    Population,
    /// Many devices of a cohort, each in its own way.
    Scattered,
}

/// What makes two observations the same incident.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IncidentKey {
    pub bundle: BundleName,
    pub cohort: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    pub cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentChannel {
    pub id: ChannelId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ChannelKind>,
    pub since: Timestamp,
    pub js: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w1: Option<f64>,
    pub psi: f64,
    /// In effect floors.
    pub size: f64,
    pub p: f64,
    pub missing: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub key: IncidentKey,
    pub since: Timestamp,
    pub last: Timestamp,
    /// The largest first; at most 16.
    pub channels: Vec<IncidentChannel>,
    pub channels_in_all: usize,
    /// Devices it explains, and some of them.
    pub devices: usize,
    pub examples: Vec<DeviceId>,
    /// Size at the last time somebody was told, in effect floors, and when.
    pub told_size: f64,
    pub told: Timestamp,
}

impl Incident {
    pub fn size(&self) -> f64 {
        self.channels.first().map_or(0.0, |channel| channel.size)
    }
    pub fn touches(&self, kinds: &[ChannelKind]) -> bool {
        self.channels.iter().any(|channel| channel.kind.is_some_and(|kind| kinds.contains(&kind)))
    }
}

/// The drifts of one device, or of a whole cohort (`device: None`; then only baseline and usual).
#[derive(Clone, Debug, Default)]
pub struct SubjectDrift<'a> {
    pub cohort: &'a str,
    pub device: Option<&'a DeviceId>,
    pub baseline: Option<&'a DriftState>,
    pub usual: Option<&'a DriftState>,
    pub cohort_now: Option<&'a DriftState>,
}

impl SubjectDrift<'_> {
    /// Which reference shows the device's own fault, if any. Without a usual one (a new device) the baseline
    /// stands in for it.
    fn local(&self) -> Option<&DriftState> {
        let cohort_now = self.cohort_now.filter(|state| state.is_open())?;
        let own = match self.usual {
            Some(usual) if usual.looked.is_some() => usual,
            _ => self.baseline?,
        };
        own.is_open().then_some(cohort_now)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncidentChange {
    Opened,
    Updated,
    Resolved,
}

/// What is open now, and what somebody should be told. `previous`: the incidents of this bundle that were open.
pub fn group(
    bundle: &BundleName,
    previous: &[Incident],
    subjects: &[SubjectDrift<'_>],
    settings: &DriftSettings,
    now: Timestamp,
) -> (Vec<Incident>, Vec<(IncidentChange, Incident)>) {
    let mut open: BTreeMap<IncidentKey, Incident> = BTreeMap::new();
    let key = |subject: &SubjectDrift<'_>, device: Option<&DeviceId>, cause| IncidentKey {
        bundle: bundle.clone(),
        cohort: subject.cohort.to_owned(),
        device: device.cloned(),
        cause,
    };
    for subject in subjects.iter().filter(|subject| subject.device.is_none()) {
        if let Some(state) = subject.baseline.filter(|state| state.is_open()) {
            let key = key(subject, None, Cause::Population);
            open.insert(key.clone(), incident(key, &[(None, state)], now));
        }
    }
    let mut local: BTreeMap<&str, Vec<(&DeviceId, &DriftState, &SubjectDrift<'_>)>> = BTreeMap::new();
    for subject in subjects {
        let Some(device) = subject.device else { continue };
        if let Some(state) = subject.local() {
            local.entry(subject.cohort).or_default().push((device, state, subject));
            continue;
        }
        let follows = subject.baseline.is_some_and(DriftState::is_open);
        if follows && let Some(incident) = open.get_mut(&key(subject, None, Cause::Population)) {
            note(incident, device);
        }
    }
    // A cohort that drifts although none of its devices follows is the sum of the local ones.
    open.retain(|key, incident| incident.devices > 0 || !local.contains_key(key.cohort.as_str()));
    for devices in local.into_values() {
        if devices.len() > settings.most_local {
            let states: Vec<_> = devices.iter().map(|(device, state, _)| (Some(*device), *state)).collect();
            let Some((_, _, subject)) = devices.first() else { continue };
            let key = key(subject, None, Cause::Scattered);
            open.insert(key.clone(), incident(key, &states, now));
        } else {
            for (device, state, subject) in devices {
                let key = key(subject, Some(device), Cause::Local);
                open.insert(key.clone(), incident(key, &[(Some(device), state)], now));
            }
        }
    }
    changes(previous, open, settings, now)
}

fn note(incident: &mut Incident, device: &DeviceId) {
    incident.devices += 1;
    if incident.examples.len() < NAMED {
        incident.examples.push(device.clone());
    }
}

fn incident(key: IncidentKey, states: &[(Option<&DeviceId>, &DriftState)], now: Timestamp) -> Incident {
    let mut channels: BTreeMap<&ChannelId, IncidentChannel> = BTreeMap::new();
    for (id, state) in states.iter().flat_map(|(_, state)| state.open()) {
        let found = &state.last;
        let one = IncidentChannel {
            id: id.clone(),
            kind: found.kind,
            since: state.open_since.unwrap_or(now),
            js: found.score(),
            w1: found.w1.map(|w1| w1.value),
            psi: found.psi.map_or(0.0, |psi| psi.value),
            size: found.size(),
            p: found.p,
            missing: found.missing.now,
        };
        match channels.get_mut(id) {
            Some(known) if known.size >= one.size => known.since = known.since.min(one.since),
            Some(known) => *known = IncidentChannel { since: known.since.min(one.since), ..one },
            None => {
                channels.insert(id, one);
            }
        }
    }
    let mut channels: Vec<_> = channels.into_values().collect();
    channels.sort_by(|a, b| b.size.total_cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let since = channels.iter().map(|channel| channel.since).min().unwrap_or(now);
    let channels_in_all = channels.len();
    channels.truncate(NAMED);
    let mut incident = Incident {
        key,
        since,
        last: now,
        channels,
        channels_in_all,
        devices: 0,
        examples: Vec::new(),
        told_size: 0.0,
        told: now,
    };
    for device in states.iter().filter_map(|(device, _)| *device) {
        note(&mut incident, device);
    }
    incident
}

fn changes(
    previous: &[Incident],
    mut open: BTreeMap<IncidentKey, Incident>,
    settings: &DriftSettings,
    now: Timestamp,
) -> (Vec<Incident>, Vec<(IncidentChange, Incident)>) {
    let mut told = Vec::new();
    for before in previous {
        let Some(incident) = open.get_mut(&before.key) else {
            let resolved = Incident { last: now, ..before.clone() };
            told.push((IncidentChange::Resolved, resolved));
            continue;
        };
        incident.since = incident.since.min(before.since);
        let more =
            incident.channels.iter().any(|channel| before.channels.iter().all(|old| old.id != channel.id));
        let grown = incident.size() >= settings.grown * before.told_size.max(1e-9);
        if (more && before.channels_in_all < NAMED) || grown || now.since(before.told) >= settings.remind {
            incident.told_size = incident.size();
            told.push((IncidentChange::Updated, incident.clone()));
        } else {
            (incident.told_size, incident.told) = (before.told_size, before.told);
        }
    }
    for incident in open.values_mut().filter(|one| previous.iter().all(|before| before.key != one.key)) {
        incident.told_size = incident.size();
        told.push((IncidentChange::Opened, incident.clone()));
    }
    (open.into_values().collect(), told)
}

/// Which references a subject can be compared with.
pub fn references(is_device: bool) -> &'static [Reference] {
    if is_device {
        &[Reference::Baseline, Reference::Usual, Reference::Cohort]
    } else {
        &[Reference::Baseline, Reference::Usual]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        assess::ChannelVerdict,
        decide::{
            step,
            tests::{drift, hour},
        },
    };
    use super::*;

    fn state(is_open: bool) -> DriftState {
        let verdict = if is_open { ChannelVerdict::Shifted } else { ChannelVerdict::Steady };
        (1..4).fold(DriftState::default(), |state, n| {
            step(&state, &[drift("input/a", verdict)], &DriftSettings::default(), hour(n)).0
        })
    }

    fn run(
        previous: &[Incident],
        cohort: bool,
        devices: &[(bool, Option<bool>, bool)],
        at: u64,
    ) -> (Vec<Incident>, Vec<(IncidentChange, Incident)>) {
        let (yes, no) = (state(true), state(false));
        let pick = |open: bool| Some(if open { &yes } else { &no });
        let ids: Vec<DeviceId> = (0..devices.len()).map(|n| format!("cam-{n}").parse().unwrap()).collect();
        let mut subjects =
            vec![SubjectDrift { cohort: "all", baseline: pick(cohort), ..SubjectDrift::default() }];
        for (device, (baseline, usual, cohort_now)) in ids.iter().zip(devices) {
            subjects.push(SubjectDrift {
                cohort: "all",
                device: Some(device),
                baseline: pick(*baseline),
                usual: usual.map(|open| if open { &yes } else { &no }),
                cohort_now: pick(*cohort_now),
            });
        }
        group(&"digits@1".parse().unwrap(), previous, &subjects, &DriftSettings::default(), hour(at))
    }

    #[test]
    fn a_thousand_devices_that_drift_with_their_cohort_are_one_incident() {
        let devices = vec![(true, Some(true), false); 1_000];
        let (open, told) = run(&[], true, &devices, 5);
        assert_eq!((open.len(), told.len()), (1, 1));
        assert_eq!((open[0].key.cause, open[0].devices), (Cause::Population, 1_000));
        let (open, told) = run(&open, true, &devices, 6);
        assert!(told.is_empty(), "nothing new is nothing to tell");
        let (open, told) = run(&open, true, &devices, 40);
        assert_eq!(told[0].0, IncidentChange::Updated);
        let (open, told) = run(&open, false, &vec![(false, Some(false), false); 1_000], 41);
        assert_eq!((open.len(), told[0].0), (0, IncidentChange::Resolved));
    }

    #[test]
    fn one_device_apart_is_its_own_incident_and_many_are_one() {
        let quiet = (false, Some(false), false);
        let apart = (true, Some(true), true);
        let (open, _) = run(&[], false, &[quiet, apart, quiet], 5);
        assert_eq!((open.len(), open[0].key.cause), (1, Cause::Local));
        assert_eq!(open[0].key.device.as_ref().unwrap().as_str(), "cam-1");
        let (open, told) = run(&open, false, &[apart; 50], 6);
        assert_eq!((open.len(), open[0].key.cause, open[0].devices), (1, Cause::Scattered, 50));
        assert_eq!(told.len(), 2, "the one is resolved, the many are opened");
    }

    #[test]
    fn a_device_that_always_was_different_is_no_incident_and_a_new_one_is_judged_by_the_baseline() {
        assert!(run(&[], false, &[(true, Some(false), true)], 5).0.is_empty());
        assert_eq!(run(&[], false, &[(true, None, true)], 5).0.len(), 1);
        assert!(run(&[], false, &[(false, None, true)], 5).0.is_empty());
    }
}
