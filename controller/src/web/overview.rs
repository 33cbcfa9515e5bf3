//! The first page: how the fleet stands, what is under way, what is wrong.

use super::{
    Table, Web,
    answer::PageError,
    findings, fleet,
    guard::Visitor,
    layout::{self, Tab},
    rollouts,
};
use crate::{
    fleet::{FleetError, roles::Permission},
    lookout::Filter,
};
use axum::{extract::State, response::Response};
use maud::html;
use std::sync::Arc;

/// Entries of each list.
const MOST: usize = 6;

pub(super) fn routes(table: Table) -> Table {
    table.get("/", Permission::Read, show)
}

async fn show(State(web): State<Arc<Web>>, visitor: Visitor) -> Result<Response, PageError> {
    let operations = &web.operations;
    let incidents = operations.lookout.incidents(&Filter::default()).await.map_err(FleetError::from)?;
    let advice = operations.lookout.advice(&Filter::default()).await.map_err(FleetError::from)?;
    let mut active = operations.rollouts.list().await.map_err(FleetError::from)?;
    active.retain(|rollout| !rollout.is_terminal());
    active.reverse();
    let now = web.now();
    let body = html! {
        (fleet::counts(&web))
        section #rollouts aria-labelledby="rollouts-title" data-live="rollout" {
            h2 #rollouts-title { a href="/rollouts" { "Rollouts under way" } span .count { (active.len()) } }
            @if active.is_empty() { p .empty { "None." } }
            div .cards { @for rollout in active.iter().take(MOST) { (rollouts::card(rollout, now)) } }
        }
        section #advice aria-labelledby="advice-title" data-live="advice" {
            h2 #advice-title { a href="/findings" { "What to do" } span .count { (advice.len()) } }
            @if advice.is_empty() { p .empty { "There is nothing to advise." } }
            div .cards { @for one in advice.iter().take(MOST) { (super::advice::card(&web, one, now)) } }
        }
        section #incidents aria-labelledby="incidents-title" data-live="incident" {
            h2 #incidents-title { a href="/findings#incidents" { "What drifts" } span .count { (incidents.len()) } }
            (findings::incident_table(&web, incidents.get(..MOST).unwrap_or(&incidents), now))
        }
    };
    Ok(layout::page(&visitor, Tab::Overview, "Overview", body))
}
