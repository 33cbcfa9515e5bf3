//! A01 to A03: inputs that moved; on one device, without harm, with harm.

use super::{
    super::{
        action::{Action, LabelFilter},
        evidence::{Audited, Evidence, Slice},
        finding::{Confidence, Finding, Plot, RuleId, Scope, Severity, percent},
        rule::{AdviceSettings, Judged},
    },
    audits::lost,
};
use crate::{
    drift::{Cause, Incident},
    estimate::{Drop, Estimate, Estimator, drop, drop_from, estimate},
};
use edgefleet_shared::{bundle::baseline::ChannelKind, time::Timestamp};

pub(super) const INPUTS: [ChannelKind; 3] = [ChannelKind::Input, ChannelKind::Image, ChannelKind::Category];

pub(super) fn scope_of(incident: &Incident) -> Scope {
    let (bundle, cohort) = (incident.key.bundle.clone(), incident.key.cohort.clone());
    match incident.key.device.clone() {
        Some(device) => Scope::Device { bundle, cohort, device },
        None => Scope::Cohort { bundle, cohort },
    }
}

/// "input/a (JS 0.31, 3.1 times the limit) and 2 more"
pub(super) fn channels(incident: &Incident) -> String {
    let named: Vec<_> = incident
        .channels
        .iter()
        .take(3)
        .map(|c| format!("{} (JS distance {:.2}, {:.1} times the limit)", c.id, c.js, c.size))
        .collect();
    let more = incident.channels_in_all.saturating_sub(named.len());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    named.join(", ") + &rest
}

/// "8 devices"; none may have drifted by itself yet when their sum does.
fn who(incident: &Incident) -> String {
    match incident.devices {
        0 => format!("the devices of `{}` together", incident.key.cohort),
        1 => "1 device".to_owned(),
        n => format!("{n} devices"),
    }
}

/// Shares by bin, now and in the baseline, of the channel that moved most.
pub(super) fn histogram(evidence: &Evidence, slice: Option<&Slice>, incident: &Incident) -> Option<Plot> {
    let id = &incident.channels.first()?.id;
    let known = evidence.baseline.as_ref()?.channel(id)?;
    let now = slice?.now.as_ref()?.channel(id.as_str())?;
    let shares = |counts: Vec<u64>| {
        let all = counts.iter().map(|n| *n as f64).sum::<f64>().max(1.0);
        counts.into_iter().map(|n| n as f64 / all).collect::<Vec<_>>()
    };
    let names: Vec<String> = known.categories.keys().cloned().collect();
    let of = |categories: &std::collections::BTreeMap<String, u64>| {
        names.iter().map(|name| categories.get(name).copied().unwrap_or(0)).collect::<Vec<_>>()
    };
    let (now, reference) = match names.is_empty() {
        true => (shares(now.bins.clone()), shares(known.bins.clone())),
        false => (shares(of(&now.categories)), shares(of(&known.categories))),
    };
    let title = format!("{id}: share of rows, now and in the baseline");
    Some(Plot::Histogram { title, edges: known.edges.clone(), names, now, reference })
}

/// The estimate of now and how far it fell, by the first estimator that is trusted; from last week's where there is
/// one that was not drifting itself, else from the held-out accuracy.
pub(super) fn fallen(evidence: &Evidence, slice: &Slice) -> Option<(Estimator, Estimate, Drop)> {
    let baseline = evidence.baseline.as_ref()?.quality.as_ref()?;
    let now = slice.now.as_ref()?.quality.as_ref()?;
    Estimator::ALL.into_iter().filter(|which| evidence.trusts(*which)).find_map(|which| {
        let now = estimate(which, now, baseline)?;
        let before = slice.usual.as_ref().and_then(|usual| usual.quality.as_ref());
        let before = before.and_then(|usual| estimate(which, usual, baseline)).filter(|b| b.n >= now.n);
        let fallen = before.map_or_else(|| drop_from(baseline, &now), |before| drop(&before, &now));
        Some((which, now, fallen))
    })
}

