//! One piece of advice: what, why, with which numbers, what to do; and what people say of it.

use super::{
    Table, Web,
    answer::{PageError, see_other},
    findings::{label_link, severity, standing},
    guard::{Fields, Visitor},
    layout::{self, Tab, csrf},
    plot::{Chart, Dot, Look, Series, Unit, pairs},
    take,
    words::{ago, badge, bundle, device, encoded, figure, name, prose},
};
use crate::{
    advice::{Action, Plot, Scope, Standing, command},
    api::problem::Problem,
    fleet::roles::Permission,
    lookout::Marked,
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use edgefleet_shared::time::Timestamp;
use maud::{Markup, html};
use serde_json::Value;
use std::sync::Arc;

/// Longest value of an action that is shown.
const MAX_VALUE: usize = 300;

pub(super) fn routes(table: Table) -> Table {
    table
        .get("/advice/{id}", Permission::Read, show)
        // What a person may say over the API: `PUT /api/v1/advice/{id}/mark`.
        .post("/advice/{id}/mark", Permission::RolloutsWrite, mark)
}

/// As a part of a list.
pub(super) fn card(web: &Web, one: &Marked, now: Timestamp) -> Markup {
    let finding = &one.record.tracked.finding;
    html! {
        article .card {
            p { (severity(finding.severity)) " " (standing(one, now)) " " span .faint { (finding.rule) } }
            h3 { a href={"/advice/" (one.record.id)} { (prose(&finding.text.what)) } }
            p .faint { (scope(web, &finding.scope)) " · since " (ago(finding.since, now)) }
            p { (prose(&finding.text.to_do)) }
        }
    }
}

fn scope(web: &Web, scope: &Scope) -> Markup {
    match scope {
        Scope::Bundle { bundle: own } => bundle(own),
        Scope::Cohort { bundle: own, cohort } => html! { (bundle(own)) " in " (cohort) },
        Scope::Device { bundle: own, device: id, .. } => html! { (bundle(own)) " on " (device(web, id)) },
    }
}

async fn show(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let one = web.operations.lookout.one_advice(&id).await?;
    let tracked = &one.record.tracked;
    let finding = &tracked.finding;
    let taken = web.operations.taking.taken(one.record.id.as_str()).await?;
    let is_over = matches!(tracked.standing, Standing::Resolved { .. });
    let now = web.now();
    let body = html! {
        section #advice data-live="advice advice-mark advice-taken" {
            p { (severity(finding.severity)) " " (standing(&one, now)) " "
                (badge("", &format!("confidence {}", name(finding.confidence)))) " " (badge("", &finding.rule.to_string())) }
            dl .facts {
                dt { "About" } dd { (scope(&web, &finding.scope)) }
                @if !finding.detail.is_empty() { dt { "Of it" } dd { (finding.detail) } }
                dt { "Since" } dd { (ago(finding.since, now)) }
                dt { "Last seen" } dd { (ago(tracked.last_seen, now)) }
            }
            h2 { "Why" }
            p { (prose(&finding.text.why)) }
            h2 { "What to do" }
            p { (prose(&finding.text.to_do)) }
            p { "From a terminal: " code { (command(one.record.id.as_str(), &finding.action)) } }
            (action(&finding.action))
            (steps(&web, &finding.scope, &finding.action))
            (take::offer(&visitor, one.record.id.as_str(), taken.as_ref(), is_over, now))
            @if !finding.numbers.is_empty() {
                h2 { "Numbers" }
                dl .facts { @for (name, value) in &finding.numbers { dt { (name.replace('_', " ")) } dd { (figure(*value)) } } }
            }
            @if !finding.plots.is_empty() {
                h2 { "Evidence" }
                div .plots { @for plot in &finding.plots { (drawn(plot)) } }
            }
        }
        (opinion(&visitor, &one, now))
    };
    Ok(layout::page(&visitor, Tab::Findings, &finding.text.what, body))
}

/// Where the proposed action can be begun.
fn steps(web: &Web, scope: &Scope, action: &Action) -> Markup {
    let own = scope.bundle();
    let (model, bundle) = (own.model.to_string(), own.to_string());
    let cohort = match scope {
        Scope::Cohort { cohort, .. } | Scope::Device { cohort, .. } => Some(cohort),
        Scope::Bundle { .. } => None,
    };
    let devices = match (scope, action) {
        (_, Action::OpenLabelling { filter }) if !filter.devices.is_empty() => filter.devices.clone(),
        (Scope::Device { device, .. }, _) => vec![device.clone()],
        _ => vec![],
    };
    html! {
        p {
            @for id in devices.iter().take(8) {
                a .button href=(label_link(&model, Some(&bundle), Some(id.as_str()))) { "Label captures of " (super::words::device_name(web, id)) } " "
            }
            @if devices.is_empty() { a .button href=(label_link(&model, Some(&bundle), None)) { "Label captures" } " " }
            a .button href={"/models/" (model) @if let Some(cohort) = cohort { "?cohort=" (encoded(cohort)) }} { "How the model does" }
        }
    }
}

