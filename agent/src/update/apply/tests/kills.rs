//! Killed at any moment, the device serves at once after its restart and ends where it should.

use super::*;

/// In this process, at any await: a sweep over the time an update takes.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_moment_leaves_a_serving_device_that_gets_there() {
    let mut phases = BTreeMap::<Phase, u32>::new();
    for n in 0..60u64 {
        let mut rig = Rig::new();
        let (one, two) = (rig.publish(1, 60_000), rig.publish(2, 1_300_000));
        rig.start().await;
        rig.desire(1, &[("digits", &one.assigned)]).await;
        rig.until_phase("digits", 1, Phase::Committed).await;
        rig.desire(2, &[("digits", &two.assigned)]).await;
        // An update takes about 0.7 s and 60 s of probation; dense where things happen.
        let at = if n < 50 { n * 15 } else { n * 1_200 };
        tokio::time::sleep(Duration::from_millis(at)).await;
        rig.kill().await;
        let seen = rig.outside.report.borrow().as_ref().map(|r| r.slots.values().next().unwrap().phase);
        *phases.entry(seen.unwrap()).or_default() += 1;
        *rig.outside.down.lock() = true;
        rig.start().await;
        assert!(matches!(rig.serving("digits"), Some(1 | 2)), "killed after {at} ms");
        *rig.outside.down.lock() = false;
        rig.desire(2, &[("digits", &two.assigned)]).await;
        rig.until_phase("digits", 2, Phase::Committed).await;
        assert_eq!(rig.serving("digits"), Some(2));
        let terminals = rig.terminals();
        assert_eq!(terminals.iter().filter(|t| **t == (Phase::Committed, 2)).count(), 1, "{terminals:?}");
    }
    for phase in [Phase::Fetching, Phase::Testing, Phase::Switching, Phase::Probation, Phase::Committed] {
        assert!(phases.get(&phase).is_some_and(|n| *n > 0), "no kill struck in {phase}: {phases:?}");
    }
}

/// Real kills: a second process runs the whole story and is killed (SIGKILL) at each failpoint in turn;
/// this one then restarts the device from its files.
#[cfg(feature = "failpoints")]
mod by_failpoint {
    use super::*;
    use crate::failpoint::NAMES;
    use std::{os::unix::process::ExitStatusExt, process::Command as Process};

    const HOME: &str = "EDGEFLEET_TEST_HOME";

    fn rig(home: &Path) -> Rig {
        let signers = Signers::kept_in(home);
        let outside = Arc::new(Outside::default());
        outside.objects.lock().insert(FetchObject::Trust(2), signers.trust(2));
        Rig { home: home.to_owned(), _dir: None, signers, outside, reserve: 0, clock: today, running: None }
    }

    /// One committed, two committed with four in its shadow, three goes back; trust 2 on the way.
    #[tokio::test(start_paused = true)]
    #[ignore = "run by the kill matrix in a process of its own"]
    async fn story() {
        let home = PathBuf::from(std::env::var_os(HOME).expect("started by the matrix"));
        let mut rig = rig(&home);
        let (one, two, three) = (rig.publish(1, 60_000), rig.publish(2, 1_300_000), rig.publish(3, 9_000));
        let four = rig.publish(4, 9_000);
        rig.outside.sick.lock().insert(three.assigned.bundle.clone());
        rig.start().await;
        rig.desire(1, &[("digits", &one.assigned)]).await;
        rig.until_phase("digits", 1, Phase::Committed).await;
        let mut desired = rig.signers.desired_document(2, &[("digits", two.assigned.clone())]);
        desired.trust_version = 2;
        rig.tell(Command::Desired(rig.signers.seal_desired(&desired).into())).await;
        rig.until_phase("digits", 2, Phase::Committed).await;
        rig.desire_beside(3, &two.assigned, Some(&four.assigned), None).await;
        rig.until_candidate(Phase::Shadowing).await;
        rig.desire(4, &[("digits", &three.assigned)]).await;
        rig.until_phase("digits", 3, Phase::RolledBackLocal).await;
        rig.desire(5, &[]).await;
        rig.until("gone", |r| r.slots.is_empty() || r.slots.values().all(|s| s.phase == Phase::Idle)).await;
        rig.kill().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_kill_at_every_durable_step_is_survived() {
        let mut struck = 0;
        // Names are passed often: the second and eighth time are other moments.
        for (name, nth) in NAMES.iter().flat_map(|name| [1, 2, 3, 5, 8].map(|nth| (*name, nth))) {
            let dir = tempfile::tempdir().unwrap();
            let mut rig = rig(dir.path());
            let raw = rig.signers.trust(1);
            TrustStore::create(&dir.path().join("trust"), &raw, EnvelopeDigest::of(&raw)).unwrap();
            let status = Process::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "update::apply::tests::kills::by_failpoint::story"])
                .env(HOME, dir.path())
                .env("EDGEFLEET_FAILPOINT", format!("{name}#{nth}"))
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap();
            if nth > 1 && status.success() {
                continue; // not passed that often
            }
            assert_eq!(status.signal(), Some(9), "{name}#{nth}: {status}");
            struck += 1;

            let two = {
                rig.publish(1, 60_000);
                rig.publish(3, 9_000);
                rig.publish(4, 9_000);
                rig.publish(2, 1_300_000)
            };
            *rig.outside.down.lock() = true;
            rig.start().await;
            let report = rig.outside.report.borrow().clone().unwrap();
            assert_eq!(report.nonce, None, "{name}#{nth}: the trust state survived");
            if let Some(active) = report.slots.values().next().and_then(|slot| slot.active.clone()) {
                assert_eq!(rig.serving("digits"), Some(active.bundle.counter), "{name}#{nth}");
            }
            *rig.outside.down.lock() = false;
            let again =
                Assigned { attempt: AttemptId { number: 99, ..two.assigned.attempt }, ..two.assigned };
            rig.desire(9, &[("digits", &again)]).await;
            rig.until("two serves", |r| {
                r.slots.values().any(|s| {
                    s.phase == Phase::Committed && s.active.as_ref().is_some_and(|a| a.attempt.number == 99)
                })
            })
            .await;
            assert_eq!(rig.serving("digits"), Some(2), "{name}#{nth}");
            rig.stop().await;
            let left: Vec<_> = fs::read_dir(dir.path().join("data/bundles/blobs/sha256"))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| n.contains('.'))
                .collect();
            assert_eq!(left, Vec::<String>::new(), "{name}#{nth}: parts were left behind");
        }
        println!("{struck} kills at {} failpoints", NAMES.len());
        assert!(struck > NAMES.len(), "every name, and some of them again");
    }
}
