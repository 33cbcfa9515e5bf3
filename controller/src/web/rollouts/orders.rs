//! What people tell a rollout: the same words, roles and service as in the API, each with a reason and asked twice.

use super::super::{
    Table, Web,
    answer::{PageError, see_other},
    guard::{Fields, Visitor},
    layout::csrf,
};
use crate::{
    api::{
        extract::ApiPath,
        problem::Problem,
        rollout_views::{ApprovalRequest, OrderRequest},
    },
    fleet::roles::Permission,
    rollout::{AbortMode, Rollout, State as RolloutState, approval::Scope},
};
use axum::{extract::State, response::Response};
use edgefleet_shared::ids::RolloutId;
use maud::{Markup, html};
use std::sync::Arc;

/// Longest reason, characters.
const MAX_REASON: usize = 500;

pub(super) fn routes(table: Table) -> Table {
    table
        // `POST /api/v1/rollouts/{id}/orders` and `.../approval`, with their roles.
        .post("/rollouts/{id}/orders", Permission::RolloutsWrite, order)
        .post("/rollouts/{id}/approval", Permission::RolloutsApprove, approve)
}

/// One order as the page offers it.
struct Offer {
    order: &'static str,
    word: &'static str,
    /// What it does, said before it is done.
    says: &'static str,
    is_grave: bool,
    needs_reason: bool,
}

const START: Offer = Offer {
    order: "start",
    word: "Start",
    says: "Devices begin to be told.",
    is_grave: false,
    needs_reason: false,
};
const PAUSE: Offer = Offer {
    order: "pause",
    word: "Pause",
    says: "No further device is told. Those under way finish.",
    is_grave: false,
    needs_reason: true,
};
const RESUME: Offer = Offer {
    order: "resume",
    word: "Resume",
    says: "It goes on. After a verdict this means: in spite of it.",
    is_grave: false,
    needs_reason: true,
};
const REVERT: Offer = Offer {
    order: "revert",
    word: "Revert",
    says: "Every device that has the bundle goes back to what it had before.",
    is_grave: true,
    needs_reason: true,
};

/// What may be said to it in this state.
fn offers(rollout: &Rollout) -> Vec<Offer> {
    match &rollout.state {
        RolloutState::Draft | RolloutState::Ready => vec![START],
        RolloutState::Assigning { .. } | RolloutState::Running => vec![PAUSE, REVERT],
        RolloutState::Paused { .. } => vec![RESUME, REVERT],
        RolloutState::Completed { .. } => vec![REVERT],
        RolloutState::PendingApproval
        | RolloutState::Scheduled { .. }
        | RolloutState::Reverting
        | RolloutState::Reverted { .. }
        | RolloutState::Aborted
        | RolloutState::Superseded { .. }
        | RolloutState::Expired => vec![],
    }
}

pub(super) fn forms(visitor: &Visitor, rollout: &Rollout) -> Markup {
    let offers = if visitor.can(Permission::RolloutsWrite) { offers(rollout) } else { vec![] };
    let request = rollout.approvals.open.as_ref().filter(|_| visitor.can(Permission::RolloutsApprove));
    html! {
        @if !offers.is_empty() || request.is_some() {
            section #orders aria-labelledby="orders-title" data-live="rollout" {
                h2 #orders-title { "What you can do" }
                @if let Some(request) = request {
                    form .card method="post" action={"/rollouts/" (rollout.id) "/approval"} {
                        (csrf(visitor))
                        p { "It asks for an approval: " strong { (asked(request.scope, rollout)) } }
                        label for="approval-reason" { "Reason" }
                        input #approval-reason name="reason" type="text" maxlength=(MAX_REASON) autocomplete="off";
                        div .row {
                            button .primary name="agree" value="yes" { "Approve" }
                            button .danger name="agree" value="no" { "Deny" }
                        }
                    }
                }
                div .row { @for offer in &offers { (form(visitor, rollout, offer)) } }
            }
        }
    }
}

fn asked(scope: Scope, rollout: &Rollout) -> String {
    let named = |stage: u16| {
        let stage_of = rollout.plan.stages.get(usize::from(stage));
        stage_of.map_or_else(|| stage.to_string(), |stage| format!("`{}`", stage.name))
    };
    match scope {
        Scope::Start => "to start".to_owned(),
        Scope::Begin { stage } => format!("stage {} to begin", named(stage)),
        Scope::Pass { stage } => {
            format!("stage {} to pass although too few devices can prove anything", named(stage))
        }
    }
}

fn form(visitor: &Visitor, rollout: &Rollout, offer: &Offer) -> Markup {
    let field = format!("{}-reason", offer.order);
    html! {
        details .act {
            summary { (offer.word) " …" }
            form .card method="post" action={"/rollouts/" (rollout.id) "/orders"} {
                (csrf(visitor))
                input type="hidden" name="order" value=(offer.order);
                p { (offer.says) }
                @if offer.needs_reason {
                    label for=(field) { "Reason" }
                    input id=(field) name="reason" type="text" required maxlength=(MAX_REASON) autocomplete="off";
                }
                @if offer.is_grave {
                    label { input type="checkbox" name="sure" value="yes" required; " I have looked at the devices it concerns" }
                }
                button class=(if offer.is_grave { "danger" } else { "primary" }) type="submit" { (offer.word) }
            }
        }
    }
}

fn reason(fields: &Fields) -> Result<String, Problem> {
    let text = fields.text("reason");
    match text.chars().count() {
        n if n > MAX_REASON => Err(Problem::bad_request(
            "text-invalid",
            format!("the reason has {n} characters, {MAX_REASON} are allowed"),
        )),
        _ => Ok(text.to_owned()),
    }
}

async fn order(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    path: Result<ApiPath<RolloutId>, Problem>,
    fields: Fields,
) -> Result<Response, PageError> {
    let ApiPath(id) = path?;
    let reason = reason(&fields)?;
    let missing = |what: &str| Problem::bad_request("form-invalid", what.to_owned());
    let order = match fields.text("order") {
        "start" => OrderRequest::Start,
        _ if reason.is_empty() => return Err(missing("a reason is missing").into()),
        "pause" => OrderRequest::Pause { reason },
        "resume" => OrderRequest::Resume { reason },
        "revert" if fields.text("sure") == "yes" => OrderRequest::Abort { mode: AbortMode::Revert, reason },
        "revert" => return Err(missing("confirm that you have looked at the devices it concerns").into()),
        _ => return Err(missing("the order may be start, pause, resume or revert").into()),
    };
    let actor = visitor.caller.actor();
    let (action, event) = (order.action(), order.event(actor.name()));
    web.operations.rollouts.order(&id, &actor, action, &event, web.now()).await?;
    Ok(see_other(&format!("/rollouts/{id}")))
}

async fn approve(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    path: Result<ApiPath<RolloutId>, Problem>,
    fields: Fields,
) -> Result<Response, PageError> {
    let ApiPath(id) = path?;
    let agree = match fields.text("agree") {
        "yes" => true,
        "no" => false,
        _ => return Err(Problem::bad_request("form-invalid", "say `yes` or `no`").into()),
    };
    let answer = ApprovalRequest { agree, reason: reason(&fields)? };
    let actor = visitor.caller.actor();
    let action = if agree { "rollout.approve" } else { "rollout.deny" };
    let event = answer.event(actor.name());
    web.operations.rollouts.order(&id, &actor, action, &event, web.now()).await?;
    Ok(see_other(&format!("/rollouts/{id}")))
}
