//! For who runs the controller: who changed what, what is set, invites, tokens.

use super::{
    Table, Web,
    answer::{PageError, see_other},
    guard::{Fields, Visitor},
    layout::{self, Tab, csrf},
    words::{NONE, ago, badge, count, name},
};
use crate::{
    api::{
        extract::{Pairs, cursor},
        problem::Problem,
    },
    fleet::{
        FleetError,
        attributes::Labels,
        invites::{InviteState, NewInvite},
        roles::{Permission, Role},
    },
    store::audit::AUDIT_LOG,
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use maud::{Markup, html};
use std::{sync::Arc, time::Duration};

/// Entries on a page.
const ROWS: usize = 50;
/// Longest value of an audit entry shown.
const MAX_TEXT: usize = 1_000;

pub(super) fn routes(table: Table) -> Table {
    table
        .get("/audit", Permission::AuditRead, audit)
        .get("/settings", Permission::Read, settings)
        // The API's own permissions: `POST /api/v1/invites`, `DELETE /api/v1/invites/{id}`, the same for tokens.
        .get("/invites", Permission::Read, invites)
        .post("/invites", Permission::InvitesWrite, invite)
        .post("/invites/{id}/revoke", Permission::InvitesWrite, revoke_invite)
        .get("/tokens", Permission::TokensWrite, tokens)
        .post("/tokens/{id}/revoke", Permission::TokensWrite, revoke_token)
}

/// Newest first: pages go towards the first entry.
async fn audit(State(web): State<Arc<Web>>, visitor: Visitor, query: Pairs) -> Result<Response, PageError> {
    query.only(&["before"])?;
    let head = web.operations.store.log_head(AUDIT_LOG).await.map_err(FleetError::from)?;
    let before = query.one::<u64>("before")?.unwrap_or(u64::MAX).min(head.saturating_add(1));
    let from = before.saturating_sub(ROWS as u64).max(1);
    let wanted = usize::try_from(before.saturating_sub(from)).unwrap_or(ROWS);
    let mut entries =
        if wanted == 0 { vec![] } else { web.operations.fleet.audit_entries(from, wanted).await?.items };
    entries.reverse();
    let cut =
        |text: &Option<String>| text.as_ref().map(|text| text.chars().take(MAX_TEXT).collect::<String>());
    let body = html! {
        p .faint { "Every entry carries the hash of the one before it. All of them: " code { "edgefleet audit list" } }
        section #audit aria-label="Entries" data-live="audit-head" {
            @if entries.is_empty() { p .empty { "No entries." } } @else {
                div .wide tabindex="0" {
                    table {
                        thead { tr { th scope="col" .number { "No." } th scope="col" { "When" } th scope="col" { "Who" } th scope="col" { "What" } th scope="col" { "Subject" } th scope="col" { "Change" } } }
                        tbody {
                            @for entry in &entries {
                                tr {
                                    td .number { (entry.seq) }
                                    td { (entry.at) }
                                    td { (entry.who) }
                                    td { code { (entry.action) } }
                                    td { (entry.subject) }
                                    td {
                                        @if let Some(note) = &entry.note { div { (note) } }
                                        @if entry.before.is_some() || entry.after.is_some() {
                                            details { summary { "before and after" }
                                                @if let Some(text) = cut(&entry.before) { p { "before: " code { (text) } } }
                                                @if let Some(text) = cut(&entry.after) { p { "after: " code { (text) } } } }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            nav .pages aria-label="Pages" {
                @if before <= head { a .button href="/audit" { "Newest" } }
                @if from > 1 { a .button rel="next" href={"/audit?before=" (from)} { "Older" } }
            }
        }
    };
    Ok(layout::page(&visitor, Tab::Audit, "Audit log", body))
}

async fn settings(State(web): State<Arc<Web>>, visitor: Visitor) -> Result<Response, PageError> {
    let rules = web.operations.settings.current();
    let monitor = web.operations.monitoring.settings();
    let calendar = web.operations.calendar.current();
    let now = web.now();
    let body = html! {
        section #rules data-live="settings" {
            h2 { "How devices behave" span .count { (rules.len()) } }
            @if rules.is_empty() { p .empty { "No rules: every device has the defaults. Set some: " code { "edgefleet settings set" } } } @else {
                div .wide tabindex="0" {
                    table {
                        thead { tr { th scope="col" { "Rule" } th scope="col" .number { "Order" } th scope="col" { "Devices" } th scope="col" { "Sets" } th scope="col" { "Ends" } th scope="col" { "By" } } }
                        tbody {
                            @for rule in rules.iter() {
                                tr {
                                    th scope="row" { (rule.name) }
                                    td .number { (rule.order) }
                                    td { @match &rule.select { Some(selector) => code { (selector) }, None => "all" } }
                                    td { @for (key, value) in &rule.set { div { code { (key) " = " (value) } } } }
                                    td { @match rule.until { Some(until) => (ago(until, now)), None => (NONE) } }
                                    td { (rule.by) ", " (ago(rule.at, now)) }
                                }
                            }
                        }
                    }
                }
            }
        }
        section #monitor data-live="monitor-settings" {
            h2 { "Monitoring" }
            dl .facts {
                dt { "Five minutes are kept" } dd { (monitor.retention.five_minutes) " days" }
                dt { "Hours are kept" } dd { (monitor.retention.hours) " days" }
                dt { "Days are kept" } dd { (monitor.retention.days) " days" }
                @for (model, choice) in &monitor.cohorts { dt { "Cohorts of " (model) } dd { "by " (choice.by.join(", ")) } }
            }
        }
        section #calendar {
            h2 { "Freezes" span .count { (calendar.periods.len()) } }
            @if let Some(stopped) = &calendar.stopped { p .notice { "The line is stopped: " code { (serde_json::to_string(stopped).unwrap_or_default()) } } }
            @if calendar.periods.is_empty() { p .empty { "No freeze is planned." } }
            @if !calendar.periods.is_empty() { pre { (serde_json::to_string_pretty(&calendar.periods).unwrap_or_default()) } }
        }
    };
    Ok(layout::page(&visitor, Tab::Settings, "Settings", body))
}

async fn invites(State(web): State<Arc<Web>>, visitor: Visitor, query: Pairs) -> Result<Response, PageError> {
    query.only(&["cursor"])?;
    let (after, _) = query.page::<String>()?;
    invite_page(&web, &visitor, after.as_deref(), None).await
}

async fn invite_page(
    web: &Web,
    visitor: &Visitor,
    after: Option<&str>,
    code: Option<&str>,
) -> Result<Response, PageError> {
    let page = web.operations.fleet.invites(after, ROWS).await?;
    let now = web.now();
    let body = html! {
        @if let Some(code) = code {
            section .card role="status" {
                h2 { "The join code" }
                p { "It is shown this once. On the device: " }
                pre { "edgefleet-agent enroll " (code) }
            }
        }
        @if visitor.can(Permission::InvitesWrite) { section aria-labelledby="new-title" {
            h2 #new-title { "New invite" }
            form .card method="post" action="/invites" {
                (csrf(visitor))
                label for="labels" { "Labels of the devices it brings" }
                input #labels name="labels" type="text" placeholder="site=plant-7, line=3" autocomplete="off";
                label for="uses" { "Devices" }
                input #uses name="uses" type="number" min="1" max="1000000" value="1" required;
                label for="hours" { "Hours it holds" }
                input #hours name="hours" type="number" min="1" max="8784" value="24" required;
                label { input type="checkbox" name="approval" value="yes"; " Devices wait until somebody approves them" }
                button .primary type="submit" { "Make a join code" }
            }
        } }
        section #invites aria-labelledby="invites-title" data-live="invite" {
            h2 #invites-title { "Invites" }
            @if page.items.is_empty() { p .empty { "None." } } @else {
                div .wide tabindex="0" {
                    table {
                        thead { tr { th scope="col" { "Invite" } th scope="col" { "State" } th scope="col" { "Labels" } th scope="col" .number { "Used" } th scope="col" { "Ends" } th scope="col" { "By" } th scope="col" { "" } } }
                        tbody {
                            @for invite in &page.items {
                                @let state = invite.state(now);
                                tr {
                                    th scope="row" { code { (invite.id) } }
                                    td { (badge(if state == InviteState::Open { "good" } else { "" }, &name(state))) @if invite.approval { " with approval" } }
                                    td { @for (key, value) in &invite.labels { div { (key) "=" (value) } } }
                                    td .number { (count(invite.used)) " of " (count(invite.uses)) }
                                    td { (ago(invite.expires, now)) }
                                    td { (invite.created_by) }
                                    td { @if state == InviteState::Open && visitor.can(Permission::InvitesWrite) { (revoke(visitor, "invites", invite.id.as_str())) } }
                                }
                            }
                        }
                    }
                }
            }
            @if let Some(next) = &page.next { nav .pages { a .button href={"/invites?cursor=" (cursor(next))} { "More" } } }
        }
    };
    Ok(layout::page(visitor, Tab::Invites, "Invites", body))
}

fn revoke(visitor: &Visitor, what: &str, id: &str) -> Markup {
    html! {
        details .act {
            summary { "Revoke …" }
            form method="post" action={"/" (what) "/" (id) "/revoke"} {
                (csrf(visitor))
                button .danger type="submit" { "Revoke for good" }
            }
        }
    }
}

/// `site=plant-7, line=3`.
fn labels(text: &str) -> Result<Labels, Problem> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err(Problem::bad_request("form-invalid", format!("`{pair}` is no label; write key=value"))),
    };
    pairs.map(pair).collect()
}

async fn invite(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    fields: Fields,
) -> Result<Response, PageError> {
    let number = |field: &str| {
        let text = fields.text(field);
        text.parse::<u32>()
            .map_err(|_| Problem::bad_request("form-invalid", format!("`{field}` must be a number")))
    };
    let new = NewInvite {
        labels: labels(fields.text("labels"))?,
        uses: number("uses")?,
        ttl: Duration::from_secs(u64::from(number("hours")?) * 3_600),
        approval: fields.text("approval") == "yes",
    };
    let created = web.operations.fleet.create_invite(&visitor.caller.actor(), new).await?;
    invite_page(&web, &visitor, None, Some(&created.code.to_string())).await
}

async fn revoke_invite(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let id = id.parse().map_err(|error| Problem::bad_request("path-invalid", format!("{error}")))?;
    web.operations.fleet.revoke_invite(&visitor.caller.actor(), &id).await?;
    Ok(see_other("/invites"))
}

async fn tokens(State(web): State<Arc<Web>>, visitor: Visitor, query: Pairs) -> Result<Response, PageError> {
    query.only(&["cursor"])?;
    let (after, _) = query.page::<String>()?;
    let page = web.operations.fleet.list_tokens(after.as_deref(), ROWS);
    let now = web.now();
    let body = html! {
        p { "Make one: " code { "edgefleet token create NAME --role ROLE" } ". Roles: "
            (Role::ALL.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")) "." }
        section #tokens aria-label="Tokens" data-live="token" {
            div .wide tabindex="0" {
                table {
                    thead { tr { th scope="col" { "Name" } th scope="col" { "Role" } th scope="col" { "State" } th scope="col" { "Made" } th scope="col" { "Ends" } th scope="col" { "" } } }
                    tbody {
                        @for token in &page.items {
                            tr {
                                th scope="row" { (token.name) br; span .faint { (token.id) } }
                                td { (token.role) }
                                td { @if token.usable(now) { (badge("good", "usable")) } @else if token.revoked.is_some() { (badge("bad", "revoked")) } @else { (badge("", "ended")) } }
                                td { (ago(token.created, now)) " by " (token.created_by) }
                                td { @match token.expires { Some(at) => (ago(at, now)), None => (NONE) } }
                                td { @if token.usable(now) { (revoke(&visitor, "tokens", &token.id)) } }
                            }
                        }
                    }
                }
            }
            @if let Some(next) = &page.next { nav .pages { a .button href={"/tokens?cursor=" (cursor(next))} { "More" } } }
        }
    };
    Ok(layout::page(&visitor, Tab::Tokens, "Tokens", body))
}

async fn revoke_token(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    web.operations.fleet.revoke_token(&visitor.caller.actor(), &id).await?;
    Ok(see_other("/tokens"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_they_are_written() {
        let read = labels(" site=plant-7, line = 3 ,").unwrap();
        assert_eq!(
            read,
            [("line".to_owned(), "3".to_owned()), ("site".to_owned(), "plant-7".to_owned())].into()
        );
        assert!(labels("").unwrap().is_empty() && labels("plant-7").is_err());
    }
}