pub(in super::super) fn one_device(evidence: &Evidence, _: &AdviceSettings, _: Timestamp) -> Judged {
    let Some(incidents) = &evidence.incidents else { return Judged::default() };
    let local = incidents.iter().filter(|one| matches!(one.key.cause, Cause::Local | Cause::Scattered));
    let found = local.map(|incident| {
        let scope = scope_of(incident);
        let moved: Vec<_> = incident.channels.iter().map(|channel| channel.id.clone()).collect();
        let is_image = incident.touches(&[ChannelKind::Image]);
        let cause = match is_image {
            true => "dirt on the lens, a moved or defocused camera, other light",
            false => "a sensor that is faulty, moved or scaled otherwise",
        };
        let slice = evidence.slice(&scope);
        let trend = slice.and_then(|slice| image_trend(slice, incident));
        let (who, action) = match &incident.key.device {
            Some(device) => {
                let action = Action::InspectDevice { device: device.clone(), channels: moved };
                (format!("device {device}"), action)
            }
            None => {
                let (devices, of) = (incident.examples.clone(), incident.devices);
                (format!("each of {of} devices"), Action::InspectDevices { devices, of })
            }
        };
        let confidence = if incident.size() >= 2.0 || incident.channels_in_all >= 3 {
            Confidence::High
        } else {
            Confidence::Medium
        };
        let mut finding = Finding::new(RuleId::A01, scope, incident.since, action)
            .rated(Severity::Warning, confidence)
            .number("channels", incident.channels_in_all as f64)
            .number("devices", incident.devices as f64)
            .number("size", incident.size())
            .says(
                format!(
                    "On {who}, {} differ from the other devices of `{}` and from its own last week.",
                    channels(incident),
                    incident.key.cohort
                ),
                "The cohort did not move, so the cause is on the spot: ",
                "Look at its latest captures, then at the device; nothing has to be trained.".into(),
            );
        finding.text.why.push_str(cause);
        finding.text.why.push('.');
        finding.plots.extend(histogram(evidence, slice, incident));
        finding.plots.extend(trend);
        finding
    });
    Judged::all(found.collect())
}

/// Means of the picture channels, last week and now.
fn image_trend(slice: &Slice, incident: &Incident) -> Option<Plot> {
    let (now, usual) = (slice.now.as_ref()?, slice.usual.as_ref()?);
    let pictures = incident.channels.iter().filter(|channel| channel.kind == Some(ChannelKind::Image));
    let rows: Vec<_> = pictures
        .filter_map(|channel| {
            let (a, b) = (usual.channel(channel.id.as_str())?, now.channel(channel.id.as_str())?);
            let text = |x: f64| format!("{x:.3}");
            Some(vec![channel.id.to_string(), text(a.moments.mean), text(b.moments.mean)])
        })
        .collect();
    let columns = ["channel", "last week", "now"].map(str::to_owned).into();
    (!rows.is_empty()).then(|| Plot::Table { title: "Means of picture statistics".into(), columns, rows })
}

/// What is known of accuracy where inputs may have moved: a trusted estimate, or labels, or both.
struct Accuracy<'a> {
    slice: &'a Slice,
    /// A population incident on inputs.
    incident: Option<&'a Incident>,
    estimate: Option<(Estimator, Estimate, Drop)>,
    /// Audited now, how much less than before, and a lower bound of that.
    audited: Option<(Audited, f64, f64)>,
}

impl Accuracy<'_> {
    /// Labels outweigh estimates: an estimate that stood still is no comfort against them.
    fn has_fallen(&self, settings: &AdviceSettings) -> bool {
        let by_labels = self.audited.is_some_and(|(_, value, low)| low > 0.0 && value >= settings.drop);
        let by_estimate =
            self.estimate.is_some_and(|(_, _, fallen)| fallen.low > 0.0 && fallen.value >= settings.drop);
        by_labels || by_estimate
    }
    fn holds(&self, settings: &AdviceSettings) -> bool {
        let by_labels = self.audited.is_none_or(|(_, value, _)| value < settings.drop);
        by_labels && self.estimate.is_some_and(|(_, _, fallen)| fallen.high < settings.drop)
    }
}

