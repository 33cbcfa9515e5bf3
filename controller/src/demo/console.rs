//! What a person sees: chapter lines, and a live table on a terminal.

use super::stage::{Stage, text};
use crate::cli::table;
use serde_json::Value;
use std::io::{IsTerminal, Write};

/// Writes to standard error, so that `--json` owns standard output.
pub struct Console {
    live: bool,
    quiet: bool,
    /// Lines of the table on screen.
    drawn: usize,
}

impl Console {
    pub fn new(quiet: bool) -> Self {
        Self { live: !quiet && std::io::stderr().is_terminal(), quiet, drawn: 0 }
    }

    pub(super) fn chapter(&mut self, number: usize, title: &str) {
        self.say(&format!("\n{number}. {title}"));
    }

    /// One line, above the table.
    pub(super) fn say(&mut self, line: &str) {
        if self.quiet {
            return;
        }
        self.erase();
        eprintln!("{line}");
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            eprint!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    /// Redraws the table with what the controller knows of each device and what its load saw.
    pub(super) async fn refresh(&mut self, stage: &Stage) {
        if !self.live {
            return;
        }
        let Ok(devices) = stage.get("/api/v1/devices?limit=1000").await else { return };
        let table = render(stage, &devices);
        self.erase();
        self.drawn = table.lines().count();
        let mut err = std::io::stderr().lock();
        let _ = writeln!(err, "{table}");
    }

    /// The table once, for logs and at the end.
    pub(super) async fn table(&mut self, stage: &Stage) {
        if self.quiet {
            return;
        }
        if let Ok(devices) = stage.get("/api/v1/devices?limit=1000").await {
            self.say(&render(stage, &devices));
            self.drawn = 0;
        }
    }
}

/// The slot report of `digits` on `id` within a device listing.
pub(super) fn slot<'v>(devices: &'v Value, id: &str) -> &'v Value {
    let found = devices["items"].as_array().and_then(|all| all.iter().find(|d| d["id"] == id));
    found.map_or(&Value::Null, |device| &device["slots"]["digits"])
}

fn render(stage: &Stage, devices: &Value) -> String {
    let mut rows = Vec::new();
    for agent in &stage.agents {
        let slot = slot(devices, &agent.id);
        let load = agent.load.as_ref().map(|load| load.seen.lock().clone()).unwrap_or_default();
        let own = load.by_bundle.get(&load.bundle).cloned().unwrap_or_default();
        let ms = |q| own.latency.quantile_us(q).map_or(String::from("-"), |us| format!("{:.1}", us / 1e3));
        let accuracy = match own.requests {
            0 => "-".to_owned(),
            n => format!("{:.1} %", 100.0 * own.correct as f64 / n as f64),
        };
        let phase = text(&slot["phase"]);
        rows.push(vec![
            agent.name.clone(),
            slot["active"].as_str().unwrap_or("-").to_owned(),
            if phase.is_empty() { "-".to_owned() } else { phase },
            bar(&slot["progress"]),
            load.requests.to_string(),
            load.failed.to_string(),
            ms(0.5),
            ms(0.95),
            accuracy,
        ]);
    }
    let header =
        ["DEVICE", "BUNDLE", "PHASE", "PROGRESS", "REQUESTS", "FAILED", "P50 MS", "P95 MS", "ACCURACY"];
    let table = table::of(&header, rows.into_iter());
    table.lines().map(|line| format!("   {line}")).collect::<Vec<_>>().join("\n")
}

/// A download as ten cells.
fn bar(progress: &Value) -> String {
    let (Some(done), Some(total)) = (progress["done_bytes"].as_u64(), progress["total_bytes"].as_u64())
    else {
        return String::new();
    };
    let cells = (10 * done.min(total)).checked_div(total).unwrap_or(10) as usize;
    format!("{}{} {:>3} %", "█".repeat(cells), "░".repeat(10 - cells), 10 * cells)
}
