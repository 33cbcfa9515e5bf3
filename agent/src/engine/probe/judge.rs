//! From what a child said and how it ended to a verdict. Pure.

use super::{
    Comparison,
    files::failure,
    messages::{Event, Outcome},
};
use crate::engine::{is_out_of_memory, tract::excerpt};
use edgefleet_shared::{
    bundle::Limits,
    probe::{Confinement, EngineFacts, GoldenResult, Measured, PROBE_PROTOCOL, ProbeFailure},
    reported::RefusalCode,
};
use std::{collections::BTreeMap, time::Duration};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
    /// Killed by the supervisor.
    TimedOut,
}

/// All a supervisor knows of a child that is gone.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) exit: Exit,
    pub(super) stdout: Vec<u8>,
    /// The first part of it.
    pub(super) stderr: String,
    pub(super) time_limit: Duration,
}

/// The part of a verdict that comes from the child.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Judgement {
    pub(super) failure: Option<ProbeFailure>,
    pub(super) engine: Option<EngineFacts>,
    pub(super) golden: Vec<GoldenResult>,
    pub(super) operators: BTreeMap<String, u32>,
    pub(super) measured: Option<Measured>,
    /// `None` if the child never said.
    pub(super) confinement: Option<Confinement>,
}

/// `samples` golden samples were asked for.
pub(super) fn judge(ended: &Ended, limits: &Limits, samples: usize) -> Judgement {
    let (mut judgement, done) = heard(ended);
    if let Some(done) = done {
        judgement.failure = done.failure.clone().or_else(|| beyond(&done, limits, samples));
        judgement.golden = done.golden;
        judgement.operators = done.operators;
        judgement.measured = done.measured;
    }
    judgement
}

/// A library was to be opened.
pub(super) fn judge_library(ended: &Ended) -> Judgement {
    let (mut judgement, done) = heard(ended);
    if let Some(done) = done {
        judgement.failure = done.failure;
    }
    judgement
}

/// What the child came to, or in the judgement why it came to nothing.
fn heard(ended: &Ended) -> (Judgement, Option<Outcome>) {
    let mut judgement = Judgement::default();
    let mut doing = "starting".to_owned();
    let mut done: Option<Outcome> = None;
    let mut nonsense = false;
    let mut foreign = None;
    for line in ended.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Event::Ready { protocol, engine, confinement }) => {
                foreign = (protocol != PROBE_PROTOCOL).then_some(protocol);
                judgement.engine = Some(engine);
                judgement.confinement = Some(confinement);
            }
            Ok(Event::Doing(what)) => doing = excerpt(&what),
            Ok(Event::Done(outcome)) => done = Some(outcome),
            Ok(Event::Attempted(_) | Event::Compared(_) | Event::Seen(_) | Event::Loaded(_)) => {}
            Err(_) => nonsense = true,
        }
    }
    judgement.failure = if let Some(protocol) = foreign {
        let text = format!("the probe program speaks protocol {protocol}, not {PROBE_PROTOCOL}");
        Some(failure(RefusalCode::ProbeUnavailable, text))
    } else {
        death(ended, &doing, judgement.engine.is_some())
    };
    if judgement.failure.is_some() {
        return (judgement, None);
    }
    let done = done.filter(|_| !nonsense);
    if done.is_none() {
        let text = format!("the probe ended while {doing}, without a verdict that can be read");
        judgement.failure = Some(failure(RefusalCode::ProbeCrashed, text));
    }
    (judgement, done)
}

/// What a child that compared engines said, or what it died of.
pub(super) fn judge_comparison(ended: &Ended, contestants: usize) -> Result<Comparison, ProbeFailure> {
    let (mut doing, mut ready, mut compared) = ("starting".to_owned(), false, None);
    for line in ended.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Event::Ready { .. }) => ready = true,
            Ok(Event::Doing(what)) => doing = excerpt(&what),
            Ok(Event::Compared(comparison)) => compared = Some(comparison),
            Ok(Event::Done(outcome)) => {
                if let Some(failure) = outcome.failure {
                    return Err(failure);
                }
            }
            Ok(Event::Attempted(_) | Event::Seen(_) | Event::Loaded(_)) | Err(_) => {}
        }
    }
    if let Some(failure) = death(ended, &doing, ready) {
        return Err(failure);
    }
    compared.filter(|compared: &Comparison| compared.times.len() == contestants).ok_or_else(|| {
        let text = format!("the probe ended while {doing}, without a comparison that can be read");
        failure(RefusalCode::ProbeCrashed, text)
    })
}

