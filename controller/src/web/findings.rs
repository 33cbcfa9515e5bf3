//! What drifts, what to do about it, and what devices have that somebody should look at.

use super::{
    Table, Web,
    answer::PageError,
    guard::Visitor,
    layout::{self, Tab},
    plot::meter,
    words::{ago, badge, bundle, count, device, encoded, figure, name},
};
use crate::{
    advice::{Severity, Standing},
    api::extract::Pairs,
    captures::{LabelState, Wanted},
    drift::{Cause, IncidentChannel},
    fleet::{FleetError, roles::Permission},
    lookout::{Filter, IncidentRecord, Marked, title},
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use edgefleet_shared::time::Timestamp;
use maud::{Markup, html};
use std::sync::Arc;

/// Entries of each list; the rest is counted.
const MOST: usize = 50;
/// Captures counted for the link to the labelling queue.
const QUEUE: usize = 500;

pub(super) fn routes(table: Table) -> Table {
    table.get("/findings", Permission::Read, list).get("/incidents/{id}", Permission::Read, incident)
}

async fn list(State(web): State<Arc<Web>>, visitor: Visitor, query: Pairs) -> Result<Response, PageError> {
    query.only(&["state", "bundle", "device"])?;
    let resolved = query.one::<String>("state")?.as_deref() == Some("all");
    let filter = Filter { bundle: query.one("bundle")?, device: query.one("device")?, resolved };
    let lookout = &web.operations.lookout;
    let incidents = lookout.incidents(&filter).await.map_err(FleetError::from)?;
    let advice = lookout.advice(&filter).await.map_err(FleetError::from)?;
    let now = web.now();
    let body = html! {
        (choice(&filter))
        section #advice aria-labelledby="advice-title" data-live="advice advice-mark" {
            h2 #advice-title { "Advice" span .count { (count(advice.len())) } }
            @if advice.is_empty() {
                p .empty { "There is nothing to advise. Rules look at every bundle that carries a baseline." }
            }
            div .cards { @for one in advice.iter().take(MOST) { (super::advice::card(&web, one, now)) } }
            @if advice.len() > MOST { p .faint { (advice.len() - MOST) " more; choose a bundle or a device." } }
        }
        section #incidents aria-labelledby="incidents-title" data-live="incident" {
            h2 #incidents-title { "Incidents of drift" span .count { (count(incidents.len())) } }
            (incident_table(&web, &incidents, now))
        }
        (queue(&web).await?)
        (devices(&web, now))
    };
    Ok(layout::page(&visitor, Tab::Findings, "Findings", body))
}

/// Open ones or all, and of what.
fn choice(filter: &Filter) -> Markup {
    let state = |all: bool, word: &str| {
        let mut href = format!("/findings?state={}", if all { "all" } else { "open" });
        if let Some(bundle) = &filter.bundle {
            href.push_str(&format!("&bundle={}", encoded(&bundle.to_string())));
        }
        if let Some(device) = &filter.device {
            href.push_str(&format!("&device={device}"));
        }
        html! { a href=(href) aria-current=[(filter.resolved == all).then_some("true")] { (word) } }
    };
    html! {
        nav .chips aria-label="Which findings" {
            (state(false, "Open")) (state(true, "Open and resolved"))
            @if let Some(bundle) = &filter.bundle { span { "of " (bundle) } }
            @if let Some(device) = &filter.device { span { "of " (device) } }
            @if filter.bundle.is_some() || filter.device.is_some() { a href="/findings" { "All" } }
        }
    }
}

pub(super) fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Local => "one device",
        Cause::Population => "a whole cohort",
        Cause::Scattered => "many devices, each in its own way",
    }
}

pub(super) fn incident_table(web: &Web, incidents: &[IncidentRecord], now: Timestamp) -> Markup {
    html! {
        @if incidents.is_empty() {
            p .empty { "Nothing drifts." }
        } @else {
            div .wide tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Incident" }
                        th scope="col" { "Who" }
                        th scope="col" { "Worst channel" }
                        th scope="col" .number { "Devices" }
                        th scope="col" { "Since" }
                        th scope="col" { "State" }
                    } }
                    tbody {
                        @for record in incidents.iter().take(MOST) {
                            @let incident = &record.incident;
                            tr {
                                th scope="row" { a href={"/incidents/" (record.id)} { (title(incident)) } }
                                td {
                                    @match &incident.key.device {
                                        Some(id) => (device(web, id)),
                                        None => (cause(incident.key.cause)),
                                    }
                                }
                                td {
                                    @if let Some(worst) = incident.channels.first() {
                                        code { (worst.id) } " " span .faint { "JS " (figure(worst.js)) }
                                    }
                                }
                                td .number { (count(incident.devices)) }
                                td { (ago(incident.since, now)) }
                                td { (state(record, now)) }
                            }
                        }
                    }
                }
            }
            @if incidents.len() > MOST { p .faint { (incidents.len() - MOST) " more." } }
        }
    }
}

fn state(record: &IncidentRecord, now: Timestamp) -> Markup {
    match record.resolved {
        None => badge("bad", "open"),
        Some(at) => html! { (badge("good", "resolved")) " " (ago(at, now)) },
    }
}

