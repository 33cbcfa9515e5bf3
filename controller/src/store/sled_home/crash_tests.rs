//! Kill -9 at random moments: what was acknowledged is there, and every transaction is whole.
//!
//! The test starts its own program again as a writer, which prints what it was told, and kills it. A kill keeps
//! the page cache, so this says nothing about power cuts; the fsync before each answer is for those.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::tests::config;
use super::*;
use crate::store::{Expect, audit};

const WRITER_DIR: &str = "EDGEFLEET_TEST_CRASH_WRITER_DIR";
const ROUNDS: u32 = 50;
const TASKS: u64 = 4;
/// Documents in one transaction: all carry the number of the newest.
const PARTS: u64 = 5;
const PART: Kind = Kind::new("part");

/// The writer: does nothing unless it was started by the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_process() {
    let Ok(dir) = std::env::var(WRITER_DIR) else { return };
    let (store, outcome) = SledStore::open(config(Path::new(&dir))).await.unwrap();
    say(&format!("OPEN {outcome:?}"));
    let store = Arc::new(store);
    let log = Arc::new(audit::AuditLog::new(Arc::clone(&store) as Arc<dyn FleetStore>));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (store, log) = (Arc::clone(&store), Arc::clone(&log));
            tokio::spawn(async move {
                let name = format!("events/{task}");
                let mut number = store.log_head(&name).await.unwrap();
                loop {
                    number += 1;
                    let mut change = Transaction::new().append(&name, number.to_string());
                    for part in 0..PARTS {
                        change = change.put(PART, format!("{task}/{part}"), Expect::Any, body(number));
                    }
                    if task == 0 {
                        let draft = audit::AuditDraft { subject: number.to_string(), ..Default::default() };
                        log.commit(change, &[draft]).await.unwrap();
                    } else {
                        store.commit(change).await.unwrap();
                    }
                    say(&format!("ACK {task} {number}"));
                }
            })
        })
        .collect();
    let (ended, ..) = futures::future::select_all(tasks).await;
    panic!("a writer ended by itself: {:?}", ended.err());
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The number and some bytes that depend on it, of changing length.
fn body(number: u64) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.resize(8 + usize::try_from(number % 700).unwrap(), number as u8);
    body
}

struct Round {
    acknowledged: BTreeMap<u64, u64>,
    answers: u64,
    killed_while_opening: bool,
}

fn run_and_kill(dir: &Path, random: &mut StdRng) -> Round {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["store::sled_home::crash_tests::writer_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(WRITER_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let early = random.random_bool(0.2);
    let mut text = String::new();
    let wait = if early {
        Duration::from_micros(random.random_range(1_000..60_000))
    } else {
        while !text.contains("OPEN Clean") {
            text.clear();
            if lines.read_line(&mut text).unwrap() == 0 {
                let mut error = String::new();
                child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("the writer ended by itself: {error}");
            }
        }
        Duration::from_micros(random.random_range(1_000..300_000))
    };
    // The moment of the kill is the point of the test, not a wait for something.
    std::thread::sleep(wait);
    child.kill().unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    child.wait().unwrap();

    let (mut acknowledged, mut answers) = (BTreeMap::new(), 0);
    let whole = &rest[..rest.rfind('\n').map_or(0, |end| end + 1)];
    for line in whole.lines() {
        // libtest prints its own words before the first line.
        let Some(at) = line.find("ACK ") else { continue };
        let mut numbers = line[at + 4..].split(' ').map(|number| number.parse::<u64>().unwrap());
        let (task, number) = (numbers.next().unwrap(), numbers.next().unwrap());
        acknowledged.insert(task, number);
        answers += 1;
    }
    Round { killed_while_opening: early && !rest.contains("OPEN"), acknowledged, answers }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_in_fifty_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(0xedf1);
    let (mut answers, mut early, mut slowest) = (0, 0, Duration::ZERO);
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..ROUNDS {
        let done = run_and_kill(dir.path(), &mut random);
        answers += done.answers;
        early += u32::from(done.killed_while_opening);
        newest.extend(&done.acknowledged);
        let begun = Instant::now();
        let (store, outcome) = SledStore::open(config(dir.path())).await.unwrap();
        slowest = slowest.max(begun.elapsed());
        assert_eq!(outcome, OpenOutcome::Clean, "round {round}");
        for task in 0..TASKS {
            let head = store.log_head(&format!("events/{task}")).await.unwrap();
            let promised = newest.get(&task).copied().unwrap_or(0);
            assert!(
                head >= promised,
                "round {round}, task {task}: {head} is there, {promised} was acknowledged"
            );
            assert!(head <= promised + 1, "round {round}, task {task}: {head} is there after {promised}");
            newest.insert(task, head);
            for part in 0..PARTS {
                let found = store.get(PART, &format!("{task}/{part}")).await.unwrap();
                let expected = (head > 0).then(|| body(head));
                assert_eq!(found.map(|found| found.body), expected, "round {round}, part {task}/{part}");
            }
        }
        let store: Arc<dyn FleetStore> = Arc::new(store);
        let chain = audit::AuditLog::new(Arc::clone(&store)).verify().await.unwrap();
        assert_eq!(chain.seq, newest[&0], "round {round}");
        store.close().await.unwrap();
    }
    eprintln!(
        "{ROUNDS} kills ({early} while opening), {answers} acknowledged transactions, none lost, slowest opening {slowest:?}"
    );
    assert!(answers > 1_000, "only {answers} transactions were acknowledged: the kills came too early");
}
