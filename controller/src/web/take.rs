//! Advice taken: first what would be done, step by step; then the button; then what was done.

use super::{
    Table, Web,
    answer::{PageError, see_other},
    guard::{Fields, Visitor},
    layout::{self, Tab, csrf},
    words::{ago, badge, bundle, bytes, count, encoded, prose},
};
use crate::{
    advice::take::{Doing, Step},
    api::{
        problem::Problem,
        take::{TakeAnswer, carry_out, look},
    },
    fleet::roles::Permission,
    rollouts::{CONFIRM_ABOVE, preview::Preview},
    taking::{Consent, Outcome, TakenRecord, TakenStep},
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use edgefleet_shared::time::Timestamp;
use maud::{Markup, html};
use std::sync::Arc;

pub(super) fn routes(table: Table) -> Table {
    table
        // Both are `POST /api/v1/advice/{id}/take`; the page is its dry run.
        .get("/advice/{id}/take", Permission::RolloutsWrite, page)
        .post("/advice/{id}/take", Permission::RolloutsWrite, take)
}

/// On the page of the advice: the way here, and who went it.
pub(super) fn offer(
    visitor: &Visitor,
    id: &str,
    taken: Option<&TakenRecord>,
    is_over: bool,
    now: Timestamp,
) -> Markup {
    html! {
        @if let Some(taken) = taken {
            p { (badge("good", "taken")) " by " (taken.by) " " (ago(taken.at, now))
                @if visitor.can(Permission::RolloutsWrite) { ": " a href=(path(id)) { "what was done" } } }
        } @else if visitor.can(Permission::RolloutsWrite) && !is_over {
            p { a .button .primary href=(path(id)) { "Take it…" } " " span .faint { "first shows what would be done" } }
        }
    }
}

fn path(id: &str) -> String {
    format!("/advice/{}/take", encoded(id))
}

fn consent(visitor: &Visitor, confirmed: bool) -> Consent {
    Consent { confirmed, publisher: visitor.can(Permission::ModelsWrite) }
}

async fn page(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let now = web.now();
    let consent = consent(&visitor, true);
    let answer = look(&web.operations, &id, &visitor.caller.actor(), consent, now).await?;
    let body = html! {
        p { a href={"/advice/" (encoded(&answer.advice))} { (prose(&answer.what)) } " " span .faint { (answer.rule) } }
        @if let (Some(by), Some(at)) = (&answer.by, answer.at) {
            p { (badge("good", "taken")) " by " (by) " " (ago(at, now)) }
        }
        section #steps aria-labelledby="steps-title" {
            h2 #steps-title { @if answer.by.is_some() { "What was done" } @else { "What would be done" } }
            (steps(&answer))
        }
        @if answer.by.is_none() { (form(&visitor, &answer, consent.publisher)) }
    };
    let title = if answer.by.is_some() { "Advice taken" } else { "Take the advice" };
    Ok(layout::page(&visitor, Tab::Findings, title, body))
}

fn steps(answer: &TakeAnswer) -> Markup {
    // One for each step that starts a rollout, in their order.
    let mut previews = answer.previews.iter();
    html! {
        ol .cards .steps {
            @for (at, taken) in answer.steps.iter().enumerate() {
                @let step = &taken.step;
                li .card {
                    h3 { (at + 1) ". " (prose(&step.text)) }
                    p { (outcome(taken.outcome)) @if let Some(made) = made(taken) { " " (made) } }
                    (doing(step))
                    @if matches!(step.doing, Doing::StartRollout { .. }) { @if let Some(preview) = previews.next() { (reaches(preview)) } }
                    // What lies under `/api` wants a token: its command is below.
                    @let links: Vec<_> = step.links.iter().filter(|link| !link.starts_with("/api/")).collect();
                    @if !links.is_empty() { p { @for link in links { a .button href=(link) { (place(link)) } " " } } }
                    @if !step.commands.is_empty() {
                        details { summary { "From a terminal" } @for command in &step.commands { pre { (command) } } }
                    }
                }
            }
        }
    }
}

fn outcome(outcome: Outcome) -> Markup {
    match outcome {
        Outcome::WouldBeDone => badge("", "would be done"),
        Outcome::Done => badge("good", "done"),
        Outcome::ForPeople => badge("warn", "for you"),
    }
}

/// What came of it, where it can be seen.
fn made(taken: &TakenStep) -> Option<Markup> {
    let made = taken.made.as_ref()?;
    Some(match &taken.step.doing {
        Doing::SetRule { .. } => html! { a href="/settings" { "rule " (made) } },
        Doing::StartRollout { .. } => html! { a href={"/rollouts/" (encoded(made))} { "rollout " (made) } },
        Doing::Look | Doing::ByHand { .. } | Doing::OpenQueue { .. } | Doing::MakeBundle { .. } => {
            html! { (made) }
        }
    })
}

