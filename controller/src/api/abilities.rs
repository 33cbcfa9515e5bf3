//! Which devices can take a bundle, and how those that have it run it, over HTTP.

use super::{extract::Pairs, operations::Operations, problem::Problem};
use crate::{
    fleet::{
        FleetError,
        devices::{DeviceQuery, DeviceState},
    },
    registry::{
        ability::{Ability, Needs},
        engine_use::EngineUse,
        record::BundleRecord,
    },
};
use axum::{
    Json,
    extract::{Path, State},
};
use edgefleet_shared::{bundle::Manifest, ids::BundleName, selector::Selector};
use std::sync::Arc;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new().routes(routes!(count_able)).routes(routes!(engine_use))
}

/// How many enrolled devices can run a bundle, as far as they say what they are. Each proves it before it
/// activates.
#[utoipa::path(get, path = "/api/v1/models/{name}/bundles/{counter}/devices", tag = "models",
    security(("bearer" = ["read"])),
    params(("name" = String, Path), ("counter" = u64, Path),
        ("selector" = Option<Vec<String>>, Query, explode, description = "Repeated: a union; absent: all")),
    responses((status = 200, description = "Devices by what they lack", body = Ability)))]
async fn count_able(
    State(operations): State<Arc<Operations>>,
    Path((model, counter)): Path<(String, String)>,
    query: Pairs,
) -> Result<Json<Ability>, Problem> {
    query.only(&["selector"])?;
    Ok(Json(of(&operations, &name(&model, &counter)?, &query.all("selector")?).await?))
}

/// How the devices that serve a bundle run it, by hardware class: engine, variant and threads with their
/// medians, and what they refused. What devices say of themselves.
#[utoipa::path(get, path = "/api/v1/models/{name}/bundles/{counter}/engines", tag = "models",
    security(("bearer" = ["read"])),
    params(("name" = String, Path), ("counter" = u64, Path)),
    responses((status = 200, description = "Devices by hardware class and engine", body = EngineUse)))]
async fn engine_use(
    State(operations): State<Arc<Operations>>,
    Path((model, counter)): Path<(String, String)>,
    query: Pairs,
) -> Result<Json<EngineUse>, Problem> {
    query.only(&[])?;
    let record = record(&operations, &name(&model, &counter)?).await?;
    let devices = operations.fleet.list_devices(&enrolled(vec![])).items;
    let reports =
        devices.iter().filter_map(|known| Some((&known.status.facts, known.status.reported.as_deref()?)));
    Ok(Json(EngineUse::of(record.digest, reports)))
}

fn name(model: &str, counter: &str) -> Result<BundleName, Problem> {
    format!("{model}@{counter}").parse().map_err(|e| Problem::bad_request("path-invalid", format!("{e}")))
}

fn enrolled(selectors: Vec<Selector>) -> DeviceQuery {
    DeviceQuery { selectors, state: Some(DeviceState::Enrolled), after: None, limit: usize::MAX }
}

async fn record(operations: &Operations, bundle: &BundleName) -> Result<BundleRecord, Problem> {
    let found = operations.registry.find(bundle).await.map_err(FleetError::from)?;
    found.ok_or_else(|| {
        let detail = format!("there is no bundle {bundle}");
        Problem::not_found("bundle-unknown", detail).hint("see what there is with `edgefleet model list`")
    })
}

/// Of the enrolled devices that `selectors` choose; none chooses all.
pub(super) async fn of(
    operations: &Operations,
    bundle: &BundleName,
    selectors: &[Selector],
) -> Result<Ability, Problem> {
    let record = record(operations, bundle).await?;
    let manifest = operations.registry.manifest(&record).await?;
    // It was parsed when it was accepted.
    let manifest = Manifest::parse(&manifest).ok();
    let needs = Needs::of(&record, manifest.as_ref());
    let devices = operations.fleet.list_devices(&enrolled(selectors.to_vec())).items;
    Ok(Ability::of(&needs, devices.iter().map(|known| &known.status.facts)))
}
