//! Rollouts made by hand: one running, one failed and paused, one too small for statistics, one completed.

use crate::{
    api::rollout_views::Explanation,
    evidence::{Assessment, Effect, Gate, GateReport, Slice, Verdict},
    rollout::{
        Approval, Arm, Attempt, AttemptState, Because, Bucket, Counts, Decision, Deferral, FailureKind,
        Member, PauseWhy, Plan, Release, Rollout, Rule, Scope, Seed, StageSize, StageState, State,
        VerdictRecord, WaitingOn, What, Who,
    },
};
use edgefleet_shared::{
    digest::BlobDigest,
    reported::{Refusal, RefusalCode, Retry},
    time::Timestamp,
};
use indicatif::{ProgressDrawTarget, TermLike};
use parking_lot::Mutex;
use std::{io, sync::Arc, time::Duration};

pub(super) const NOW: Timestamp = Timestamp::EPOCH;

pub(crate) struct Sample {
    pub name: &'static str,
    pub rollout: Rollout,
    pub attempts: Option<Vec<Attempt>>,
    pub explanation: Explanation,
}

pub(crate) fn all() -> Vec<Sample> {
    vec![running(), failed(), powerless(), completed()]
}

pub(super) fn plan() -> Plan {
    Plan::new("digits".parse().unwrap(), "digits@2".parse().unwrap())
}

fn at(hours: u64) -> Timestamp {
    Timestamp::from_secs(1_795_417_200) + Duration::from_secs(hours * 3_600)
}

fn draft() -> Rollout {
    let envelope = serde_json::from_value(serde_json::to_value(BlobDigest::of(b"release")).unwrap()).unwrap();
    let release =
        Release { bundle: "digits@2".parse().unwrap(), envelope, envelope_size: 2_000, download: 8 << 20 };
    let seed = Seed::new([1; 32]);
    let mut rollout =
        Rollout::draft("r-0mibjsxda-1f20".parse().unwrap(), 7, release, plan(), seed, "ana", at(0));
    rollout.reason = "new training set".into();
    rollout
}

fn counts(some: &[(Bucket, i64)]) -> Counts {
    let mut counts = Counts::default();
    some.iter().for_each(|(bucket, n)| counts.add(*bucket, *n));
    counts
}

/// Puts the rollout into `stage`: those before it have passed, those behind it wait.
fn enter(rollout: &mut Rollout, stage: usize, state: StageState, sizes: &[i64]) {
    rollout.stage = stage as u16;
    rollout.since = at(1);
    for (index, (progress, size)) in rollout.stages.iter_mut().zip(sizes).enumerate() {
        let bucket = match index {
            0 => Bucket::Shadowing,
            n if n < stage => Bucket::Committed,
            _ => Bucket::Planned,
        };
        progress.counts = counts(&[(bucket, *size)]);
        progress.since = at(index as u64 * 24);
        if index < stage {
            progress.state = StageState::Passed;
        }
    }
    rollout.stages[stage].state = state;
    rollout.clock = at(stage as u64 * 24 + 2);
}

fn record(rollout: &Rollout, stage: usize, decision: Decision, because: Because) -> VerdictRecord {
    VerdictRecord {
        rollout: rollout.id.clone(),
        bundle: rollout.release.bundle.clone(),
        stage: Some((stage as u16, rollout.plan.stages[stage].name.clone())),
        decision,
        because,
        at: rollout.clock,
        devices: [(Bucket::Committed, 17)].into(),
        failures: Default::default(),
        assessment: rollout.assessment.clone(),
        time_scale: 1.0,
    }
}

fn rule(rule: Rule, sentence: &str) -> Because {
    Because::Rule { rule, sentence: sentence.into() }
}

fn waits(rollout: &Rollout, what: What, who: Who, until: Option<Timestamp>, sentence: &str) -> WaitingOn {
    let stage = rollout.stage;
    let name = rollout.plan.stages[usize::from(stage)].name.clone();
    WaitingOn {
        stage: Some((stage, name)),
        what,
        since: rollout.since,
        until,
        who,
        sentence: sentence.into(),
    }
}