/// Which page a link leads to.
fn place(link: &str) -> &'static str {
    match link.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default() {
        "label" => "Label captures",
        "rollouts" => "The rollout",
        "models" => "How the model does",
        "devices" => "The device",
        "fleet" => "Devices",
        "incidents" => "The incident",
        "settings" => "Settings",
        _ => "Look",
    }
}

fn doing(step: &Step) -> Markup {
    match &step.doing {
        Doing::Look => html! {},
        Doing::ByHand { what, lines } => html! {
            p { "Change in " (what) ":" }
            pre { (lines.join("\n")) }
        },
        Doing::OpenQueue { waiting, wanted, .. } => html! {
            p { (count(*waiting)) " captures wait to be labelled" @if *wanted > 0 { "; " (count(*wanted)) " labels are wanted" } "." }
        },
        Doing::SetRule { rule, order, select, set, days } => html! {
            dl .facts {
                dt { "Rule" } dd { code { (rule) } ", order " (order) }
                dt { "Devices" } dd { @match select { Some(selector) => code { (selector) }, None => "every device" } }
                dt { "Ends" } dd { "after " (days) " days" }
                @for (key, value) in set { dt { (key) } dd { code { (value) } } }
            }
        },
        Doing::MakeBundle { from, bundle: made, change } => html! {
            dl .facts {
                dt { "From" } dd { (bundle(from)) }
                dt { "Makes" } dd { (made) ", with another " (change.word()) }
            }
        },
        Doing::StartRollout { plan } => html! {
            dl .facts {
                dt { "Bundle" } dd { (bundle(&plan.rollout.bundle)) }
                dt { "Slot" } dd { (plan.rollout.slot) }
            }
        },
    }
}

/// What a rollout would do.
fn reaches(preview: &Preview) -> Markup {
    html! {
        @for mistake in &preview.mistakes { p .notice { code { (mistake.path) } " " (prose(&mistake.problem)) } }
        dl .facts {
            dt { "Reaches" } dd { (count(preview.devices)) " devices, " (count(preview.canaries)) " of them as canaries" }
            dt { "Takes" } dd { "about " (preview.expected) ", at most " (preview.longest) }
            dt { "Fetches" } dd { (bytes(preview.bytes)) ", " (bytes(preview.bytes_per_device)) " a device" }
            dt { "Stages" } dd { @for stage in &preview.stages { div { (stage.name) ": " (count(stage.devices)) " devices, soak " (stage.soak) } } }
        }
        @for warning in &preview.warnings { p { (prose(warning)) } }
    }
}

fn form(visitor: &Visitor, answer: &TakeAnswer, is_publisher: bool) -> Markup {
    let is_bundle = |taken: &TakenStep| matches!(taken.step.doing, Doing::MakeBundle { .. });
    let devices: u64 = answer.previews.iter().map(|preview| preview.devices).sum();
    let is_for_people = answer.steps.iter().all(|taken| taken.outcome == Outcome::ForPeople);
    html! {
        section #take aria-labelledby="take-title" {
            h2 #take-title { "Take it" }
            @if answer.steps.iter().any(is_bundle) && !is_publisher {
                p .notice { "It makes a bundle, which needs a publisher: sign in with a token of that role." }
            } @else {
                @if is_for_people { p .faint { "Nothing here is done by the controller. Taking it notes that you have it in hand." } }
                form .card method="post" action=(path(&answer.advice)) {
                    (csrf(visitor))
                    @if devices > CONFIRM_ABOVE as u64 {
                        p { input #confirmed type="checkbox" name="confirmed" value="yes" required; " "
                            label for="confirmed" { "It reaches " (count(devices)) " devices, and that is what I want" } }
                    }
                    div .row { button .primary { @if is_for_people { "I take it" } @else { "Do it" } } a .button href={"/advice/" (encoded(&answer.advice))} { "Back" } }
                }
            }
        }
    }
}

async fn take(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
    fields: Fields,
) -> Result<Response, PageError> {
    let confirmed = match fields.text("confirmed") {
        "" => false,
        "yes" => true,
        _ => return Err(Problem::bad_request("form-invalid", "`confirmed` is `yes` or absent").into()),
    };
    let actor = visitor.caller.actor();
    let consent = consent(&visitor, confirmed);
    let answer = carry_out(&web.operations, &id, &actor, consent, web.now()).await?;
    Ok(see_other(&path(&answer.advice)))
}
