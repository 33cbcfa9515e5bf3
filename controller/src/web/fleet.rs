//! All devices: how many in which state, and a table by selector, page by page.

use super::{
    Table, Web,
    answer::PageError,
    guard::Visitor,
    layout::{self, Tab},
    words::{ago, badge, count, encoded},
};
use crate::{
    api::extract::{Pairs, cursor},
    fleet::{
        devices::{DeviceQuery, DeviceState},
        index::Known,
        roles::Permission,
    },
};
use axum::{extract::State, response::Response};
use edgefleet_shared::{ids::DeviceId, selector::Selector, time::Timestamp};
use maud::{Markup, html};
use std::sync::Arc;

/// Devices on a page.
const ROWS: usize = 50;
/// Labels of a device shown in the table.
const LABELS: usize = 4;
const STATES: [DeviceState; 4] =
    [DeviceState::Pending, DeviceState::Enrolled, DeviceState::Denied, DeviceState::Removed];

pub(super) fn routes(table: Table) -> Table {
    table.get("/fleet", Permission::Read, list)
}

/// What is asked for, kept over the pages.
struct Asked {
    selector: String,
    state: Option<DeviceState>,
}

impl Asked {
    /// The address of the page after `after`.
    fn link(&self, state: Option<DeviceState>, after: Option<&str>) -> String {
        let mut link = format!("/fleet?selector={}", encoded(&self.selector));
        if let Some(state) = state {
            link.push_str(&format!("&state={state}"));
        }
        if let Some(after) = after {
            link.push_str(&format!("&cursor={}", cursor(after)));
        }
        link
    }
}

async fn list(State(web): State<Arc<Web>>, visitor: Visitor, query: Pairs) -> Result<Response, PageError> {
    query.only(&["selector", "state", "cursor"])?;
    let (after, _) = query.page::<DeviceId>()?;
    let word = query.one::<String>("state")?.unwrap_or_default();
    let asked = Asked {
        selector: query.one::<String>("selector")?.unwrap_or_default(),
        state: STATES.into_iter().find(|state| state.as_str() == word),
    };
    // A mistake in a selector is said where it was made.
    let (selectors, mistake) = match asked.selector.trim() {
        "" => (vec![], None),
        text => match text.parse::<Selector>() {
            Ok(selector) => (vec![selector], None),
            Err(error) => (vec![], Some(error.to_string())),
        },
    };
    let is_first = after.is_none();
    let page = match mistake {
        Some(_) => crate::fleet::Page { items: vec![], next: None },
        None => web.operations.fleet.list_devices(&DeviceQuery {
            selectors,
            state: asked.state,
            after,
            limit: ROWS,
        }),
    };
    let now = web.now();
    let body = html! {
        (counts(&web))
        form .row method="get" action="/fleet" role="search" {
            label for="selector" { "Selector" }
            input #selector name="selector" type="text" value=(asked.selector) autocomplete="off" spellcheck="false"
                placeholder="site=plant-7, arch in (arm64), online=true"
                aria-describedby=[mistake.as_ref().map(|_| "mistake")] aria-invalid=[mistake.as_ref().map(|_| "true")];
            @if let Some(state) = asked.state { input type="hidden" name="state" value=(state); }
            button type="submit" { "Show" }
        }
        @if let Some(mistake) = &mistake { p #mistake .notice role="alert" { (mistake) } }
        nav .chips aria-label="State" {
            a href=(asked.link(None, None)) aria-current=[asked.state.is_none().then_some("true")] { "Not removed" }
            @for state in STATES {
                a href=(asked.link(Some(state), None)) aria-current=[(asked.state == Some(state)).then_some("true")] { (state) }
            }
        }
        section #devices aria-label="Devices" data-live="device device-status" {
            @if page.items.is_empty() && mistake.is_none() {
                p .empty { "No device is selected. Invite one: " code { "edgefleet device invite" } }
            } @else if !page.items.is_empty() {
                (table(&page.items, now))
            }
            nav .pages aria-label="Pages" {
                @if !is_first { a .button href=(asked.link(asked.state, None)) { "First page" } }
                @if let Some(next) = &page.next { a .button rel="next" href=(asked.link(asked.state, Some(next))) { "Next page" } }
            }
        }
    };
    Ok(layout::page(&visitor, Tab::Fleet, "Fleet", body))
}

pub(super) fn counts(web: &Web) -> Markup {
    let counts = web.operations.fleet.counts();
    let one = |href: &str, n: usize, word: &str| {
        html! { li { a href=(href) { strong { (count(n)) } (word) } } }
    };
    html! {
        ul .stats #counts data-live="device device-status" {
            (one("/fleet", counts.enrolled, "enrolled"))
            (one("/fleet?selector=online%3Dtrue", counts.online, "online"))
            (one("/fleet?state=enrolled&selector=online%3Dfalse", counts.enrolled.saturating_sub(counts.online), "offline"))
            (one("/fleet?state=pending", counts.pending, "pending"))
            (one("/fleet?state=denied", counts.denied, "denied"))
        }
    }
}

fn table(devices: &[Known], now: Timestamp) -> Markup {
    html! {
        div .wide tabindex="0" {
            table {
                thead { tr {
                    th scope="col" { "Device" }
                    th scope="col" { "State" }
                    th scope="col" { "Serves" }
                    th scope="col" { "Labels" }
                    th scope="col" { "Hardware" }
                    th scope="col" { "Agent" }
                    th scope="col" { "Last seen" }
                } }
                tbody { @for known in devices { (row(known, now)) } }
            }
        }
    }
}

fn row(known: &Known, now: Timestamp) -> Markup {
    let (device, status) = (&known.device, &known.status);
    let name = if device.name.is_empty() { device.id.as_str() } else { &device.name };
    html! {
        tr {
            th scope="row" { a href={"/devices/" (device.id)} { (name) } br; span .faint { (device.id) } }
            td { (presence(known)) }
            td {
                @for (slot, report) in status.reported.iter().flat_map(|report| &report.slots) {
                    div {
                        @match &report.active { Some(active) => (active.bundle), None => (slot) }
                        " " @if report.last_error.is_some() || report.phase.is_failure() { (badge("bad", &report.phase.to_string())) }
                        @else if !report.phase.is_terminal() { (badge("", &report.phase.to_string())) }
                    }
                }
            }
            td {
                @for (key, value) in device.labels.iter().take(LABELS) { div { (key) "=" (value) } }
                @if device.labels.len() > LABELS { span .faint { (device.labels.len() - LABELS) " more" } }
            }
            td { (status.facts.hardware) @if !status.facts.arch.is_empty() { " " span .faint { (status.facts.arch) } } }
            td { (status.facts.agent_version) }
            td { @match status.last_seen { Some(at) => (ago(at, now)), None => span .faint { "never" } } }
        }
    }
}

/// Whether it is there, else why not.
pub(super) fn presence(known: &Known) -> Markup {
    match (known.device.state, known.status.online) {
        (DeviceState::Enrolled, true) => badge("good", "online"),
        (DeviceState::Enrolled, false) => badge("warn", "offline"),
        (state, _) => badge("bad", state.as_str()),
    }
}