/// How much waits to be labelled.
async fn queue(web: &Web) -> Result<Markup, PageError> {
    let wanted = Wanted { state: Some(LabelState::Unlabelled), ..Wanted::default() };
    let (waiting, more) = web.captures.list(&wanted, None, QUEUE).await.map_err(FleetError::from)?;
    Ok(html! {
        section #captures aria-labelledby="captures-title" data-live="capture" {
            h2 #captures-title { "Captures to label" span .count { (waiting.len()) @if more.is_some() { "+" } } }
            @if waiting.is_empty() {
                p .empty { "No capture waits for a label. Devices capture by a policy: " code { "edgefleet capture policy set" } }
            } @else {
                p { a .button href="/label" { "Label captures" } }
            }
        }
    })
}

/// What was found about single devices, drift apart.
fn devices(web: &Web, now: Timestamp) -> Markup {
    let found = web.operations.findings.list();
    html! {
        section #devices aria-labelledby="devices-title" data-live="finding" {
            h2 #devices-title { "Devices to look at" span .count { (count(found.len())) } }
            @if found.is_empty() {
                p .empty { "Nothing was found about single devices." }
            } @else {
                ul .plain {
                    @for finding in found.iter().take(MOST) {
                        li { (badge("warn", finding.code.as_str())) " " (device(web, &finding.device)) ": " (finding.message)
                            " " span .faint { (ago(finding.last, now)) } br; "To do: " (finding.code.advice()) }
                    }
                }
            }
        }
    }
}

async fn incident(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let record = web.operations.lookout.incident(&id).await?;
    let incident = &record.incident;
    let key = &incident.key;
    let now = web.now();
    let filter = Filter { bundle: Some(key.bundle.clone()), ..Filter::default() };
    let advice = web.operations.lookout.advice(&filter).await.map_err(FleetError::from)?;
    let body = html! {
        section #incident data-live="incident" {
            p { (state(&record, now)) " " (badge("", cause(key.cause))) }
            dl .facts {
                dt { "Bundle" } dd { (bundle(&key.bundle)) }
                dt { "Cohort" } dd { (key.cohort) }
                @if let Some(id) = &key.device { dt { "Device" } dd { (device(&web, id)) } }
                dt { "Since" } dd { (ago(incident.since, now)) }
                dt { "Last seen" } dd { (ago(incident.last, now)) }
                dt { "Devices it explains" } dd { (count(incident.devices)) }
            }
            @if !incident.examples.is_empty() {
                p { "For example: " @for (n, id) in incident.examples.iter().enumerate() { @if n > 0 { ", " } (device(&web, id)) } }
            }
            h2 { "What moved" span .count { (incident.channels_in_all) } }
            (channels(&incident.channels))
            p .faint {
                "Jensen-Shannon distance: 0 is the same distribution as in the bundle's baseline, 1 has nothing in common. "
                "The size counts floors: from 1 on it is worth a word."
            }
        }
        section #incident-advice data-live="advice" {
            h2 { "Advice about " (key.bundle) }
            @if advice.is_empty() { p .empty { "None so far." } }
            div .cards { @for one in advice.iter().take(MOST) { (super::advice::card(&web, one, now)) } }
        }
        p {
            a .button href={"/models/" (key.bundle.model) "?cohort=" (encoded(&key.cohort))} { "How the model does there" } " "
            a .button href=(label_link(&key.bundle.model.to_string(), Some(&key.bundle.to_string()), key.device.as_ref().map(|id| id.as_str()))) { "Label captures" }
        }
    };
    Ok(layout::page(&visitor, Tab::Findings, &title(incident), body))
}

fn channels(channels: &[IncidentChannel]) -> Markup {
    html! {
        div .wide tabindex="0" {
            table {
                thead { tr {
                    th scope="col" { "Channel" }
                    th scope="col" { "Kind" }
                    th scope="col" { "Distance" }
                    th scope="col" .number { "JS" }
                    th scope="col" .number { "Deviations" }
                    th scope="col" .number { "PSI" }
                    th scope="col" .number { "Size" }
                    th scope="col" .number { "Missing" }
                    th scope="col" { "Since" }
                } }
                tbody {
                    @for channel in channels {
                        tr {
                            th scope="row" { code { (channel.id) } }
                            td { (channel.kind.map(name).unwrap_or_default()) }
                            td { (meter(channel.js, None, "bad", &format!("Jensen-Shannon distance {}", figure(channel.js)))) }
                            td .number { (figure(channel.js)) }
                            td .number { (channel.w1.map_or_else(|| "–".to_owned(), figure)) }
                            td .number { (figure(channel.psi)) }
                            td .number { (figure(channel.size)) }
                            td .number { (format!("{:.1} %", 100.0 * channel.missing)) }
                            td { (super::words::instant(channel.since)) }
                        }
                    }
                }
            }
        }
    }
}

/// The labelling queue of a model, a bundle, a device.
pub(super) fn label_link(model: &str, bundle: Option<&str>, device: Option<&str>) -> String {
    let mut link = format!("/label?model={}", encoded(model));
    for (key, value) in [("bundle", bundle), ("device", device)] {
        if let Some(value) = value {
            link.push_str(&format!("&{key}={}", encoded(value)));
        }
    }
    link
}

pub(super) fn severity(severity: Severity) -> Markup {
    match severity {
        Severity::Info => badge("", "info"),
        Severity::Warning => badge("warn", "warning"),
        Severity::Error => badge("bad", "error"),
    }
}

pub(super) fn standing(one: &Marked, now: Timestamp) -> Markup {
    match &one.record.tracked.standing {
        Standing::Open => badge("bad", "open"),
        Standing::Explained { by } => badge("", &format!("explained by {by}")),
        Standing::Resolved { at } => html! { (badge("good", "resolved")) " " (ago(*at, now)) },
    }
}
