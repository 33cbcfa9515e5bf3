//! Rollouts: the list, one in full, and the orders people give it.

mod evidence;
mod orders;
mod show;

use super::{
    Table, Web,
    answer::PageError,
    guard::Visitor,
    layout::{self, Tab},
    words::{ago, badge, bundle, count, prose},
};
use crate::{
    api::{
        extract::{Pairs, cursor},
        rollout_views::{RolloutSummary, devices, open_stage},
    },
    fleet::{FleetError, roles::Permission},
    rollout::{Bucket, PauseWhy, Rollout, State as RolloutState},
};
use axum::{extract::State, response::Response};
use edgefleet_shared::time::Timestamp;
use maud::{Markup, html};
use std::sync::Arc;

/// Rollouts on a page.
const ROWS: usize = 50;

pub(super) fn routes(table: Table) -> Table {
    let table =
        table.get("/rollouts", Permission::Read, list).get("/rollouts/{id}", Permission::Read, show::page);
    orders::routes(table)
}

async fn list(State(web): State<Arc<Web>>, visitor: Visitor, query: Pairs) -> Result<Response, PageError> {
    query.only(&["before"])?;
    let before = query.one::<String>("before")?;
    // Ids sort by time, the store lists them upwards; people want the newest first. A rollout is a few dozen KB, and
    // there are hundreds of them at most.
    let mut all = web.operations.rollouts.list().await.map_err(FleetError::from)?;
    all.reverse();
    all.retain(|rollout| before.as_ref().is_none_or(|before| rollout.id.as_str() < before.as_str()));
    let more = all.len() > ROWS;
    all.truncate(ROWS);
    let (active, over): (Vec<_>, Vec<_>) = all.iter().partition(|rollout| !rollout.is_terminal());
    let now = web.now();
    let body = html! {
        section #active aria-labelledby="active-title" data-live="rollout" {
            h2 #active-title { "Under way" span .count { (count(active.len())) } }
            @if active.is_empty() { p .empty { "No rollout is under way. Start one: " code { "edgefleet rollout start plan.yaml" } } }
            div .cards { @for rollout in &active { (card(rollout, now)) } }
        }
        section #over aria-labelledby="over-title" data-live="rollout" {
            h2 #over-title { "Over" span .count { (count(over.len())) } }
            @if !over.is_empty() { (table(&over, now)) } @else { p .empty { "None." } }
        }
        @if more { @if let Some(last) = all.last() { nav .pages { a .button href={"/rollouts?before=" (last.id)} { "Older" } } } }
    };
    Ok(layout::page(&visitor, Tab::Rollouts, "Rollouts", body))
}

pub(super) fn card(rollout: &Rollout, now: Timestamp) -> Markup {
    let counts = devices(rollout);
    html! {
        article .card {
            p { (state(&rollout.state)) " " span .faint { "since " (ago(rollout.since, now)) } }
            h3 { a href={"/rollouts/" (rollout.id)} { (rollout.release.bundle) " to slot " (rollout.plan.rollout.slot) } }
            p .faint { @if let Some(stage) = open_stage(rollout) { "stage " (stage.name) " · " } (rollout.id) " · by " (rollout.by) }
            (show::progress(&counts))
            @for waiting in RolloutSummary::of(rollout).waiting.iter().take(2) { p { (prose(waiting)) } }
        }
    }
}

fn table(rollouts: &[&Rollout], now: Timestamp) -> Markup {
    html! {
        div .wide tabindex="0" {
            table {
                thead { tr {
                    th scope="col" { "Rollout" } th scope="col" { "Bundle" } th scope="col" { "Slot" } th scope="col" { "State" }
                    th scope="col" .number { "Committed" } th scope="col" .number { "Failed" } th scope="col" { "Ended" } th scope="col" { "By" }
                } }
                tbody {
                    @for rollout in rollouts {
                        @let counts = devices(rollout);
                        tr {
                            th scope="row" { a href={"/rollouts/" (rollout.id)} { (rollout.id) } }
                            td { (bundle(&rollout.release.bundle)) }
                            td { (rollout.plan.rollout.slot) }
                            td { (state(&rollout.state)) }
                            td .number { (count(counts.get(Bucket::Committed))) }
                            td .number { (count(counts.get(Bucket::Failed) + counts.get(Bucket::TimedOut) + counts.get(Bucket::Lost))) }
                            td { (ago(rollout.since, now)) }
                            td { (rollout.by) }
                        }
                    }
                }
            }
        }
    }
}

fn state(state: &RolloutState) -> Markup {
    use RolloutState as S;
    let tone = match state {
        S::Running | S::Completed { .. } => "good",
        S::Paused { .. } | S::PendingApproval | S::Superseded { .. } | S::Expired => "warn",
        S::Reverting | S::Reverted { .. } | S::Aborted => "bad",
        S::Draft | S::Ready | S::Scheduled { .. } | S::Assigning { .. } => "",
    };
    badge(tone, state.name().as_str())
}

/// Why it stands still, if somebody or something stopped it.
fn pause(why: &PauseWhy) -> String {
    match why {
        PauseWhy::Operator { by, reason } if reason.is_empty() => format!("paused by {by}"),
        PauseWhy::Operator { by, reason } => format!("paused by {by}: {reason}"),
        PauseWhy::Gate { sentence, .. } => sentence.clone(),
        PauseWhy::Inconclusive => "no verdict within the longest soak".to_owned(),
        PauseWhy::FreezeCalendar { name } => format!("freeze `{name}`"),
        PauseWhy::LineStopped => "the line is stopped".to_owned(),
        PauseWhy::ApprovalExpired => "nobody approved in time".to_owned(),
    }
}

/// The page of devices after `after`.
fn devices_after(rollout: &Rollout, after: &str) -> String {
    format!("/rollouts/{}?cursor={}#devices", rollout.id, cursor(after))
}
