//! Pure: incidents and advice in the words of alerts.

use super::records::{AdviceRecord, IncidentRecord};
use crate::{
    advice::{self, FindingChange},
    alerts::{AlertEvent, AlertKind, Severity},
    drift::{Cause, Incident, IncidentChange},
};
use edgefleet_shared::time::Timestamp;
use serde_json::{Map, Value, json};

/// What people are told of an incident; nothing of one that only went on.
pub(super) fn of_incident(
    change: IncidentChange,
    record: &IncidentRecord,
    now: Timestamp,
) -> Option<AlertEvent> {
    let kind = match change {
        IncidentChange::Opened => AlertKind::IncidentOpened,
        IncidentChange::Resolved => AlertKind::IncidentResolved,
        IncidentChange::Updated => return None,
    };
    let severity = if change == IncidentChange::Opened { Severity::Warning } else { Severity::Info };
    let incident = &record.incident;
    let event = AlertEvent::new(kind, severity, now, &record.id, &title(incident), &text(record, change));
    let event = event.bundle(&incident.key.bundle).numbers(numbers(record));
    Some(match &incident.key.device {
        Some(device) => event.device(device),
        None => event,
    })
}

/// One line: what drifts where.
pub fn title(incident: &Incident) -> String {
    let key = &incident.key;
    let place = if key.cohort == "all" { String::new() } else { format!(" in {}", key.cohort) };
    match (&key.device, key.cause) {
        (Some(device), _) => format!("{}: device {device}{place} sees something else", key.bundle),
        (None, Cause::Scattered) => {
            format!("{}: {} devices{place} drift, each in its own way", key.bundle, incident.devices)
        }
        (None, _) => format!("{}: inputs or answers{place} have moved", key.bundle),
    }
}

fn text(record: &IncidentRecord, change: IncidentChange) -> String {
    let incident = &record.incident;
    if change == IncidentChange::Resolved {
        return format!("{} is over; it began at {}.", record.id, incident.since);
    }
    let each = incident.channels.iter().map(|channel| {
        let by = channel.w1.map_or_else(String::new, |w1| format!(", {w1:.2} deviations away"));
        format!("{}: Jensen-Shannon distance {:.2}{by}, since {}", channel.id, channel.js, channel.since)
    });
    let mut lines: Vec<String> = each.collect();
    if incident.channels_in_all > incident.channels.len() {
        lines.push(format!("and {} more channels", incident.channels_in_all - incident.channels.len()));
    }
    lines.push(format!("See it with `edgefleet incident show {}`.", record.id));
    lines.join("\n")
}

fn numbers(record: &IncidentRecord) -> Map<String, Value> {
    let incident = &record.incident;
    let worst = incident.channels.first();
    let all = json!({
        "incident": record.id,
        "channels": incident.channels_in_all,
        "devices": incident.devices,
        "worst_channel": worst.map(|channel| channel.id.to_string()),
        "worst_js": worst.map(|channel| channel.js),
    });
    match all {
        Value::Object(all) => all,
        _ => Map::new(), // it is an object
    }
}

/// What people are told of advice: its opening if it is more than a hint, and its end.
pub(super) fn of_advice(change: &FindingChange, record: &AdviceRecord, now: Timestamp) -> Option<AlertEvent> {
    let finding = change.finding();
    let severity = match finding.severity {
        advice::Severity::Info => return None,
        advice::Severity::Warning => Severity::Warning,
        advice::Severity::Error => Severity::Critical,
    };
    let (kind, severity) = match change {
        FindingChange::Opened { .. } => (AlertKind::FindingOpened, severity),
        FindingChange::Resolved { .. } => (AlertKind::FindingResolved, Severity::Info),
        FindingChange::Updated { .. } | FindingChange::Explained { .. } => return None,
    };
    let title = format!("{} {}: {}", finding.rule, finding.scope, finding.text.what);
    let advice::Text { why, to_do, .. } = &finding.text;
    let text = format!("{why}\n{to_do}\nSee it with `edgefleet advice show {}`.", record.id);
    let event = AlertEvent::new(kind, severity, now, &record.id, &title, &text);
    Some(event.bundle(finding.scope.bundle()))
}
