//! The live view on a terminal: a bar per stage, a bar per gate, then words.

use super::{
    frame::{Frame, GateFrame, StageFrame},
    tame,
};
use crate::{
    cli::rollout::words,
    evidence::Verdict,
    rollout::{Bucket, Counts, StageState},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Sentences of waiting that are shown.
const SENTENCES: usize = 4;
/// Steps of a gate's bar.
const STEPS: u64 = 1_000;

/// Draws on standard error: standard output belongs to data.
pub(in crate::cli::rollout) struct Screen {
    all: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Screen {
    pub(in crate::cli::rollout) fn new() -> Self {
        Self::on(ProgressDrawTarget::stderr())
    }

    pub(in crate::cli::rollout) fn on(target: ProgressDrawTarget) -> Self {
        Self { all: MultiProgress::with_draw_target(target), lines: Vec::new() }
    }

    pub(in crate::cli::rollout) fn draw(&mut self, frame: &Frame) {
        let rows = rows(frame);
        while self.lines.len() < rows.len() {
            self.lines.push(self.all.add(ProgressBar::no_length()));
        }
        while self.lines.len() > rows.len() {
            if let Some(line) = self.lines.pop() {
                self.all.remove(&line);
            }
        }
        for (line, row) in self.lines.iter().zip(rows) {
            row.put(line);
        }
        // Bars draw at most so often; this draws what they hold now, whatever they left out.
        self.all.suspend(|| ());
    }

    /// The last line says what is wrong until the next frame.
    pub(super) fn trouble(&mut self, message: &str) {
        if let Some(line) = self.lines.last() {
            Row::Words(format!("{message}; asking again")).put(line);
        }
    }

    /// Leaves the last picture where it is, the prompt below it.
    pub(super) fn close(&mut self) {
        for line in &self.lines {
            line.abandon();
        }
    }
}

/// One line of the picture.
enum Row {
    Words(String),
    Bar { name: String, style: &'static str, at: u64, of: u64, words: String },
}

impl Row {
    fn put(self, line: &ProgressBar) {
        match self {
            Self::Words(words) => {
                style(line, "{wide_msg}");
                line.set_message(tame(&words));
            }
            Self::Bar { name, style: template, at, of, words } => {
                style(line, template);
                line.set_length(of.max(1));
                line.set_position(at.min(of));
                line.set_prefix(tame(&name));
                line.set_message(tame(&words));
            }
        }
        line.tick();
    }
}

fn style(line: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        line.set_style(style.progress_chars("█▉▊▋▌▍▎▏░"));
    }
}

const GOOD: &str = "  {prefix:<10!} {bar:24.green} {wide_msg}";
const BAD: &str = "  {prefix:<10!} {bar:24.red} {wide_msg}";
const OPEN: &str = "  {prefix:<10!} {bar:24.cyan} {wide_msg}";
const DIM: &str = "  {prefix:<10!} {bar:24.dim} {wide_msg}";

fn rows(frame: &Frame) -> Vec<Row> {
    let mut rows = said("", &format!("{} of {} is {}", frame.rollout, frame.bundle, frame.saying));
    rows.push(Row::Words(String::new()));
    rows.extend(frame.stages.iter().map(stage));
    if !frame.gates.is_empty() {
        rows.push(Row::Words(String::new()));
        rows.extend(frame.gates.iter().map(gate));
    }
    rows.push(Row::Words(String::new()));
    for text in frame.waiting.iter().take(SENTENCES) {
        rows.extend(said("  waits      ", text));
    }
    if frame.waiting.len() > SENTENCES {
        rows.push(Row::Words(format!("             and for {} more", frame.waiting.len() - SENTENCES)));
    }
    if let Some(text) = &frame.verdict {
        rows.extend(said("  decided    ", text));
    }
    rows
}

/// `text` behind `word`, in as many rows as it takes.
fn said(word: &str, text: &str) -> Vec<Row> {
    let folded = format!("{word}{}", words::fold(text, word.len(), words::WIDTH));
    folded.lines().map(|line| Row::Words(line.to_owned())).collect()
}

fn stage(stage: &StageFrame) -> Row {
    let template = match stage.state {
        StageState::Passed => GOOD,
        StageState::Failed | StageState::Inconclusive => BAD,
        StageState::Delivering | StageState::Soaking => OPEN,
        StageState::Waiting | StageState::Skipped => DIM,
    };
    let words = format!(
        "{:>6} of {:<6} {:<11} {}",
        stage.done,
        stage.devices,
        words::name(stage.state),
        rest(&stage.counts)
    );
    Row::Bar { name: stage.name.clone(), style: template, at: stage.done, of: stage.devices, words }
}

/// Everybody who is neither done nor has yet to begin.
fn rest(counts: &Counts) -> String {
    let told = [Bucket::Planned, Bucket::Committed, Bucket::Shadowing];
    let some: Vec<_> = Bucket::ALL
        .iter()
        .filter(|bucket| !told.contains(bucket) && counts.get(**bucket) > 0)
        .map(|bucket| format!("{} {}", counts.get(*bucket), bucket.as_str()))
        .collect();
    some.join(", ")
}

fn gate(gate: &GateFrame) -> Row {
    let (harm, e, threshold) = gate.leading();
    let share = match gate.verdict {
        Verdict::Pass | Verdict::Fail => 1.0,
        Verdict::Powerless => 0.0,
        Verdict::Inconclusive | Verdict::NotAsked => words::progress(e, threshold),
    };
    let template = match gate.verdict {
        Verdict::Pass => GOOD,
        Verdict::Fail => BAD,
        Verdict::Powerless | Verdict::NotAsked => DIM,
        Verdict::Inconclusive => {
            if harm {
                BAD
            } else {
                OPEN
            }
        }
    };
    let at = (share * STEPS as f64) as u64;
    Row::Bar { name: gate.gate.name().to_owned(), style: template, at, of: STEPS, words: gate.figures() }
}