fn moved<'a>(evidence: &'a Evidence, settings: &'a AdviceSettings) -> impl Iterator<Item = Accuracy<'a>> {
    evidence.cohorts().filter_map(|(_, slice)| {
        let incidents = evidence.incidents.as_ref()?;
        let incident = incidents.iter().find(|one| {
            one.key.device.is_none()
                && one.key.cause == Cause::Population
                && scope_of(one) == slice.scope
                && one.touches(&INPUTS)
        });
        let estimate = fallen(evidence, slice).filter(|(_, now, _)| now.n >= settings.min_rows);
        let audited = lost(slice, evidence, settings);
        (estimate.is_some() || audited.is_some()).then_some(Accuracy { slice, incident, estimate, audited })
    })
}

pub(in super::super) fn harmless_shift(
    evidence: &Evidence,
    settings: &AdviceSettings,
    _: Timestamp,
) -> Judged {
    let mut judged = Judged::default();
    for known in moved(evidence, settings) {
        let slice = known.slice;
        let incident = known.incident.filter(|_| known.holds(settings));
        let found = incident.zip(known.estimate).map(|(incident, (which, now, fallen))| {
            let rows = slice.now.as_ref().map_or(0, |now| now.rows);
            let cohort = incident.key.cohort.clone();
            let action = Action::ProposeBaseline { cohort, rows };
            let mut finding = Finding::new(RuleId::A02, slice.scope.clone(), incident.since, action)
                .rated(Severity::Info, if known.audited.is_some() { Confidence::High } else { Confidence::Medium })
                .number("estimate", now.value)
                .number("fallen_at_most", fallen.high)
                .number("size", incident.size())
                .says(
                    format!(
                        "Inputs of {} moved: {}. The accuracy estimated by {} is {}, at most {} lower.",
                        who(incident),
                        channels(incident),
                        which.name(),
                        percent(now.value),
                        percent(fallen.high.max(0.0))
                    ),
                    "The model is as sure of its answers as before: the new inputs lie within what it knows. The estimate cannot see a change of meaning.",
                    format!("Label about 100 captures to confirm it, then make {rows} rows of now the baseline of this cohort."),
                );
            finding.plots.extend(histogram(evidence, Some(slice), incident));
            finding
        });
        judged.look(&slice.scope, found);
    }
    judged
}

pub(in super::super) fn outside_of_data(
    evidence: &Evidence,
    settings: &AdviceSettings,
    _: Timestamp,
) -> Judged {
    let mut judged = Judged::default();
    for known in moved(evidence, settings) {
        let slice = known.slice;
        let found = known.incident.filter(|_| known.has_fallen(settings)).map(|incident| {
            let filter = LabelFilter {
                cohort: Some(incident.key.cohort.clone()),
                strategies: ["low-margin", "entropy", "random"].map(str::to_owned).into(),
                // 200 labels: an interval of 7 points either side at 50 %.
                count: 200,
                ..LabelFilter::default()
            };
            let mut told = vec![format!("Inputs of {} moved: {}", who(incident), channels(incident))];
            let mut surest = f64::MIN;
            let action = Action::OpenLabelling { filter };
            let mut finding = Finding::new(RuleId::A03, slice.scope.clone(), incident.since, action)
                .number("size", incident.size());
            if let Some((which, now, fallen)) = known.estimate {
                surest = surest.max(fallen.low);
                finding = finding
                    .number("estimate", now.value)
                    .number("low", now.low)
                    .number("high", now.high)
                    .number("fallen", fallen.value);
                told.push(format!(
                    "Without labels, {} puts accuracy at {} ({} to {}), {:+.1} points against before",
                    which.name(),
                    percent(now.value),
                    percent(now.low),
                    percent(now.high),
                    -100.0 * fallen.value
                ));
            }
            if let Some((audited, value, low)) = known.audited {
                surest = surest.max(low);
                finding = finding.number("audited", audited.accuracy).number("audited_fallen", value);
                told.push(format!(
                    "{} labels find {} right, {:+.1} points against before",
                    audited.labels,
                    percent(audited.accuracy),
                    -100.0 * value
                ));
            }
            let confidence = if surest >= settings.drop { Confidence::High } else { Confidence::Medium };
            finding = finding.rated(Severity::Error, confidence).says(
                told.join(". ") + ".",
                "The model meets inputs that its data did not hold.",
                "Label 200 captures of this cohort, hard and random ones, and train with them; until then expect more mistakes."
                    .into(),
            );
            finding.plots.extend(histogram(evidence, Some(slice), incident));
            finding
        });
        judged.look(&slice.scope, found);
    }
    judged
}
