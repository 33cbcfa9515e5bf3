//! Telemetry as a stream of rows: one JSON document on each line.

use super::{
    day::Day,
    row::{Line, Table},
    source::{Series, Source},
};
use crate::{
    api::{extract::Pairs, problem::Problem},
    clock::Clock,
    fleet::{Fleet, FleetError},
    store::StoreError,
};
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use edgefleet_shared::{digest::encode_hex, ids::ModelName};
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, io, sync::Arc};
use tokio::sync::mpsc;
use utoipa_axum::{router::OpenApiRouter, routes};

pub const NDJSON: &str = "application/x-ndjson";
/// Pieces of the answer that wait for a slow client, each of the rows of one series and day.
const WAITING: usize = 4;

pub struct ExportApi {
    pub source: Source,
    pub fleet: Arc<Fleet>,
    pub clock: Clock,
}

pub fn routes(api: Arc<ExportApi>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(export_telemetry)).with_state(api)
}

/// 16 hex digits of the certificate authority's digest: no other fleet has them.
pub fn fleet_id(fleet: &Fleet) -> String {
    let digest = Sha256::digest(fleet.ca().certificate());
    encode_hex(&digest[..8])
}

/// Telemetry as rows, day by day: one JSON document on each line, first `begin`, last `end`.
#[utoipa::path(get, path = "/api/v1/export/telemetry", tag = "export", security(("bearer" = ["read"])),
    params(("from" = Option<String>, Query, description = "First day, as 2026-11-23; by default that of the first row"),
        ("until" = Option<String>, Query, description = "The day after the last; by default tomorrow"),
        ("model" = Option<String>, Query, description = "Only bundles of this model"),
        ("table" = Option<Vec<Table>>, Query, explode, description = "Repeated; by default telemetry")),
    responses((status = 200, description = "Rows", content_type = "application/x-ndjson", body = String)))]
async fn export_telemetry(State(api): State<Arc<ExportApi>>, query: Pairs) -> Result<Response, Problem> {
    query.only(&["from", "until", "model", "table"])?;
    let (from, until) = (query.one::<Day>("from")?, query.one::<Day>("until")?);
    let model = query.one::<ModelName>("model")?;
    let mut tables: BTreeSet<Table> = query.all("table")?.into_iter().collect();
    if tables.is_empty() {
        tables.insert(Table::Telemetry);
    }
    let all = api.source.series(model.as_ref()).await.map_err(FleetError::from)?;
    let until = until.unwrap_or_else(|| Day::of((api.clock)()).next());
    let from = match from {
        Some(from) => from,
        None => first_day(&api.source, &all).await.map_err(FleetError::from)?.unwrap_or(until),
    };
    let (sender, mut receiver) = mpsc::channel(WAITING);
    let begin = Line::Begin { fleet: fleet_id(&api.fleet), from, until };
    let source = api.source.clone();
    tokio::spawn(async move {
        if let Err(error) = send(&source, &all, begin, (from, until), &tables, &sender).await {
            tracing::error!(%error, "export.telemetry");
            // The client sees a stream without its end.
            let _ = sender.send(Err(io::Error::other("the export was cut off"))).await;
        }
    });
    let stream = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    Ok(([(header::CONTENT_TYPE, NDJSON), (header::CACHE_CONTROL, "no-store")], Body::from_stream(stream))
        .into_response())
}

async fn first_day(source: &Source, all: &[Series]) -> Result<Option<Day>, StoreError> {
    let mut first = None;
    for series in all {
        let own = source.first(series, edgefleet_shared::time::Timestamp::EPOCH).await?.map(Day::of);
        first = own.into_iter().chain(first).min();
    }
    Ok(first)
}

/// Sends everything, or as much as somebody takes.
async fn send(
    source: &Source,
    all: &[Series],
    begin: Line,
    (from, until): (Day, Day),
    tables: &BTreeSet<Table>,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), StoreError> {
    if sender.send(Ok(lines([begin]))).await.is_err() {
        return Ok(());
    }
    let (mut day, mut rows) = (from, 0u64);
    while day < until {
        let mut later = None;
        for series in all {
            let own = source.rows(series, day).await?;
            let own: Vec<_> = own.into_iter().filter(|row| tables.contains(&row.table())).collect();
            rows += own.len() as u64;
            if !own.is_empty()
                && sender.send(Ok(lines(own.into_iter().map(|row| Line::Row(Box::new(row)))))).await.is_err()
            {
                return Ok(());
            }
            let next = source.first(series, day.next().start()).await?.map(Day::of);
            later = next.into_iter().chain(later).min();
        }
        // Days on which nothing happened are not visited.
        match later {
            Some(later) => day = later,
            None => break,
        }
    }
    let _ = sender.send(Ok(lines([Line::End { rows }]))).await;
    Ok(())
}

fn lines(all: impl IntoIterator<Item = Line>) -> Bytes {
    let mut bytes = Vec::new();
    for line in all {
        // Plain data: cannot fail.
        if serde_json::to_writer(&mut bytes, &line).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes.into()
}