fn gate(gate: Gate, verdict: Verdict, harm: (f64, f64), safe: (f64, f64), sentence: &str) -> GateReport {
    GateReport {
        gate,
        verdict,
        alarm: None,
        e_harm: harm.0,
        e_harm_without_one: harm.0 * 0.8,
        harm_threshold: harm.1,
        e_safe: safe.0,
        e_safe_without_one: safe.0 * 0.8,
        safe_threshold: safe.1,
        effect: None,
        observations: 312.0,
        devices: 16,
        sentence: sentence.into(),
        worst: Vec::new(),
        examples: Vec::new(),
    }
}

fn finish(
    name: &'static str,
    mut rollout: Rollout,
    waiting: Vec<WaitingOn>,
    verdicts: Vec<VerdictRecord>,
) -> Sample {
    rollout.waiting = waiting.clone();
    let sizes = rollout.stages.iter().zip(&rollout.plan.stages).map(|(progress, stage)| StageSize {
        devices: if stage.mode == crate::rollout::Mode::Active { progress.counts.members() } else { 0 },
        ..StageSize::default()
    });
    rollout.membership.stages = sizes.collect();
    let mut explanation = Explanation::of(&rollout, verdicts, rollout.clock);
    // As the document says, whatever the machine makes of a document that was made by hand.
    explanation.waiting = waiting;
    Sample { name, rollout, attempts: None, explanation }
}

fn running() -> Sample {
    let mut rollout = draft();
    rollout.state = State::Running;
    enter(&mut rollout, 1, StageState::Delivering, &[20, 50, 190, 1_000, 2_760]);
    rollout.stages[1].counts = counts(&[
        (Bucket::Planned, 8),
        (Bucket::InFlight, 3),
        (Bucket::Deferred, 1),
        (Bucket::Away, 1),
        (Bucket::Committed, 36),
        (Bucket::Failed, 1),
    ]);
    rollout.stages[1].failures.add(FailureKind::Download, 1);
    rollout.stages[1].codes = [("corrupt".to_owned(), 1)].into();
    let mut errors = gate(
        Gate::Errors,
        Verdict::Inconclusive,
        (1.8, 267.0),
        (12.4, 20.0),
        "2 of 36 canaries and 5 of 150 controls have had a bad window",
    );
    errors.effect = Some(Effect {
        what: "rate of first bad windows, canary over control".into(),
        estimate: 1.1,
        low: 0.4,
        high: 3.1,
    });
    errors.worst = vec![Slice { name: "pi4/lyon/digits@1".into(), bad: 2.0, of: 9.0 }];
    errors.examples = vec!["dev-00017".parse().unwrap(), "dev-00029".parse().unwrap()];
    let mut latency = gate(
        Gate::Latency,
        Verdict::Pass,
        (0.2, 400.0),
        (31.0, 20.0),
        "4 of 30 canaries got slower than their controls",
    );
    latency.alarm = Some("7.1 % of results are above the frozen p95, 5 % are expected".into());
    let hard = gate(Gate::Hard, Verdict::Pass, (1.0, 0.0), (1.0, 0.0), "nobody went back, nobody was lost");
    rollout.assessment = Some(Assessment::of(vec![hard, errors, latency]));
    let waiting = vec![
        waits(
            &rollout,
            What::Coverage { finished: 37, wanted: 45, by_bucket: [(Bucket::InFlight, 3)].into() },
            Who::Devices,
            None,
            "37 of 50 devices have finished, 45 are needed before the soak begins; 3 are under way, 1 defers, 1 is silent",
        ),
        waits(
            &rollout,
            What::Rate { per_min: 50.0, left: 8 },
            Who::Nobody,
            Some(at(27)),
            "8 devices have not had their turn; 50 a minute get it",
        ),
    ];
    let passed = record(
        &rollout,
        0,
        Decision::StagePassed,
        rule(Rule::Safe, "agreement is safe: 11 of 2,310 shadowed results differ"),
    );
    finish("running", rollout, waiting, vec![passed])
}

