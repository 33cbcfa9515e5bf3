//! `edgefleet-agent replay FILE --slot SLOT`.

use super::{ConfigArgs, Failure, Output, peer::Peer};
use crate::bindings::{
    lines::{Line, Lines},
    pace::{Speed, Timeline},
    recording,
};
use clap::Args;
use edgefleet_shared::{ids::SlotName, telemetry::Sketch};
use parking_lot::Mutex;
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    fs::File,
    io::BufReader,
    sync::Semaphore,
    time::{Instant, sleep_until},
};

/// Bytes of the longest line.
const MAX_LINE: usize = 64 << 20;
/// Different reasons of failure that are shown.
const SHOWN: usize = 5;
/// An input sent this much after its time is late.
const LATE: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(super) struct ReplayArgs {
    /// Recorded inputs, one JSON object a line
    file: PathBuf,
    /// The slot to ask
    #[arg(long)]
    slot: SlotName,
    /// How much faster than recorded; 0 is without pauses
    #[arg(long, value_name = "TIMES", default_value = "1")]
    speed: Speed,
    /// `http://host:port`, or `local` for the agent of the data folder
    #[arg(long, value_name = "ADDR", default_value = "local")]
    to: String,
    /// Requests under way at one time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    parallel: u32,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Default)]
struct Tally {
    sent: u64,
    failed: u64,
    late: u64,
    latency: Sketch,
    reasons: Vec<String>,
}

impl Tally {
    fn fail(&mut self, reason: String) {
        self.failed += 1;
        if self.reasons.len() < SHOWN && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

pub(super) async fn replay(args: ReplayArgs) -> Result<ExitCode, Failure> {
    let unread =
        |e: std::io::Error| Failure::new(&format!("could not read {}", args.file.display()), e.into());
    let file = File::open(&args.file).await.map_err(unread)?;
    let peer = Peer::new(&args.to, &args.slot, &args.config)?;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let places = Arc::new(Semaphore::new(args.parallel as usize));
    let mut lines = Lines::new(BufReader::new(file), MAX_LINE);
    let mut timeline = Timeline::new(args.speed);
    let started = Instant::now();
    while let Some((number, line)) = lines.next().await.map_err(unread)? {
        let entry = match line {
            Line::TooLong => Err(format!("has more than {MAX_LINE} bytes")),
            Line::Text(text) => recording::parse(&text)
                .and_then(|entry| timeline.due(entry.at).map(|due| (started + due, entry.body))),
        };
        let (due, body) = match entry {
            Ok(entry) => entry,
            Err(why) => {
                tally.lock().fail(format!("line {number} {why}"));
                continue;
            }
        };
        sleep_until(due).await;
        let Ok(place) = places.clone().acquire_owned().await else { break }; // nobody closes it
        let (peer, tally) = (peer.clone(), tally.clone());
        let is_late = !args.speed.is_unpaced() && due.elapsed() > LATE;
        tokio::spawn(async move {
            let asked = Instant::now();
            let answer = peer.ask(body).await;
            let took = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut tally = tally.lock();
            tally.sent += 1;
            tally.late += u64::from(is_late);
            match answer {
                Ok(_) => tally.latency.record_us(took),
                Err(reason) => tally.fail(reason),
            }
            drop(place);
        });
    }
    places.acquire_many(args.parallel).await.ok(); // all have come back
    let tally = tally.lock();
    Ok(report(&tally, started.elapsed(), args.output))
}

fn report(tally: &Tally, took: Duration, output: Output) -> ExitCode {
    let ms = |q: f64| tally.latency.quantile_us(q).map(|us| us / 1_000.0);
    let Tally { sent, failed, late, .. } = tally;
    for reason in &tally.reasons {
        eprintln!("failed: {reason}");
    }
    match output {
        Output::Json => {
            let report = json!({
                "sent": sent, "failed": failed, "late": late, "seconds": took.as_secs_f64(),
                "p50_ms": ms(0.5), "p99_ms": ms(0.99),
            });
            println!("{report}");
        }
        Output::Table => {
            let shown = |q: f64| ms(q).map_or("-".to_owned(), |ms| format!("{ms:.2}"));
            println!(
                "{sent} sent in {:.1} s, {failed} failed, {late} late; p50 {} ms, p99 {} ms",
                took.as_secs_f64(),
                shown(0.5),
                shown(0.99)
            );
        }
    }
    if *failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
