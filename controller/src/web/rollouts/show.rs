//! One rollout: where it stands and why, stage by stage, its evidence, its devices, what was decided.

use super::{
    super::{
        Web,
        answer::PageError,
        guard::Visitor,
        layout::{self, Tab},
        plot::meter,
        words::{NONE, ago, badge, bundle, count, device, instant, name, prose},
    },
    devices_after, evidence, orders, pause, state,
};
use crate::{
    api::{
        extract::{ApiPath, Pairs},
        problem::Problem,
        rollout_views::{Explanation, LAST_VERDICTS, StageView},
    },
    fleet::FleetError,
    rollout::{
        Arm, Attempt, Because, Bucket, Counts, Mode, Rollout, StageState, State as RolloutState,
        VerdictRecord, Who,
    },
};
use axum::{extract::State, response::Response};
use edgefleet_shared::{
    ids::{DeviceId, RolloutId},
    time::Timestamp,
};
use maud::{Markup, html};
use std::sync::Arc;

/// Devices on a page.
const ROWS: usize = 50;
/// Attempts looked through for problems on one page.
const LOOKED_AT: usize = 2_000;

pub(super) async fn page(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    path: Result<ApiPath<RolloutId>, Problem>,
    query: Pairs,
) -> Result<Response, PageError> {
    query.only(&["cursor", "show"])?;
    let ApiPath(id) = path?;
    let rollouts = &web.operations.rollouts;
    let rollout = rollouts.show(&id).await?;
    let verdicts = rollouts.last_verdicts(&id, LAST_VERDICTS).await.map_err(FleetError::from)?;
    let now = web.now();
    let records = verdicts.into_iter().map(|signed| signed.record).collect();
    let explained = Explanation::of(&rollout, records, now);
    let devices = devices(&web, &rollout, &query, now).await?;
    let body = html! {
        section #state data-live="rollout" {
            p { (state(&rollout.state)) " since " (ago(rollout.since, now)) }
            @if let RolloutState::Paused { why } = &rollout.state { p .notice { (pause(why)) } }
            dl .facts {
                dt { "Bundle" } dd { (bundle(&rollout.release.bundle)) }
                dt { "Slot" } dd { (rollout.plan.rollout.slot) }
                dt { "Begun" } dd { (ago(rollout.created, now)) " by " (rollout.by) @if !rollout.reason.is_empty() { ": " (rollout.reason) } }
                dt { "Devices" } dd { (count(rollout.members())) }
                dt { "Selected by" } dd {
                    // A selector that says nothing selects everybody.
                    @let all: Vec<_> = rollout.plan.select.iter().map(ToString::to_string).filter(|text| !text.is_empty()).collect();
                    @for text in &all { code { (text) } " " }
                    @if all.is_empty() { "every device" }
                }
            }
        }
        section #waiting aria-labelledby="waiting-title" data-live="rollout" {
            h2 #waiting-title { "Why it stands where it stands" }
            @if explained.waiting.is_empty() { p .empty { "It waits for nothing." } }
            ul .plain {
                @for one in &explained.waiting {
                    li { (prose(&one.sentence)) " " span .faint {
                        "since " (ago(one.since, now)) @if let Some(until) = one.until { ", until " (instant(until)) } "; " (who(one.who)) " can change it" } }
                }
            }
        }
        (orders::forms(&visitor, &rollout))
        section #stages aria-labelledby="stages-title" data-live="rollout" {
            h2 #stages-title { "Stages" }
            (stages(&rollout, &explained.stages, now))
        }
        section #evidence aria-labelledby="evidence-title" data-live="rollout" {
            h2 #evidence-title { "Evidence" }
            (evidence::gates(&web, explained.assessment.as_ref()))
        }
        (devices)
        section #history aria-labelledby="history-title" data-live="rollout" {
            h2 #history-title { "What was decided" }
            (history(&explained.verdicts, now))
        }
    };
    let title = format!("{} to slot {}", rollout.release.bundle, rollout.plan.rollout.slot);
    Ok(layout::page(&visitor, Tab::Rollouts, &title, body))
}

fn who(who: Who) -> &'static str {
    match who {
        Who::Author => "the author",
        Who::OtherPerson => "somebody else",
        Who::Operator => "an operator",
        Who::Devices => "devices",
        Who::Nobody => "time",
        Who::Controller => "the controller",
    }
}

/// Devices that have what was to be brought, of all.
pub(super) fn progress(counts: &Counts) -> Markup {
    let (done, all) = (counts.get(Bucket::Committed) + counts.get(Bucket::Shadowing), counts.members());
    let says = format!("{} of {} devices", count(done), count(all));
    html! { p { (meter(done as f64 / all.max(1) as f64, None, "good", &says)) " " (says) } (buckets(counts)) }
}

fn buckets(counts: &Counts) -> Markup {
    html! {
        p .faint {
            @for (n, bucket) in Bucket::ALL.iter().filter(|bucket| counts.get(**bucket) > 0).enumerate() {
                @if n > 0 { ", " }
                (count(counts.get(*bucket))) " " (bucket.as_str())
            }
        }
    }
}