/// What is proposed, with its numbers.
fn action(action: &Action) -> Markup {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(action) else { return html! {} };
    let what = fields.remove("do").and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    html! {
        details {
            summary { "Proposed: " (what.replace('-', " ")) }
            dl .facts {
                @for (name, value) in &fields {
                    @let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    dt { (name.replace('_', " ")) } dd { (text.chars().take(MAX_VALUE).collect::<String>()) }
                }
            }
        }
    }
}

fn drawn(plot: &Plot) -> Markup {
    match plot {
        Plot::Histogram { title, edges, names, now, reference } => {
            let range = |n: usize| match (n.checked_sub(1).and_then(|low| edges.get(low)), edges.get(n)) {
                (Some(low), Some(high)) => format!("{} to {}", figure(*low), figure(*high)),
                (None, Some(high)) => format!("< {}", figure(*high)),
                (Some(low), None) => format!("≥ {}", figure(*low)),
                (None, None) => String::new(),
            };
            let bins = now.len().max(reference.len());
            let names = if names.is_empty() { (0..bins).map(range).collect() } else { names.clone() };
            pairs(title, &names, now, reference)
        }
        Plot::Lines { title, x, y, series } => {
            let all = || series.iter().flat_map(|(_, points)| points.iter().map(|(x, _)| *x));
            let (from, to) = all().fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
            let mut chart =
                Chart::over_time(&format!("{title} ({y})"), Unit::Plain(y.clone()), (from, to), 0.0);
            chart.x_unit = Unit::Plain(x.clone());
            chart.from_zero = false;
            chart.series = (0..)
                .zip(series)
                .map(|(tone, (name, points))| Series {
                    name: name.clone(),
                    tone,
                    look: Look::Line,
                    dots: points.iter().map(|(x, y)| Dot::new(*x, *y)).collect(),
                })
                .collect();
            chart.render()
        }
        Plot::Table { title, columns, rows } => html! {
            figure .plot {
                figcaption { strong { (title) } }
                div .wide tabindex="0" {
                    table {
                        thead { tr { @for column in columns { th scope="col" { (column) } } } }
                        tbody { @for row in rows.iter().take(Plot::POINTS) { tr { @for cell in row { td { (cell) } } } } }
                    }
                }
            }
        },
    }
}

/// Whether people found it useful, and the form to say so.
fn opinion(visitor: &Visitor, one: &Marked, now: Timestamp) -> Markup {
    let said = one.mark.as_ref();
    let is = |useful: bool| said.is_some_and(|mark| mark.useful == useful);
    html! {
        section #opinion aria-labelledby="opinion-title" {
            h2 #opinion-title { "Was it useful?" }
            @if let Some(mark) = said {
                p { (badge(if mark.useful { "good" } else { "warn" }, if mark.useful { "useful" } else { "not useful" }))
                    " said " (mark.by) " " (ago(mark.at, now)) @if !mark.note.is_empty() { ": " (mark.note) } }
            }
            @if visitor.can(Permission::RolloutsWrite) {
                form .row method="post" action={"/advice/" (one.record.id) "/mark"} {
                    (csrf(visitor))
                    label for="note" { "Note" }
                    input #note name="note" maxlength="500" autocomplete="off";
                    button name="useful" value="yes" aria-pressed=(is(true)) { "Useful" }
                    button name="useful" value="no" aria-pressed=(is(false)) { "Not useful" }
                }
            }
        }
    }
}

async fn mark(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(id): Path<String>,
    fields: Fields,
) -> Result<Response, PageError> {
    let useful = match fields.text("useful") {
        "yes" => true,
        "no" => false,
        _ => return Err(Problem::bad_request("form-invalid", "say `yes` or `no`").into()),
    };
    let note = fields.text("note").to_owned();
    let marked = web.operations.lookout.mark(&visitor.caller.actor(), &id, useful, note, web.now()).await?;
    Ok(see_other(&format!("/advice/{}#opinion", marked.record.id)))
}
