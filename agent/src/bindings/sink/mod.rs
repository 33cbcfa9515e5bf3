//! Where answers go. An answer is one line of JSON.

mod files;
mod mqtt;

use super::{
    config::Sink,
    counts::{Counts, Side},
    mqtt::{Names, Session},
};
use bytes::Bytes;
use files::{AnswerFolder, RotatedFile};
use mqtt::{Announcer, Publisher};
use parking_lot::Mutex;
use std::{io::Write, sync::Arc};

/// Why an answer did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DeliverError {
    /// It may, next time.
    #[error("{0}")]
    Later(String),
    /// It never will.
    #[error("{0}")]
    Never(String),
}

/// An open sink.
pub(super) struct Outlet(Kind);

enum Kind {
    Mqtt(Publisher),
    File(Arc<Mutex<RotatedFile>>),
    Folder(Arc<Mutex<AnswerFolder>>, Arc<Counts>),
    Stdout,
    None,
}

/// What keeps an outlet connected, if it needs that: to be polled beside it.
pub(super) struct Connection {
    session: Session,
    announcer: Announcer,
}

impl Connection {
    pub(super) async fn hold(mut self) {
        self.session.hold(&mut self.announcer).await;
    }
}

impl Outlet {
    pub(super) fn open(sink: &Sink, names: &Names<'_>, counts: &Arc<Counts>) -> (Self, Option<Connection>) {
        match sink {
            Sink::Mqtt { broker, topic, qos, retain } => {
                let (publisher, announcer) =
                    mqtt::pair(names.fill(topic), (*qos).into(), *retain, counts.clone());
                let session = Session {
                    broker: broker.clone(),
                    client_id: format!("edgefleet-{}-{}-out", names.device, names.binding),
                    side: Side::Sink,
                    counts: counts.clone(),
                    payload_in: 0, // it subscribes to nothing
                    payload_out: mqtt::MAX_PAYLOAD,
                };
                (Self(Kind::Mqtt(publisher)), Some(Connection { session, announcer }))
            }
            Sink::File { path, rotate_bytes, keep } => {
                let file = RotatedFile::new(path.clone(), *rotate_bytes, *keep);
                (Self(Kind::File(Arc::new(Mutex::new(file)))), None)
            }
            Sink::Directory { path, keep, keep_bytes } => {
                let folder = AnswerFolder::new(path.clone(), *keep, *keep_bytes);
                (Self(Kind::Folder(Arc::new(Mutex::new(folder)), counts.clone())), None)
            }
            Sink::Stdout => (Self(Kind::Stdout), None),
            Sink::None => (Self(Kind::None), None),
        }
    }

    /// Hands an answer over: to the broker's acknowledgement with QoS 1, to the kernel with a file, to the disk with a
    /// folder. `id` names its input.
    ///
    /// # Errors
    /// [`DeliverError`]
    pub(super) async fn deliver(&mut self, id: Option<&str>, answer: Bytes) -> Result<(), DeliverError> {
        match &self.0 {
            Kind::Mqtt(publisher) => publisher.deliver(answer).await,
            Kind::File(file) => {
                let file = file.clone();
                blocking(move || file.lock().append(&answer)).await
            }
            Kind::Folder(folder, counts) => {
                let (folder, counts, id) = (folder.clone(), counts.clone(), id.map(str::to_owned));
                blocking(move || {
                    let removed = folder.lock().add(id.as_deref(), &answer)?;
                    counts.removed(removed);
                    Ok(())
                })
                .await
            }
            Kind::Stdout => {
                blocking(move || {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&[&answer[..], b"\n"].concat())
                        .and_then(|()| out.flush())
                        .map_err(|e| DeliverError::Later(format!("stdout: {e}")))
                })
                .await
            }
            Kind::None => Ok(()),
        }
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), DeliverError> + Send + 'static,
) -> Result<(), DeliverError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(DeliverError::Later(format!("writing was cut off: {error}"))),
    }
}
