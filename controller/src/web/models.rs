//! Models, and one of them: its bundles, and how each does over time and by cohort.

mod bundles;
mod doing;

use super::{
    Table, Web,
    answer::PageError,
    guard::Visitor,
    layout::{self, Tab},
    words::{ago, count, encoded},
};
use crate::{
    api::{extract::Pairs, problem::Problem},
    fleet::{
        FleetError,
        devices::{DeviceQuery, DeviceState},
        roles::Permission,
    },
    ingest::Cohort,
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use edgefleet_shared::ids::{BundleName, ModelName};
use maud::{Markup, html};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub(super) fn routes(table: Table) -> Table {
    table.get("/models", Permission::Read, list).get("/models/{name}", Permission::Read, show)
}

/// Enrolled devices by the bundle that answers on them, as they say.
fn serving(web: &Web) -> BTreeMap<BundleName, usize> {
    let query =
        DeviceQuery { state: Some(DeviceState::Enrolled), limit: usize::MAX, ..DeviceQuery::default() };
    let mut found = BTreeMap::new();
    for known in web.operations.fleet.list_devices(&query).items {
        for slot in known.status.reported.iter().flat_map(|report| report.slots.values()) {
            if let Some(active) = &slot.active {
                *found.entry(active.bundle.clone()).or_default() += 1;
            }
        }
    }
    found
}

async fn list(State(web): State<Arc<Web>>, visitor: Visitor) -> Result<Response, PageError> {
    let models = web.operations.registry.models().await.map_err(FleetError::from)?;
    let serving = serving(&web);
    let now = web.now();
    let body = html! {
        section #models data-live="bundle" {
            @if models.is_empty() {
                p .empty { "No bundle was pushed yet: " code { "edgefleet model push DIR" } }
            } @else {
                div .wide tabindex="0" {
                    table {
                        thead { tr {
                            th scope="col" { "Model" }
                            th scope="col" { "Newest" }
                            th scope="col" .number { "Bundles" }
                            th scope="col" .number { "Devices" }
                            th scope="col" { "Pushed" }
                        } }
                        tbody {
                            @for model in &models {
                                tr {
                                    th scope="row" { a href={"/models/" (model.name)} { (model.name) } }
                                    td { (model.name) "@" (model.newest) }
                                    td .number { (count(model.bundles.len())) }
                                    td .number { (count(serving.iter().filter(|(bundle, _)| bundle.model == model.name).map(|(_, n)| n).sum::<usize>())) }
                                    td { @if let Some(last) = model.bundles.last() { (ago(last.at, now)) " by " (last.pushed_by) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(layout::page(&visitor, Tab::Models, "Models", body))
}

/// How far back, in the words of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    Hour,
    Day,
    Week,
    Month,
}

impl Back {
    const ALL: [Self; 4] = [Self::Hour, Self::Day, Self::Week, Self::Month];

    fn word(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
    fn span(self) -> Duration {
        Duration::from_secs(match self {
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 30 * 86_400,
        })
    }
    /// Some fifty points.
    fn step(self) -> Duration {
        Duration::from_secs(match self {
            Self::Hour => 300,
            Self::Day => 1_800,
            Self::Week => 4 * 3_600,
            Self::Month => 12 * 3_600,
        })
    }
}

async fn show(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    Path(name): Path<String>,
    query: Pairs,
) -> Result<Response, PageError> {
    query.only(&["cohort", "back"])?;
    let invalid = |error: String| Problem::bad_request("path-invalid", error);
    let name: ModelName = name.parse().map_err(|error| invalid(format!("{error}")))?;
    let found = web.operations.registry.model(&name).await.map_err(FleetError::from)?;
    let model = found.ok_or_else(|| {
        Problem::not_found("model-unknown", format!("there is no model {name}"))
            .hint("see what there is on the page of models")
    })?;
    let cohort = query.one::<Cohort>("cohort")?.unwrap_or_else(Cohort::all);
    let word = query.one::<String>("back")?;
    let back = Back::ALL.into_iter().find(|back| Some(back.word()) == word.as_deref()).unwrap_or(Back::Day);
    let doing = doing::Doing::read(&web, &model, &cohort, back).await?;
    let body = html! {
        (choice(&name, &cohort, back, &doing))
        section #doing data-live="aggregate drift-cohort" aria-labelledby="doing-title" {
            h2 #doing-title { "How it does" }
            (doing.now())
            (doing.plots())
        }
        section #channels data-live="drift-cohort" aria-labelledby="channels-title" {
            h2 #channels-title { "Drift by channel" }
            (doing.channels())
        }
        section #bundles data-live="bundle" aria-labelledby="bundles-title" {
            h2 #bundles-title { "Bundles" span .count { (count(model.bundles.len())) } }
            (bundles::table(&web, &model).await?)
        }
        p { a .button href={"/findings?bundle=" (encoded(&format!("{name}@{}", model.newest)))} { "Findings about the newest" } " "
            a .button href=(super::findings::label_link(name.as_str(), None, None)) { "Label captures" } }
    };
    Ok(layout::page(&visitor, Tab::Models, name.as_str(), body))
}

/// Which cohort, how far back.
fn choice(model: &ModelName, cohort: &Cohort, back: Back, doing: &doing::Doing) -> Markup {
    html! {
        form .row method="get" action={"/models/" (model)} {
            label for="cohort" { "Cohort" }
            select #cohort name="cohort" {
                option value="all" selected[cohort.is_all()] { "all devices" }
                @for one in doing.cohorts().filter(|one| !one.is_all()) {
                    option value=(one) selected[one == cohort] { (one) }
                }
            }
            label for="back" { "Last" }
            select #back name="back" {
                @for one in Back::ALL { option value=(one.word()) selected[one == back] { (one.word()) } }
            }
            button type="submit" { "Show" }
        }
    }
}
