//! One device: what it is, what it serves, what it said last, what it may use to prove who it is.

use super::{
    Table, Web,
    answer::PageError,
    fleet::presence,
    guard::Visitor,
    layout::{self, Tab},
    plot::meter,
    words::{ago, badge, bundle, bytes, count, figure, millis, name, percent},
};
use crate::{
    api::telemetry::LatencyView,
    fleet::{FleetError, index::Known, roles::Permission},
    ingest::{BundleTotals, DEVICE_TELEMETRY, DeviceTelemetry},
    lookout::Filter,
    store::Repository,
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use edgefleet_shared::{
    ids::DeviceId,
    reported::{Refusal, SlotReport},
    time::Timestamp,
};
use maud::{Markup, html};
use std::sync::Arc;

pub(super) fn routes(table: Table) -> Table {
    table.get("/devices/{id}", Permission::Read, show)
}

async fn show(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let invalid = |error| crate::api::problem::Problem::bad_request("path-invalid", format!("{error}"));
    let id: DeviceId = id.parse().map_err(invalid)?;
    let operations = &web.operations;
    let known = operations.fleet.device(&id)?;
    let telemetry = Repository::<DeviceTelemetry>::new(operations.store.clone(), DEVICE_TELEMETRY);
    let telemetry = telemetry.find_json(id.as_str()).await.map_err(FleetError::from)?;
    let telemetry = telemetry.map(|found| found.value).unwrap_or_default();
    let filter = Filter { device: Some(id.clone()), ..Filter::default() };
    let incidents = operations.lookout.incidents(&filter).await.map_err(FleetError::from)?;
    let advice = operations.lookout.advice(&filter).await.map_err(FleetError::from)?;
    let findings = operations.findings.of(&id);
    let now = web.now();
    let title = if known.device.name.is_empty() { id.to_string() } else { known.device.name.clone() };
    let body = html! {
        (facts(&known, now))
        @if !findings.is_empty() || !incidents.is_empty() || !advice.is_empty() {
            section #findings data-live="finding incident advice" {
                h2 { "To look at" }
                ul .plain {
                    @for one in &findings { li { (badge("warn", one.code.as_str())) " " (one.message) br; "To do: " (one.code.advice()) } }
                }
                @if !incidents.is_empty() { (super::findings::incident_table(&web, &incidents, now)) }
                div .cards { @for one in &advice { (super::advice::card(&web, one, now)) } }
            }
        }
        section #slots data-live="device-status" {
            h2 { "Slots" }
            (slots(&known, now))
        }
        section #served data-live="device-telemetry" {
            h2 { "What it served" }
            (served(&telemetry, now))
        }
        (certificates(&known, now))
        section {
            h2 { "Commands" }
            p { "From a terminal: " code { "edgefleet device ping " (id) } ", " code { "edgefleet device show " (id) } "." }
        }
    };
    Ok(layout::page(&visitor, Tab::Fleet, &title, body))
}

fn facts(known: &Known, now: Timestamp) -> Markup {
    let (device, status) = (&known.device, &known.status);
    let facts = &status.facts;
    let told = [
        ("Hardware", facts.hardware.clone()),
        ("Architecture", facts.arch.clone()),
        ("System", facts.os.clone()),
        ("Processor", facts.cpu.clone()),
        ("Host name", facts.hostname.clone()),
        ("Agent", facts.agent_version.clone()),
        ("Engines", facts.engines.join(", ")),
    ];
    html! {
        section #device data-live="device device-status" {
            p { (presence(known)) " " span .faint { (status.reason) } }
            dl .facts {
                dt { "Id" } dd { code { (device.id) } }
                dt { "Labels" } dd {
                    @if device.labels.is_empty() { span .faint { "none" } }
                    @for (key, value) in &device.labels { (badge("", &format!("{key}={value}"))) " " }
                }
                dt { "Last seen" } dd { @match status.last_seen { Some(at) => (ago(at, now)), None => "never" } }
                @for (word, text) in told.iter().filter(|(_, text)| !text.is_empty()) { dt { (word) } dd { (text) } }
                @if facts.cores > 0 { dt { "Cores" } dd { (facts.cores) } }
                @if facts.memory_bytes > 0 { dt { "Memory" } dd { (bytes(facts.memory_bytes)) } }
                @if let Some(at) = device.enrolled { dt { "Enrolled" } dd { (ago(at, now)) " with invite " (device.invite) } }
            }
            @if device.new_key.is_some() { p .notice { "It asks to be recognised by a new key: " code { "edgefleet device approve " (device.id) } } }
        }
    }
}