/// Why a child that did not end by itself, or failed to start, is at fault.
pub(super) fn death(ended: &Ended, doing: &str, was_ready: bool) -> Option<ProbeFailure> {
    let words = match excerpt(&ended.stderr) {
        words if words.is_empty() => String::new(),
        words => format!(": {words}"),
    };
    let no = |code, text| Some(failure(code, text));
    match ended.exit {
        Exit::TimedOut => no(
            RefusalCode::ProbeTimedOut,
            format!("the probe was still {doing} after {} s and was killed", ended.time_limit.as_secs_f64()),
        ),
        Exit::Signal(libc::SIGXCPU) => {
            no(RefusalCode::ProbeTimedOut, format!("the probe used up its processor time while {doing}"))
        }
        // Any signal: where the walls stop abort()'s own, a C library ends itself by another.
        Exit::Signal(_) if is_out_of_memory(&ended.stderr) => no(
            RefusalCode::OverMemory,
            format!("the model needs more memory than the bundle allows, while {doing}{words}"),
        ),
        Exit::Signal(libc::SIGKILL) => no(
            RefusalCode::OverMemory,
            format!("the system killed the probe while {doing}, most likely for its memory"),
        ),
        Exit::Signal(signal) => {
            let culprit = if was_ready { "model" } else { "engine" };
            let name = signal_name(signal);
            no(
                RefusalCode::ProbeCrashed,
                format!("the {culprit} crashed the probe with {name} while {doing}{words}"),
            )
        }
        Exit::Code(code) if !was_ready => no(
            RefusalCode::ProbeUnavailable,
            format!("the probe program could not start, exit code {code}{words}"),
        ),
        Exit::Code(0) => None,
        Exit::Code(code) => no(
            RefusalCode::ProbeCrashed,
            format!("the probe ended with exit code {code} while {doing}{words}"),
        ),
    }
}

/// What a child that is content with itself may still have exceeded.
fn beyond(done: &Outcome, limits: &Limits, samples: usize) -> Option<ProbeFailure> {
    let passed = done.golden.iter().filter(|result| result.passed).count();
    let Some(measured) = &done.measured else {
        return Some(failure(RefusalCode::ProbeCrashed, "the probe's verdict has no measurements".into()));
    };
    if passed != samples {
        let text = format!("the probe's verdict has {passed} passed golden samples of {samples}");
        return Some(failure(RefusalCode::ProbeCrashed, text));
    }
    if measured.p95_ms > limits.p95_latency_ms {
        let text = format!(
            "one inference takes {:.2} ms (95th percentile), the bundle allows {} ms",
            measured.p95_ms, limits.p95_latency_ms
        );
        return Some(failure(RefusalCode::OverLatency, text));
    }
    if measured.peak_memory_bytes > limits.peak_memory_bytes {
        let text = format!(
            "the model needed {} bytes of memory, the bundle allows {}",
            measured.peak_memory_bytes, limits.peak_memory_bytes
        );
        return Some(failure(RefusalCode::OverMemory, text));
    }
    None
}

