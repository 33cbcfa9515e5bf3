//! Notices when a part of the agent ends by itself, by returning or by a panic. Half an agent looks
//! alive and is not: the process then ends with a failure, and whoever started it starts it whole.

use tokio::{sync::mpsc, task::JoinHandle};

/// Starts parts that must live as long as the agent.
pub(super) struct Parts(mpsc::UnboundedSender<&'static str>);

/// Tells which part ended; each at most once.
pub(super) struct Losses(mpsc::UnboundedReceiver<&'static str>);

/// Dropped with the part's future, however that comes to its end.
struct Farewell(&'static str, mpsc::UnboundedSender<&'static str>);
impl Drop for Farewell {
    fn drop(&mut self) {
        self.1.send(self.0).ok(); // at the end of the agent nobody listens
    }
}

pub(super) fn parts() -> (Parts, Losses) {
    let (parts, losses) = mpsc::unbounded_channel();
    (Parts(parts), Losses(losses))
}

impl Parts {
    pub(super) fn spawn(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let farewell = Farewell(name, self.0.clone());
        tokio::spawn(async move {
            let _farewell = farewell;
            work.await;
        })
    }
}

impl Losses {
    /// The name of a part that ended. Waits for ever while all live.
    pub(super) async fn next(&mut self) -> &'static str {
        match self.0.recv().await {
            Some(name) => name,
            None => std::future::pending().await, // no part was ever started
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_returns_panics_or_is_cut_off_is_told_and_a_living_one_is_not() {
        let (parts, mut losses) = parts();
        let _living = parts.spawn("living", std::future::pending());
        parts.spawn("returning", async {});
        assert_eq!(losses.next().await, "returning");
        parts.spawn("panicking", async { panic!("told to") });
        assert_eq!(losses.next().await, "panicking");
        parts.spawn("aborted", std::future::pending()).abort();
        assert_eq!(losses.next().await, "aborted");
        assert!(losses.0.try_recv().is_err());
    }
}