fn stages(rollout: &Rollout, stages: &[StageView], now: Timestamp) -> Markup {
    html! {
        ol .cards .steps {
            @for (at, stage) in stages.iter().enumerate() {
                @let is_open = rollout.is_active() && usize::from(rollout.stage) == at;
                li .card aria-current=[is_open.then_some("step")] {
                    h3 { (at + 1) ". " (stage.name) " " (badge(tone(stage), &name(stage.progress.state))) }
                    p .faint {
                        @match stage.mode { Mode::Shadow => "shadow: answers are compared, never given", Mode::Active => "active" }
                        @if !stage.gates.is_empty() { " · gates " (stage.gates.iter().map(|gate| gate.name()).collect::<Vec<_>>().join(", ")) }
                        " · soak " (stage.soak)
                    }
                    (progress(&stage.progress.counts))
                    @if stage.progress.failures.total() > 0 {
                        p { (badge("bad", &format!("{} failed", stage.progress.failures.total()))) " "
                            @for (code, n) in stage.progress.codes.iter().filter(|(_, n)| **n > 0).take(6) { (code) " " (n) " " } }
                    }
                    @if let Some(soak) = stage.progress.soak_from { p .faint { "soaks since " (ago(soak, now)) } }
                    @if let Some(reason) = &stage.progress.skipped { p .faint { "skipped: " (reason) } }
                }
            }
        }
    }
}

fn tone(stage: &StageView) -> &'static str {
    match stage.progress.state {
        state if state.is_over() => "good",
        StageState::Failed => "bad",
        state if state.is_open() => "warn",
        _ => "",
    }
}

async fn devices(web: &Web, rollout: &Rollout, query: &Pairs, now: Timestamp) -> Result<Markup, PageError> {
    let (after, _) = query.page::<DeviceId>()?;
    let only_problems = query.one::<String>("show")?.as_deref() != Some("all");
    let is_problem = |attempt: &Attempt| {
        attempt.failure.is_some()
            || attempt.refusal.is_some()
            || matches!(
                attempt.bucket,
                Bucket::Failed | Bucket::TimedOut | Bucket::Lost | Bucket::Gone | Bucket::Waiting
            )
    };
    let limit = if only_problems { LOOKED_AT } else { ROWS };
    let found = web.operations.rollouts.attempts(&rollout.id, after.as_ref(), limit + 1).await;
    let mut all = found.map_err(FleetError::from)?;
    let mut more = all.len() > limit;
    all.truncate(limit);
    let mut last = all.last().map(|attempt| attempt.device.to_string());
    if only_problems {
        all.retain(is_problem);
        if all.len() > ROWS {
            all.truncate(ROWS);
            more = true;
            last = all.last().map(|attempt| attempt.device.to_string());
        }
    }
    let show = if only_problems { "problems" } else { "all" };
    Ok(html! {
        section #devices aria-labelledby="devices-title" data-live="attempt" {
            h2 #devices-title { "Devices" }
            nav .chips aria-label="Which devices" {
                a href={"/rollouts/" (rollout.id) "?show=problems#devices"} aria-current=[only_problems.then_some("true")] { "With problems" }
                a href={"/rollouts/" (rollout.id) "?show=all#devices"} aria-current=[(!only_problems).then_some("true")] { "All" }
            }
            @if all.is_empty() {
                p .empty { @if only_problems { "No device has a problem." } @else { "Nobody's place is drawn yet." } }
            } @else {
                div .wide tabindex="0" {
                    table {
                        thead { tr {
                            th scope="col" { "Device" } th scope="col" { "Stage" } th scope="col" { "Arm" } th scope="col" { "State" }
                            th scope="col" { "Problem" } th scope="col" .number { "Tries" } th scope="col" { "Since" }
                        } }
                        tbody { @for attempt in &all { (attempt_row(web, rollout, attempt, now)) } }
                    }
                }
            }
            @if let Some(last) = last.filter(|_| more) {
                nav .pages { a .button href=(devices_after(rollout, &last).replace('?', &format!("?show={show}&"))) { "More devices" } }
            }
        }
    })
}

fn attempt_row(web: &Web, rollout: &Rollout, attempt: &Attempt, now: Timestamp) -> Markup {
    let stage = rollout.plan.stages.get(usize::from(attempt.stage));
    html! {
        tr {
            th scope="row" { (device(web, &attempt.device)) }
            td { (stage.map_or(NONE, |stage| &stage.name)) }
            td { @match attempt.arm { Arm::Control => (badge("", "control")), _ => (name(attempt.arm)) } }
            td { (attempt.bucket.as_str()) }
            td {
                @if let Some(refusal) = &attempt.refusal { (super::super::device::refusal(refusal)) }
                @else if let Some(failure) = &attempt.failure { (name(failure.kind)) " " (name(failure.code)) }
            }
            td .number { (attempt.tries.downloads + attempt.tries.activations) }
            td { (ago(attempt.since, now)) }
        }
    }
}

fn history(verdicts: &[VerdictRecord], now: Timestamp) -> Markup {
    html! {
        @if verdicts.is_empty() { p .empty { "Nothing yet." } }
        ol .plain reversed {
            @for record in verdicts.iter().rev() {
                li {
                    (badge("", &name(record.decision).replace('-', " ")))
                    @if let Some((_, stage)) = &record.stage { " " strong { (stage) } }
                    ": "
                    @match &record.because {
                        Because::Rule { sentence, .. } => (sentence),
                        Because::Person { by, reason } => { (by) @if !reason.is_empty() { ": " (reason) } },
                    }
                    " " span .faint { (ago(record.at, now)) }
                }
            }
        }
        @if verdicts.len() >= LAST_VERDICTS { p .faint { "The last " (LAST_VERDICTS) ". Each is signed; all of them: " code { "edgefleet rollout verdicts" } } }
    }
}
