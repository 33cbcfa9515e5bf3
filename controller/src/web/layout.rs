//! What every page has around it.

use super::{
    answer,
    assets::{SCRIPT_ADDRESS, STYLE_ADDRESS},
    guard::{CSRF_FIELD, Visitor},
};
use crate::{api::problem::Problem, fleet::roles::Permission};
use axum::{http::StatusCode, response::Response};
use maud::{DOCTYPE, Markup, html};

/// Places in the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Fleet,
    Models,
    Rollouts,
    Findings,
    Invites,
    Audit,
    Settings,
    Tokens,
}

const TABS: [(Tab, &str, &str, Permission); 9] = [
    (Tab::Overview, "/", "Overview", Permission::Read),
    (Tab::Fleet, "/fleet", "Fleet", Permission::Read),
    (Tab::Models, "/models", "Models", Permission::Read),
    (Tab::Rollouts, "/rollouts", "Rollouts", Permission::Read),
    (Tab::Findings, "/findings", "Findings", Permission::Read),
    (Tab::Invites, "/invites", "Invites", Permission::Read),
    (Tab::Settings, "/settings", "Settings", Permission::Read),
    (Tab::Audit, "/audit", "Audit", Permission::AuditRead),
    (Tab::Tokens, "/tokens", "Tokens", Permission::TokensWrite),
];

/// A page for somebody who is signed in.
pub(super) fn page(visitor: &Visitor, tab: Tab, title: &str, body: Markup) -> Response {
    let token = &visitor.caller.0;
    let navigation = html! {
        header .top {
            a .brand href="/" { "Edgefleet" }
            nav aria-label="Main" {
                ul {
                    @for (own, href, word, permission) in TABS {
                        @if visitor.can(permission) {
                            li { a href=(href) aria-current=[(own == tab).then_some("page")] { (word) } }
                        }
                    }
                    li { a href="/label" { "Label" } }
                }
            }
            div .who {
                span title={"role " (token.role)} { (token.name) " · " (token.role) }
                button #theme .quiet type="button" hidden { "Dark" }
                form method="post" action="/sign-out" {
                    (csrf(visitor))
                    button .quiet type="submit" { "Sign out" }
                }
            }
        }
        main #main tabindex="-1" {
            h1 { (title) }
            (body)
        }
        footer { p #live .faint data-events="/events" {} }
    };
    answer::page(StatusCode::OK, document(title, navigation))
}

/// The word that makes a form ours.
pub(super) fn csrf(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name=(CSRF_FIELD) value=(visitor.csrf); }
}

/// A page for nobody in particular.
pub(super) fn alone(title: &str, body: Markup) -> Markup {
    document(title, html! { main #main .alone tabindex="-1" { (body) } })
}

/// A refusal: what, and what can be done.
pub(super) fn refusal(problem: &Problem) -> Markup {
    let title = problem.status.canonical_reason().unwrap_or("Refused");
    let body = html! {
        h1 { (title) }
        p { (problem.detail) }
        @if let Some(hint) = &problem.hint { p .faint { (hint) } }
        p { a href="/" { "To the first page" } }
    };
    alone(title, body)
}

fn document(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Edgefleet" }
                link rel="stylesheet" href=(*STYLE_ADDRESS);
                // Not deferred: it sets the colours before anything is painted.
                script src=(*SCRIPT_ADDRESS) {}
            }
            body {
                a .skip href="#main" { "Skip to content" }
                (body)
            }
        }
    }
}
