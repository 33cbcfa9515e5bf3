//! Captures, labels, policies and data sets over HTTP. Handlers translate; [`Captures`] decides.

use super::{
    error::CapturesError,
    record::{CaptureRecord, DatasetRecord, PolicyRecord},
    service::{AuditedView, Captures, Wanted, Word},
    view::view,
};
use crate::{
    api::{
        access::{Caller, DevicePeer},
        extract::{ApiJson, ApiPath, Pairs, cursor},
        problem::Problem,
    },
    clock,
    desired::DesiredStates,
    driver::{DriverHandle, Order},
    fleet::{Fleet, FleetError},
    registry::Registry,
    rollouts::Roster as _,
};
use axum::{
    Json,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use edgefleet_shared::{
    capture::{Capture, CapturePolicy, MAX_CAPTURE_BYTES, Reason},
    digest::BlobDigest,
    ids::{BundleName, DeviceId, ModelName},
    selector::Selector,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Uploads taken at a time; each may hold a whole capture, packed and unpacked.
const UPLOADS: usize = 8;
/// Longest time for an upload's body.
const UPLOAD_LIMIT: Duration = Duration::from_secs(60);
/// Longest label.
const MAX_LABEL: usize = 200;

/// What the routes work with.
pub struct CapturesApi {
    pub captures: Arc<Captures>,
    pub registry: Arc<Registry>,
    pub states: DesiredStates,
    pub driver: DriverHandle,
    pub fleet: Arc<Fleet>,
    uploads: Semaphore,
}

impl CapturesApi {
    pub fn new(
        captures: Arc<Captures>,
        registry: Arc<Registry>,
        states: DesiredStates,
        driver: DriverHandle,
        fleet: Arc<Fleet>,
    ) -> Self {
        Self { captures, registry, states, driver, fleet, uploads: Semaphore::new(UPLOADS) }
    }

    fn wanted(&self, query: &Pairs) -> Result<Wanted, Problem> {
        let named: BTreeSet<DeviceId> = query.all::<DeviceId>("device")?.into_iter().collect();
        let selectors = query.all::<Selector>("select")?;
        let selected = || -> BTreeSet<DeviceId> {
            self.fleet.select(&selectors).into_iter().map(|one| one.device).collect()
        };
        let devices = match (selectors.is_empty(), named.is_empty()) {
            (true, true) => None,
            (true, false) => Some(named),
            (false, true) => Some(selected()),
            (false, false) => Some(selected().intersection(&named).cloned().collect()),
        };
        Ok(Wanted {
            model: query.one::<ModelName>("model")?,
            bundle: query.one::<BundleName>("bundle")?,
            devices,
            reasons: query.all::<Reason>("reason")?,
            classes: query.all::<String>("class")?,
            state: query.one("state")?,
            since: query.one::<Timestamp>("since")?,
            until: query.one::<Timestamp>("until")?,
            ..Wanted::default()
        })
    }

    /// Class names of a bundle; none if it is not here or has none.
    async fn classes(&self, bundle: &BundleName) -> Result<Vec<String>, Problem> {
        let Some(record) = self.registry.find(bundle).await.map_err(FleetError::from)? else {
            return Ok(vec![]);
        };
        let bytes = self.registry.manifest(&record).await?;
        let manifest = edgefleet_shared::bundle::Manifest::parse(&bytes);
        Ok(manifest.map(|manifest| manifest.labels).unwrap_or_default())
    }

    /// The class a person means, by its name or its index.
    async fn class(&self, bundle: &BundleName, label: &str) -> Result<String, Problem> {
        let no_class =
            || CapturesError::NoClass { label: label.chars().take(80).collect(), bundle: bundle.to_string() };
        if label.is_empty() || label.len() > MAX_LABEL || label.chars().any(char::is_control) {
            return Err(no_class().into());
        }
        let classes = self.classes(bundle).await?;
        if classes.is_empty() || classes.iter().any(|class| class == label) {
            return Ok(label.to_owned());
        }
        let by_index = label.parse::<usize>().ok().and_then(|index| classes.get(index));
        Ok(by_index.ok_or_else(no_class)?.clone())
    }
}

pub fn routes(api: Arc<CapturesApi>) -> OpenApiRouter {
    let uploads = OpenApiRouter::new().routes(routes!(receive)).layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .routes(routes!(list_captures))
        .routes(routes!(show_capture, delete_capture))
        .routes(routes!(capture_content))
        .routes(routes!(view_capture))
        .routes(routes!(label_capture, unlabel_capture))
        .routes(routes!(show_policy, set_policy, end_policy))
        .routes(routes!(audited_accuracy))
        .routes(routes!(list_datasets, create_dataset))
        .routes(routes!(show_dataset))
        .routes(routes!(dataset_manifest))
        .merge(uploads)
        .with_state(api)
        .merge(super::page::routes())
}

/// Takes a capture from the device that made it; idempotent by its digest. 8 MiB at most.
#[utoipa::path(put, path = "/api/v1/device/captures/{digest}", tag = "device", security(("device" = [])),
    params(("digest" = String, Path, description = "`sha256:` and 64 hex digits of the body")),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 201, description = "Stored durably"), (status = 200, description = "It was here already"),
        (status = 429, description = "Not now", body = crate::api::problem::ProblemBody)))]