fn failed() -> Sample {
    let mut rollout = draft();
    enter(&mut rollout, 1, StageState::Failed, &[3, 12, 8, 0, 7]);
    rollout.stages[1].counts = counts(&[(Bucket::Committed, 10), (Bucket::Failed, 2)]);
    rollout.stages[1].failures.add(FailureKind::RolledBack, 2);
    rollout.stages[1].soak_from = Some(at(25));
    rollout.stages[1].codes = [("latency".to_owned(), 2)].into();
    let mut errors = gate(
        Gate::Errors,
        Verdict::Fail,
        (1_204.0, 267.0),
        (0.0, 20.0),
        "9 of 12 canaries and 2 of 36 controls have had a bad window",
    );
    errors.effect = Some(Effect {
        what: "rate of first bad windows, canary over control".into(),
        estimate: 14.2,
        low: 3.9,
        high: 1e6,
    });
    errors.examples = vec!["dev-00003".parse().unwrap()];
    let latency =
        gate(Gate::Latency, Verdict::Inconclusive, (36.0, 400.0), (0.1, 20.0), "7 of 8 canaries got slower");
    rollout.assessment = Some(Assessment::of(vec![errors, latency]));
    let sentence = "errors: 9 of 12 canaries and 2 of 36 controls have had a bad window (E 1204 of 267)";
    let verdicts = vec![
        record(
            &rollout,
            0,
            Decision::StageSkipped,
            Because::Person { by: "bo".into(), reason: "no shadow here".into() },
        ),
        record(&rollout, 1, Decision::StageFailed, rule(Rule::Harm, sentence)),
    ];
    rollout.state = State::Paused { why: PauseWhy::Gate { rule: Rule::Harm, sentence: sentence.into() } };
    let waiting = vec![waits(
        &rollout,
        What::Decision { why: "harm".into() },
        Who::Operator,
        Some(at(99)),
        "stage `canary` failed: resume (in spite of it), abort or revert it; it reverts by itself if nobody does",
    )];
    let attempts = vec![
        attempt(&rollout, 3, Arm::Canary, AttemptState::Failed),
        attempt(&rollout, 4, Arm::Canary, AttemptState::Committed { late: false }),
        attempt(&rollout, 5, Arm::Control, AttemptState::Held),
        attempt(&rollout, 6, Arm::Canary, AttemptState::Deferred { why: Deferral::Window }),
    ];
    Sample { attempts: Some(attempts), ..finish("failed", rollout, waiting, verdicts) }
}

fn attempt(rollout: &Rollout, n: u64, arm: Arm, state: AttemptState) -> Attempt {
    let member = Member {
        device: format!("dev-{n:05}").parse().unwrap(),
        stage: 1,
        shadow: None,
        arm,
        stratum: 0,
        site: "lyon".into(),
        group: None,
        rank: n,
        match_of: None,
        cohort: 1,
    };
    let mut attempt = Attempt::new(&rollout.id, &member, "pi4/lyon", at(24));
    if state == AttemptState::Failed {
        attempt.refusal = Some(Refusal {
            code: RefusalCode::Latency,
            retry: Retry::Never,
            message: "p95 is 41.0 ms, 20.0 ms are allowed".into(),
            subject: None,
            attempt: None,
            generation: None,
            at: at(26),
        });
        attempt.took_ms = 61_500;
    }
    if arm == Arm::Canary {
        attempt.fetched_bytes = 8 << 20;
    }
    attempt.state = state;
    attempt
}

