//! A backup over HTTP: the controller encrypts while it answers, so nothing readable leaves it.

use super::{access::Caller, extract::ApiJson, problem::Problem};
use crate::{
    backup::{BackupError, BackupParts, Cost, Order, Passphrase, default_name, write},
    clock::Clock,
    fleet::FleetError,
};
use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Bytes that wait for a slow client: this many pieces of this size.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 256 << 10;
/// A client that takes nothing for this long is given up, so that it cannot block the next backup.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// What `POST /api/v1/backup` is asked for.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// 12 to 1,024 bytes. Encrypts the file and is not kept.
    passphrase: String,
    /// Include the bytes of all blobs.
    #[serde(default)]
    with_blobs: bool,
}

#[derive(Clone)]
struct BackupState {
    parts: BackupParts,
    clock: Clock,
    /// One at a time: each takes 64 MiB for its key and a copy of the store.
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// The route, to be handed to [`super::router`] with those of other parts.
pub fn routes(parts: BackupParts, clock: Clock) -> OpenApiRouter {
    let state = BackupState { parts, clock, gate: Arc::default() };
    OpenApiRouter::new().routes(routes!(create_backup)).with_state(state)
}

/// Writes a backup of the whole controller, encrypted with the passphrase.
#[utoipa::path(post, path = "/api/v1/backup", tag = "system", security(("bearer" = ["system:write"])),
    request_body = BackupRequest,
    responses((status = 200, description = "The file. Only one that ends as announced by its last chunk is whole",
        content_type = "application/octet-stream")))]
async fn create_backup(
    State(state): State<BackupState>,
    caller: Caller,
    ApiJson(asked): ApiJson<BackupRequest>,
) -> Result<Response, Problem> {
    let BackupState { parts, clock, gate } = state;
    let passphrase = Passphrase::new(asked.passphrase).map_err(BackupError::from)?;
    let held = gate.try_lock_owned().map_err(|_| BackupError::Busy)?;
    let now = clock();
    let order =
        Order { passphrase, with_blobs: asked.with_blobs, cost: Cost::DEFAULT, actor: caller.actor(), now };
    let (pieces, mut body) = mpsc::channel(PIECES);
    let out = Pieces { pieces, piece: BytesMut::new(), runtime: Handle::current() };
    let failures = out.pieces.clone();
    let making = tokio::spawn(async move {
        let made = write(&parts, order, out).await.map(|_| ());
        drop(held);
        if let Err(error) = &made {
            let text = chain(error);
            tracing::warn!(error = %text, "a backup was not finished");
            // Ends the answer in a way that no client takes for its end.
            let _ = failures.send(Err(io::Error::other(text))).await;
        }
        made
    });
    // Whatever fails before the first byte can still be said properly.
    let first = match body.recv().await {
        Some(Ok(first)) => first,
        Some(Err(_)) | None => {
            body.close();
            let made = making.await.map_err(BackupError::from)?;
            return Err(made.err().unwrap_or_else(|| BackupError::Task { reason: "no bytes".into() }).into());
        }
    };
    let rest = futures::stream::unfold(body, |mut body| async move { Some((body.recv().await?, body)) });
    let all = futures::StreamExt::chain(futures::stream::iter([Ok(first)]), rest);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", default_name(now))),
    ];
    Ok((headers, Body::from_stream(all)).into_response())
}

/// Hands pieces from the thread that encrypts to the answer.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
    runtime: Handle,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let sending = self.pieces.send(Ok(self.piece.split().freeze()));
        match self.runtime.block_on(tokio::time::timeout(STALL_LIMIT, sending)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client went away")),
            Err(_) => {
                let reason = format!("the client took nothing for {} s", STALL_LIMIT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, reason))
            }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl From<BackupError> for Problem {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Passphrase(error) => Self::bad_request("passphrase-unfit", error.to_string()),
            BackupError::Busy => {
                let mut problem = Self::new(StatusCode::CONFLICT, "backup-busy", error.to_string());
                problem.retry_after_secs = Some(30);
                problem
            }
            BackupError::Store(error) => FleetError::Store(error).into(),
            BackupError::Blob(error) => error.into(),
            other => Self::internal(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backup::verify,
        blobs::local::LocalBlobs,
        fleet::{roles::Role, secret::SecretHash, tokens::Token},
        store::{
            FleetStore,
            audit::AuditLog,
            sled_home::{SledConfig, SledStore},
        },
    };
    use axum::{Extension, Router, http::Request};
    use edgefleet_shared::time::Timestamp;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_answer_is_a_backup_that_opens_with_the_passphrase_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SledStore::open(SledConfig::new(dir.path().join("store"))).await.unwrap();
        let store: Arc<dyn FleetStore> = Arc::new(store);
        let audit = Arc::new(AuditLog::new(Arc::clone(&store)));
        let (blobs, _) = LocalBlobs::open(dir.path().join("blobs")).await.unwrap();
        crate::blobs::BlobStore::put(&blobs, Bytes::from(vec![7; 3_000_000])).await.unwrap();
        let parts = BackupParts { store, audit, blobs: Arc::new(blobs), data: dir.path().to_owned() };
        let now = Timestamp::from_secs(1_800_000_000);
        let token: Token = serde_json::from_value(serde_json::json!({
            "id": "t1", "name": "ops", "role": Role::Admin, "secret": SecretHash::of("x"), "created": now, "created_by": "test"
        }))
        .unwrap();
        let (router, _) = routes(parts, Arc::new(move || now)).split_for_parts();
        let router: Router = router.layer(Extension(Caller(token)));
        let ask = async |passphrase: &str| {
            let body = serde_json::json!({"passphrase": passphrase, "with_blobs": true}).to_string();
            let request = Request::post("/api/v1/backup").header("content-type", "application/json");
            router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
        };
        assert_eq!(ask("short").await.status(), StatusCode::BAD_REQUEST);
        let answer = ask("correct horse battery").await;
        assert_eq!(answer.status(), StatusCode::OK);
        // While it is being read, nobody else gets one.
        assert_eq!(ask("correct horse battery").await.status(), StatusCode::CONFLICT);
        let file = answer.into_body().collect().await.unwrap().to_bytes();
        let summary = verify(&*file, &Passphrase::new("correct horse battery").unwrap()).unwrap();
        assert_eq!((summary.blobs_included, summary.created), (1, now));
    }
}
