//! 64 connections ask without a pause while the bundle under them is swapped.

/// Measures under load: nothing else may run beside it.
mod alone {
    use anyhow::{Context, Result, ensure};
    use edgefleet_tests::faults::{Answer, KeepAlive, Oracle, Stage, source::Source, until};
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        time::{Duration, Instant},
    };

    const CONNECTIONS: usize = 64;
    /// Answers of either bundle to see before and after the switch: each connection several times.
    const ENOUGH: u64 = 6 * CONNECTIONS as u64;
    const SECOND: Duration = Duration::from_secs(1);

    /// One answered request.
    struct Reply {
        asked: Instant,
        came: Instant,
        answer: Answer,
    }

    #[derive(Default)]
    struct Progress {
        stop: AtomicBool,
        before: AtomicU64,
        after: AtomicU64,
    }

    /// Asks over one connection until told to stop. Any failure ends the test.
    async fn ask(n: usize, host: String, oracle: Oracle, progress: Arc<Progress>) -> Result<Vec<Reply>> {
        let mut connection = KeepAlive::connect(&host).await?;
        let mut replies = Vec::new();
        let mut question = n;
        while !progress.stop.load(Ordering::Relaxed) {
            question += 1;
            let asked = Instant::now();
            let answer = oracle
                .ask(&mut connection, question)
                .await
                .with_context(|| format!("connection {n}, request {}", replies.len() + 1))?;
            let count = if answer.bundle == "digits@1" { &progress.before } else { &progress.after };
            count.fetch_add(1, Ordering::Relaxed);
            replies.push(Reply { asked, came: Instant::now(), answer });
        }
        Ok(replies)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sixty_four_connections_see_every_answer_right_while_bundles_are_swapped() -> Result<()> {
        let stage = Stage::open().await?;
        stage.publish(Source::slow("slow")?, 1).await?;
        stage.publish(Source::slow("slow-b")?, 2).await?;
        let oracle = Oracle::default()
            .with("digits@1", "fixtures/golden/slow")?
            .with("digits@2", "fixtures/golden/slow-b")?;
        let mut device = stage.enrol("busy").await?;
        device.queue = 2 * CONNECTIONS; // all of them may wait at once
        device.start().await?;
        stage.committed(&stage.assign(1, 0).await?, &device).await?;

        let progress = Arc::new(Progress::default());
        let tasks: Vec<_> = (0..CONNECTIONS)
            .map(|n| tokio::spawn(ask(n, device.http.clone(), oracle.clone(), progress.clone())))
            .collect();
        let failed = || tasks.iter().any(tokio::task::JoinHandle::is_finished);
        let seen = async |what: &str, count: &AtomicU64| {
            until(what, async || {
                let found = count.load(Ordering::Relaxed);
                ensure!(!failed(), "a connection gave up");
                Ok(if found >= ENOUGH { Ok(()) } else { Err(format!("{found} of {ENOUGH}")) })
            })
            .await
        };
        let told = async {
            seen("answers of digits@1", &progress.before).await?;
            // The test of the new bundle and its loading compete with the load: it takes a while.
            let rollout = stage.assign(2, 0).await?;
            until("the swap", async || {
                ensure!(!failed(), "a connection gave up");
                let attempts = stage.get(&format!("/api/v1/rollouts/{rollout}/attempts")).await?;
                let attempt = &attempts["items"][0];
                ensure!(attempt["state"] != "failed", "{attempt}");
                Ok(if attempt["state"] == "committed" { Ok(()) } else { Err(attempt.to_string()) })
            })
            .await?;
            seen("answers of digits@2", &progress.after).await
        }
        .await;
        progress.stop.store(true, Ordering::Relaxed);
        let mut replies = Vec::new();
        for task in tasks {
            replies.extend(task.await??);
        }
        told?;
        report(&mut replies)
    }

    fn report(replies: &mut [Reply]) -> Result<()> {
        replies.sort_by_key(|reply| reply.came);
        let switch = replies.iter().find(|r| r.answer.bundle == "digits@2").context("no swap was seen")?.came;
        let last_old =
            replies.iter().rev().find(|r| r.answer.bundle == "digits@1").context("no digits@1")?.came;
        let mut by_bundle = BTreeMap::<_, u64>::new();
        replies.iter().for_each(|r| *by_bundle.entry(r.answer.bundle.clone()).or_default() += 1);
        let in_flight = replies.iter().filter(|r| r.asked < switch && r.came >= switch).count();
        let longest = |from: Instant, to: Instant| {
            let within = replies.iter().filter(|r| r.came >= from && r.came < to);
            within.map(|r| r.came - r.asked).max().unwrap_or_default().as_secs_f64() * 1e3
        };
        let half = SECOND / 2;
        println!(
            "{} answers over {CONNECTIONS} kept connections, none wrong, none failed: {by_bundle:?}",
            replies.len()
        );
        println!(
            "{in_flight} requests were in flight at the switch; the last answer of digits@1 came {:.0} ms after the first of digits@2",
            last_old.saturating_duration_since(switch).as_secs_f64() * 1e3
        );
        println!(
            "longest answer: {:.0} ms in the second around the switch, {:.0} ms in the second before it",
            longest(switch - half, switch + half),
            longest(switch - half - SECOND, switch - half)
        );
        ensure!(in_flight >= CONNECTIONS / 2, "only {in_flight} requests were in flight at the switch");
        Ok(())
    }
}