async fn receive(
    State(api): State<Arc<CapturesApi>>,
    device: DevicePeer,
    ApiPath(digest): ApiPath<BlobDigest>,
    body: Body,
) -> Result<StatusCode, Problem> {
    let busy = |_| Problem {
        retry_after_secs: Some(5),
        ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "captures-busy", "many captures come in just now")
    };
    let _turn = api.uploads.try_acquire().map_err(busy)?;
    let body = tokio::time::timeout(UPLOAD_LIMIT, axum::body::to_bytes(body, MAX_CAPTURE_BYTES)).await;
    let body: Bytes = body
        .map_err(|_| {
            let detail = format!("the capture did not arrive within {} s", UPLOAD_LIMIT.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, "upload-timeout", detail)
        })?
        .map_err(|_| {
            let detail = format!("the body was cut off or has more than {MAX_CAPTURE_BYTES} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "capture-too-large", detail)
        })?;
    let new = api.captures.receive(&device.0.device, digest, body, clock::now()).await?;
    Ok(if new { StatusCode::CREATED } else { StatusCode::OK })
}

/// A page of captures.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CaptureList {
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<CaptureRecord>,
    /// For `cursor`; absent on the last page. A page may be empty and still have a next one.
    pub next: Option<String>,
}

/// Captures by model and time, oldest first; with `state=unlabelled` the labelling queue.
#[utoipa::path(get, path = "/api/v1/captures", tag = "captures", security(("bearer" = ["read"])),
    params(("model" = Option<String>, Query), ("bundle" = Option<String>, Query),
        ("device" = Option<Vec<String>>, Query, description = "May be repeated: any of them"),
        ("select" = Option<Vec<String>>, Query, description = "Only devices that any of these selects"),
        ("reason" = Option<Vec<String>>, Query, description = "What any of these strategies chose"),
        ("class" = Option<Vec<String>>, Query, description = "What was answered as any of these classes"),
        ("state" = Option<String>, Query, description = "unlabelled, labelled or skipped"),
        ("since" = Option<String>, Query), ("until" = Option<String>, Query),
        ("limit" = Option<usize>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, description = "A page", body = CaptureList)))]
async fn list_captures(
    State(api): State<Arc<CapturesApi>>,
    query: Pairs,
) -> Result<Json<CaptureList>, Problem> {
    query.only(&[
        "model", "bundle", "device", "select", "reason", "class", "state", "since", "until", "limit",
        "cursor",
    ])?;
    let (after, limit) = query.page::<String>()?;
    let found = api.captures.list(&api.wanted(&query)?, after, limit).await.map_err(FleetError::from)?;
    Ok(Json(CaptureList { items: found.0, next: found.1.map(|key| cursor(&key)) }))
}

/// One capture.
#[utoipa::path(get, path = "/api/v1/captures/{digest}", tag = "captures", security(("bearer" = ["read"])),
    params(("digest" = String, Path)), responses((status = 200, description = "Its record", body = Object)))]
async fn show_capture(
    State(api): State<Arc<CapturesApi>>,
    ApiPath(digest): ApiPath<BlobDigest>,
) -> Result<Json<CaptureRecord>, Problem> {
    Ok(Json(api.captures.get(&digest).await?))
}

/// Deletes a capture and its bytes. Not one that a data set names.
#[utoipa::path(delete, path = "/api/v1/captures/{digest}", tag = "captures",
    security(("bearer" = ["rollouts:write"])), params(("digest" = String, Path)),
    responses((status = 200, description = "As it was", body = Object)))]
async fn delete_capture(
    State(api): State<Arc<CapturesApi>>,
    caller: Caller,
    ApiPath(digest): ApiPath<BlobDigest>,
) -> Result<Json<CaptureRecord>, Problem> {
    Ok(Json(api.captures.delete(&caller.actor(), &digest, clock::now()).await?))
}