fn slots(known: &Known, now: Timestamp) -> Markup {
    let Some(report) = &known.status.reported else {
        return html! { p .empty { "It has not reported yet." } };
    };
    html! {
        p .faint { "Reported " (ago(report.at, now)) ", generation " (report.generation) ", trust document " (report.trust_version)
            ", clock " (name(report.clock)) }
        @if let Some(refused) = &report.refused { p .notice { (refusal(refused)) } }
        @if report.slots.is_empty() { p .empty { "No slot." } }
        div .cards {
            @for (slot, report) in &report.slots {
                article .card {
                    h3 { (slot) " " (phase(report)) }
                    dl .facts {
                        @for (word, installed) in [("Active", &report.active), ("Previous", &report.previous), ("Target", &report.target)] {
                            @if let Some(installed) = installed { dt { (word) } dd { (bundle(&installed.bundle)) " " span .faint { "attempt " (installed.attempt) } } }
                        }
                        @if let Some(candidate) = &report.candidate {
                            dt { "Candidate" } dd { (bundle(&candidate.installed.bundle)) " " (badge("", &candidate.phase.to_string())) " "
                                (count(candidate.mirrored)) " requests mirrored" }
                        }
                        @if let Some(deferred) = &report.deferred {
                            dt { "Deferred" } dd { (deferred.reason) @if let Some(until) = deferred.until { ", until " (super::words::instant(until)) } }
                        }
                    }
                    @if let Some(progress) = report.progress {
                        @let share = progress.done_bytes as f64 / progress.total_bytes.max(1) as f64;
                        @let says = format!("{} of {}", bytes(progress.done_bytes), bytes(progress.total_bytes));
                        p { (meter(share, None, "", &says)) " " (says) }
                    }
                    @if let Some(error) = &report.last_error { p .notice { (refusal(error)) } }
                }
            }
        }
    }
}

fn phase(report: &SlotReport) -> Markup {
    let tone = match report.phase {
        phase if phase.is_failure() => "bad",
        phase if phase.is_terminal() => "good",
        _ => "",
    };
    badge(tone, &report.phase.to_string())
}

/// What the device says of a refusal, whatever fields it has.
pub(super) fn refusal(refusal: &Refusal) -> Markup {
    html! { strong { (name(refusal.code)) } " " (refusal.message) }
}

fn served(telemetry: &DeviceTelemetry, now: Timestamp) -> Markup {
    html! {
        @if telemetry.bundles.is_empty() {
            p .empty { "No window of telemetry has come yet." }
        } @else {
            p .faint { "Heard " (ago(telemetry.last, now)) @if telemetry.dropped > 0 { "; the device lost " (count(telemetry.dropped)) " records" } }
            div .wide tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Bundle" } th scope="col" { "Slot" } th scope="col" .number { "Requests" } th scope="col" .number { "Failed" }
                        th scope="col" .number { "p50" } th scope="col" .number { "p95" } th scope="col" .number { "Labels" } th scope="col" .number { "Right" }
                    } }
                    tbody { @for totals in telemetry.bundles.iter().rev() { (totals_row(totals)) } }
                }
            }
        }
    }
}

fn totals_row(totals: &BundleTotals) -> Markup {
    let latency = LatencyView::of(&totals.latency.total);
    html! {
        tr {
            th scope="row" { (bundle(&totals.bundle)) }
            td { (totals.slot) }
            td .number { (count(totals.counts.requests)) }
            td .number {
                (count(totals.counts.requests.saturating_sub(totals.counts.ok)))
                @for (code, n) in totals.counts.errors.iter().take(5) { br; span .faint { (code) " " (count(*n)) } }
            }
            td .number { (millis(latency.p50)) }
            td .number { (millis(latency.p95)) }
            td .number { (figure(totals.labels.matched as f64)) }
            td .number { (percent(totals.labels.accuracy())) }
        }
    }
}

fn certificates(known: &Known, now: Timestamp) -> Markup {
    html! {
        section {
            h2 { "Certificates" }
            @if known.device.certificates.is_empty() { p .empty { "None may be used." } } @else {
                div .wide tabindex="0" {
                    table {
                        thead { tr { th scope="col" { "Serial" } th scope="col" { "Issued" } th scope="col" { "Ends" } } }
                        tbody {
                            @for certificate in known.device.certificates.iter().rev() {
                                tr { th scope="row" { code { (certificate.serial) } } td { (ago(certificate.issued, now)) } td { (ago(certificate.not_after, now)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
