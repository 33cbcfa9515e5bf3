//! The parts that run as long as the controller does. One that ends early, by a panic or otherwise, ends
//! the controller: half of one looks alive and is not, and whatever started it starts it again.

use std::{future::Future, time::Duration};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub(super) struct Tasks {
    running: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Tasks {
    /// Starts a part. It should end when the token it gets is cancelled.
    pub(super) fn spawn<F>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let part = part(self.stop.clone());
        self.running.spawn(async move {
            part.await;
            name
        });
    }

    /// Waits for the first part that ends. For ever, if all go on.
    pub(super) async fn first_end(&mut self) -> anyhow::Error {
        match self.running.join_next().await {
            Some(ended) => {
                tracing::error!(?ended, "a part of the controller ended by itself");
                anyhow::anyhow!("{}; the controller stops, start it again", describe(&ended))
            }
            None => std::future::pending().await,
        }
    }

    /// Tells all to stop and waits at most `limit` for them; who is left is cut off.
    pub(super) async fn finish(mut self, limit: Duration) {
        self.stop.cancel();
        let all = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(left = self.running.len(), "parts of the controller were cut off");
            self.running.shutdown().await;
        }
    }
}

fn describe(ended: &Result<&'static str, JoinError>) -> String {
    match ended {
        Ok(name) => format!("the part `{name}` ended by itself"),
        Err(error) if error.is_panic() => "a part panicked, the log says where".to_owned(),
        Err(error) => format!("a part was lost: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_or_ends_is_noticed_and_the_others_stop_when_told() {
        let mut tasks = Tasks::default();
        tasks.spawn("steady", |stop| async move { stop.cancelled().await });
        tasks.spawn("weak", |_| async { panic!("as a mistake might") });
        assert!(tasks.first_end().await.to_string().contains("panicked"));
        tasks.spawn("short", |_| async {});
        assert!(tasks.first_end().await.to_string().contains("`short`"));
        let waited = tokio::time::timeout(Duration::from_secs(30), tasks.finish(Duration::from_secs(20)));
        waited.await.expect("all parts stopped when told");
    }
}