/// The capture's file, exactly as the device sent it.
#[utoipa::path(get, path = "/api/v1/captures/{digest}/content", tag = "captures", security(("bearer" = ["captures:read"])),
    params(("digest" = String, Path)),
    responses((status = 200, description = "The file", content_type = "application/octet-stream", body = Vec<u8>)))]
async fn capture_content(
    State(api): State<Arc<CapturesApi>>,
    ApiPath(digest): ApiPath<BlobDigest>,
) -> Result<impl IntoResponse, Problem> {
    let file = api.captures.file(&digest).await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "private")];
    Ok((headers, file))
}

/// The capture's tensors as numbers, texts and pictures, with the classes it can be labelled as.
#[utoipa::path(get, path = "/api/v1/captures/{digest}/view", tag = "captures", security(("bearer" = ["captures:read"])),
    params(("digest" = String, Path)), responses((status = 200, description = "For eyes", body = Object)))]
async fn view_capture(
    State(api): State<Arc<CapturesApi>>,
    ApiPath(digest): ApiPath<BlobDigest>,
) -> Result<impl IntoResponse, Problem> {
    let record = api.captures.get(&digest).await?;
    let file = api.captures.file(&digest).await?;
    let classes = api.classes(&record.document.bundle).await?;
    let shown = tokio::task::spawn_blocking(move || {
        let capture = Capture::parse(&file).map_err(|source| CapturesError::Unreadable { digest, source })?;
        Ok::<_, CapturesError>(view(&record, &capture, &classes).to_string())
    });
    let shown = shown.await.map_err(|_| CapturesError::CutOff)??;
    Ok(([(header::CONTENT_TYPE, "application/json")], shown))
}

/// What a person says of a capture: one of the two.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLabel {
    /// A class by its name or its index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Nothing can be said of it.
    #[serde(default)]
    pub skip: bool,
}

/// Labels a capture. After some seconds the label is also counted as one of the prediction: at the device while that
/// remembers it, here otherwise, once in any case.
#[utoipa::path(put, path = "/api/v1/captures/{digest}/label", tag = "captures",
    security(("bearer" = ["rollouts:write"])), params(("digest" = String, Path)), request_body = NewLabel,
    responses((status = 200, description = "As it is now", body = Object)))]
async fn label_capture(
    State(api): State<Arc<CapturesApi>>,
    caller: Caller,
    ApiPath(digest): ApiPath<BlobDigest>,
    ApiJson(new): ApiJson<NewLabel>,
) -> Result<Json<CaptureRecord>, Problem> {
    let word = match (new.label, new.skip) {
        (None, true) => Word::Skip,
        (Some(label), false) => {
            let bundle = api.captures.get(&digest).await?.document.bundle;
            Word::Class(api.class(&bundle, &label).await?)
        }
        _ => return Err(Problem::bad_request("label-invalid", "give either `label` or `skip: true`")),
    };
    Ok(Json(api.captures.label(&caller.actor(), &digest, word, clock::now()).await?))
}

/// Takes a label back. One that a device has counted stays counted there.
#[utoipa::path(delete, path = "/api/v1/captures/{digest}/label", tag = "captures",
    security(("bearer" = ["rollouts:write"])), params(("digest" = String, Path)),
    responses((status = 200, description = "As it is now", body = Object)))]
async fn unlabel_capture(
    State(api): State<Arc<CapturesApi>>,
    caller: Caller,
    ApiPath(digest): ApiPath<BlobDigest>,
) -> Result<Json<CaptureRecord>, Problem> {
    Ok(Json(api.captures.label(&caller.actor(), &digest, Word::Undo, clock::now()).await?))
}

/// What devices keep of a model's requests.
#[utoipa::path(get, path = "/api/v1/models/{model}/capture-policy", tag = "captures",
    security(("bearer" = ["read"])), params(("model" = String, Path)),
    responses((status = 200, description = "The policy", body = Object)))]
async fn show_policy(
    State(api): State<Arc<CapturesApi>>,
    ApiPath(model): ApiPath<ModelName>,
) -> Result<Json<PolicyRecord>, Problem> {
    Ok(Json(api.captures.policy(&model).await?))
}

/// Sets what devices keep of a model's requests; missing fields take their defaults.
#[utoipa::path(put, path = "/api/v1/models/{model}/capture-policy", tag = "captures",
    security(("bearer" = ["rollouts:write"])), params(("model" = String, Path)), request_body = Object,
    responses((status = 200, description = "The policy", body = Object)))]
