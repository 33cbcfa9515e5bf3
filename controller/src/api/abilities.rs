//! Which devices can take a bundle, over HTTP.

use super::{extract::Pairs, operations::Operations, problem::Problem};
use crate::{
    fleet::{
        FleetError,
        devices::{DeviceQuery, DeviceState},
    },
    registry::ability::{Ability, Needs},
};
use axum::{
    Json,
    extract::{Path, State},
};
use edgefleet_shared::{bundle::Manifest, ids::BundleName, selector::Selector};
use std::sync::Arc;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new().routes(routes!(count_able))
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
    let name: BundleName = format!("{model}@{counter}")
        .parse()
        .map_err(|e| Problem::bad_request("path-invalid", format!("{e}")))?;
    Ok(Json(of(&operations, &name, &query.all("selector")?).await?))
}

/// Of the enrolled devices that `selectors` choose; none chooses all.
pub(super) async fn of(
    operations: &Operations,
    bundle: &BundleName,
    selectors: &[Selector],
) -> Result<Ability, Problem> {
    let found = operations.registry.find(bundle).await.map_err(FleetError::from)?;
    let Some(record) = found else {
        let detail = format!("there is no bundle {bundle}");
        return Err(Problem::not_found("bundle-unknown", detail)
            .hint("see what there is with `edgefleet model list`"));
    };
    let manifest = operations.registry.manifest(&record).await?;
    // It was parsed when it was accepted.
    let manifest = Manifest::parse(&manifest).ok();
    let needs = Needs::of(&record, manifest.as_ref());
    let query = DeviceQuery {
        selectors: selectors.to_vec(),
        state: Some(DeviceState::Enrolled),
        after: None,
        limit: usize::MAX,
    };
    let devices = operations.fleet.list_devices(&query).items;
    Ok(Ability::of(&needs, devices.iter().map(|known| &known.status.facts)))
}