fn powerless() -> Sample {
    let mut rollout = draft();
    rollout.state = State::Running;
    enter(&mut rollout, 1, StageState::Soaking, &[3, 6, 2, 4, 8]);
    rollout.stages[1].counts = counts(&[(Bucket::Committed, 6)]);
    rollout.stages[1].soak_from = Some(at(25));
    let powerless = |which| {
        let verdict = Verdict::Powerless;
        gate(
            which,
            verdict,
            (1.0, 267.0),
            (1.0, 20.0),
            "6 canaries, needs 10; 12 controls, needs 20: it can never decide",
        )
    };
    let hard = gate(Gate::Hard, Verdict::Pass, (1.0, 0.0), (1.0, 0.0), "nobody went back, nobody was lost");
    rollout.assessment = Some(Assessment::of(vec![hard, powerless(Gate::Errors), powerless(Gate::Latency)]));
    let scope = Scope::Pass { stage: 1 };
    rollout.approvals.open = Some(crate::rollout::approval::Request { scope, since: at(49), until: at(121) });
    rollout.approvals.given.push(Approval {
        scope: Scope::Start,
        by: "bo".into(),
        at: at(0),
        reason: "looks right".into(),
    });
    let waiting = vec![waits(
        &rollout,
        What::Approval { scope },
        Who::OtherPerson,
        Some(at(121)),
        "6 canaries prove nothing about errors, latency: somebody other than ana has to vouch for stage `canary`",
    )];
    finish("powerless", rollout, waiting, Vec::new())
}

fn completed() -> Sample {
    let mut rollout = draft();
    enter(&mut rollout, 4, StageState::Passed, &[20, 50, 190, 1_000, 2_760]);
    rollout.stages[4].counts = counts(&[(Bucket::Committed, 2_751), (Bucket::Gone, 8), (Bucket::Failed, 1)]);
    rollout.state = State::Completed { tail_until: at(960) };
    let waiting = vec![waits(
        &rollout,
        What::Tail { stragglers: 8 },
        Who::Devices,
        Some(at(960)),
        "8 devices are silent and get it when they come back",
    )];
    let done = record(&rollout, 4, Decision::Completed, rule(Rule::Soaked, "every stage has passed"));
    finish("completed", rollout, waiting, vec![done])
}

/// A terminal of 100 columns and 40 lines that keeps what stands on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Page(Arc<Mutex<Sheet>>);

const COLUMNS: usize = 100;

#[derive(Debug, Default)]
struct Sheet {
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Sheet {
    fn put(&mut self, c: char) {
        match c {
            '\r' => self.column = 0,
            '\n' => (self.row, self.column) = (self.row + 1, 0),
            c => {
                // Only what comes next wraps: a full line leaves the cursor at its end.
                if self.column == COLUMNS {
                    (self.row, self.column) = (self.row + 1, 0);
                }
                let (row, column) = (self.row, self.column);
                if self.rows.len() <= row {
                    self.rows.resize(row + 1, vec![' '; COLUMNS]);
                }
                self.rows[row][column] = c;
                self.column += 1;
            }
        }
    }
}

impl Page {
    pub(super) fn target(&self) -> ProgressDrawTarget {
        ProgressDrawTarget::term_like(Box::new(self.clone()))
    }
    /// Without the spaces at the ends of lines.
    pub(super) fn last_picture(&self) -> String {
        let sheet = self.0.lock();
        let lines = sheet.rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }
}

impl TermLike for Page {
    fn width(&self) -> u16 {
        COLUMNS as u16
    }
    fn height(&self) -> u16 {
        40
    }
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        let mut sheet = self.0.lock();
        sheet.row = sheet.row.saturating_sub(n);
        Ok(())
    }
    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.lock().row += n;
        Ok(())
    }
    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        let mut sheet = self.0.lock();
        sheet.column = (sheet.column + n).min(COLUMNS);
        Ok(())
    }
    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        let mut sheet = self.0.lock();
        sheet.column = sheet.column.saturating_sub(n);
        Ok(())
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(&format!("{text}\n"))
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut sheet = self.0.lock();
        console::strip_ansi_codes(text).chars().for_each(|c| sheet.put(c));
        Ok(())
    }
    fn clear_line(&self) -> io::Result<()> {
        let mut sheet = self.0.lock();
        sheet.column = 0;
        let row = sheet.row;
        if let Some(row) = sheet.rows.get_mut(row) {
            row.fill(' ');
        }
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