async fn set_policy(
    State(api): State<Arc<CapturesApi>>,
    caller: Caller,
    ApiPath(model): ApiPath<ModelName>,
    ApiJson(new): ApiJson<serde_json::Value>,
) -> Result<Json<PolicyRecord>, Problem> {
    let policy = CapturePolicy::read(new).map_err(|wrong| {
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "capture-policy-invalid", wrong.join("; "))
    })?;
    let set = api.captures.set_policy(&caller.actor(), &model, Some(policy), clock::now()).await?;
    tell_devices(&api).await?;
    set.map(Json).ok_or_else(|| CapturesError::NoPolicy { model }.into())
}

/// Ends a model's policy: devices keep nothing more of it. What they have still comes.
#[utoipa::path(delete, path = "/api/v1/models/{model}/capture-policy", tag = "captures",
    security(("bearer" = ["rollouts:write"])), params(("model" = String, Path)),
    responses((status = 200, description = "There is none any more")))]
async fn end_policy(
    State(api): State<Arc<CapturesApi>>,
    caller: Caller,
    ApiPath(model): ApiPath<ModelName>,
) -> Result<StatusCode, Problem> {
    api.captures.set_policy(&caller.actor(), &model, None, clock::now()).await?;
    tell_devices(&api).await?;
    Ok(StatusCode::OK)
}

/// Desired states are composed anew; those that did not change are not sent.
async fn tell_devices(api: &CapturesApi) -> Result<(), Problem> {
    let devices = api.states.wanted_devices().await.map_err(FleetError::from)?;
    api.driver.order(Order::Devices(devices)).await;
    Ok(())
}

/// Accuracy by labelled captures, weighted by the probability each was kept with.
#[utoipa::path(get, path = "/api/v1/models/{model}/audited", tag = "captures", security(("bearer" = ["read"])),
    params(("model" = String, Path), ("bundle" = Option<String>, Query), ("device" = Option<String>, Query),
        ("since" = Option<String>, Query), ("until" = Option<String>, Query)),
    responses((status = 200, description = "Both estimates", body = AuditedView)))]
async fn audited_accuracy(
    State(api): State<Arc<CapturesApi>>,
    ApiPath(model): ApiPath<ModelName>,
    query: Pairs,
) -> Result<Json<AuditedView>, Problem> {
    query.only(&["bundle", "device", "since", "until"])?;
    let wanted = Wanted { model: Some(model), ..api.wanted(&query)? };
    Ok(Json(api.captures.audited(&wanted).await.map_err(FleetError::from)?))
}

/// A data set to make.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDataset {
    pub name: String,
    #[schema(value_type = String)]
    pub model: ModelName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub bundle: Option<BundleName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DatasetList {
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<DatasetRecord>,
}

/// Makes an immutable snapshot of labelled captures.
#[utoipa::path(post, path = "/api/v1/datasets", tag = "captures", security(("bearer" = ["rollouts:write"])),
    request_body = NewDataset, responses((status = 201, description = "Made", body = Object)))]
async fn create_dataset(
    State(api): State<Arc<CapturesApi>>,
    caller: Caller,
    ApiJson(new): ApiJson<NewDataset>,
) -> Result<impl IntoResponse, Problem> {
    let NewDataset { name, model, bundle, device, reason, since } = new;
    let wanted = Wanted { bundle, device, reason, since, ..Wanted::default() };
    let now = clock::now();
    let made = api.captures.create_dataset(&caller.actor(), &name, &model, wanted, now).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// All data sets.
#[utoipa::path(get, path = "/api/v1/datasets", tag = "captures", security(("bearer" = ["read"])),
    responses((status = 200, description = "By name", body = DatasetList)))]
async fn list_datasets(State(api): State<Arc<CapturesApi>>) -> Result<Json<DatasetList>, Problem> {
    Ok(Json(DatasetList { items: api.captures.list_datasets().await? }))
}

/// One data set.
#[utoipa::path(get, path = "/api/v1/datasets/{name}", tag = "captures", security(("bearer" = ["read"])),
    params(("name" = String, Path)), responses((status = 200, description = "What it is", body = Object)))]
async fn show_dataset(
    State(api): State<Arc<CapturesApi>>,
    Path(name): Path<String>,
) -> Result<Json<DatasetRecord>, Problem> {
    Ok(Json(api.captures.dataset(&name).await?))
}

/// The manifest's exact bytes: their SHA-256 is the data set's digest.
#[utoipa::path(get, path = "/api/v1/datasets/{name}/manifest", tag = "captures", security(("bearer" = ["read"])),
    params(("name" = String, Path)), responses((status = 200, description = "Every row", body = Object)))]
async fn dataset_manifest(
    State(api): State<Arc<CapturesApi>>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let bytes = api.captures.dataset_manifest(&name).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes))
}