fn signal_name(signal: i32) -> String {
    match signal {
        libc::SIGSEGV => "SIGSEGV".into(),
        libc::SIGBUS => "SIGBUS".into(),
        libc::SIGILL => "SIGILL".into(),
        libc::SIGFPE => "SIGFPE".into(),
        libc::SIGABRT => "SIGABRT".into(),
        libc::SIGSYS => "SIGSYS".into(),
        other => format!("signal {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::probe::confine;

    fn line(event: &Event) -> String {
        serde_json::to_string(event).unwrap() + "\n"
    }
    fn ready(protocol: u32) -> String {
        let engine = EngineFacts { name: "tract".into(), version: "0".into() };
        line(&Event::Ready { protocol, engine, confinement: confine::none("test") })
    }
    fn done(passed: bool, p95_ms: f64, peak_memory_bytes: u64) -> String {
        let golden = GoldenResult { name: "a".into(), passed, max_abs_diff: 0.0, mismatch: None };
        let measured = Measured { load_ms: 1.0, p50_ms: 1.0, p95_ms, peak_memory_bytes, nodes: vec![] };
        line(&Event::Done(Outcome { golden: vec![golden], measured: Some(measured), ..Outcome::default() }))
    }
    fn code(exit: Exit, stdout: &str, stderr: &str) -> Option<RefusalCode> {
        let ended = Ended {
            exit,
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.into(),
            time_limit: Duration::from_secs(1),
        };
        let limits = Limits { peak_memory_bytes: 100, p95_latency_ms: 10.0, batch_max: 1 };
        judge(&ended, &limits, 1).failure.map(|f| f.code)
    }

    #[test]
    fn every_way_to_end_has_its_code() {
        use RefusalCode as R;
        let ready = ready(PROBE_PROTOCOL);
        let good = ready.clone() + &done(true, 10.0, 100);
        for (exit, stdout, stderr, wanted) in [
            (Exit::Code(0), good.as_str(), "", None),
            (Exit::Code(0), &(ready.clone() + &done(true, 10.1, 100)), "", Some(R::OverLatency)),
            (Exit::Code(0), &(ready.clone() + &done(true, 1.0, 101)), "", Some(R::OverMemory)),
            // A child that claims success without its samples is not believed.
            (Exit::Code(0), &(ready.clone() + &done(false, 1.0, 1)), "", Some(R::ProbeCrashed)),
            (Exit::Code(0), &ready, "", Some(R::ProbeCrashed)),
            (Exit::Code(0), &(good.clone() + "{\"x\":1}\n"), "", Some(R::ProbeCrashed)),
            (Exit::Code(0), "", "", Some(R::ProbeUnavailable)),
            (Exit::Code(127), "", "no such file", Some(R::ProbeUnavailable)),
            (Exit::Code(1), &good, "", Some(R::ProbeCrashed)),
            (Exit::TimedOut, &ready, "", Some(R::ProbeTimedOut)),
            (Exit::Signal(libc::SIGXCPU), &ready, "", Some(R::ProbeTimedOut)),
            (Exit::Signal(libc::SIGSEGV), &good, "", Some(R::ProbeCrashed)),
            (Exit::Signal(libc::SIGABRT), &ready, "stack overflow", Some(R::ProbeCrashed)),
            (Exit::Signal(libc::SIGABRT), &ready, "memory allocation of 9 bytes failed", Some(R::OverMemory)),
            (Exit::Signal(libc::SIGSEGV), &ready, "memory allocation of 9 bytes failed", Some(R::OverMemory)),
            (Exit::Signal(libc::SIGKILL), &ready, "", Some(R::OverMemory)),
        ] {
            assert_eq!(code(exit, stdout, stderr), wanted, "{exit:?} {stdout} {stderr}");
        }
    }

    #[test]
    fn another_protocol_is_unavailable_and_never_passes() {
        let stdout = ready(PROBE_PROTOCOL + 1) + &done(true, 1.0, 1);
        assert_eq!(code(Exit::Code(0), &stdout, ""), Some(RefusalCode::ProbeUnavailable));
    }

    #[test]
    fn a_death_says_what_it_was_doing() {
        let stdout = ready(PROBE_PROTOCOL) + &line(&Event::Doing("running golden sample `seven`".into()));
        let ended = Ended {
            exit: Exit::Signal(libc::SIGSEGV),
            stdout: stdout.into_bytes(),
            stderr: String::new(),
            time_limit: Duration::from_secs(1),
        };
        let limits = Limits { peak_memory_bytes: 1, p95_latency_ms: 1.0, batch_max: 1 };
        let message = judge(&ended, &limits, 1).failure.unwrap().message;
        assert_eq!(message, "the model crashed the probe with SIGSEGV while running golden sample `seven`");
    }
}
