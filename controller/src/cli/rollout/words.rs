//! Numbers, bars and sentences, as every view of a rollout writes them.

use crate::{
    evidence::{Assessment, GateReport, Verdict},
    rollout::{
        Because, Bucket, Counts, Decision, PauseWhy, Rule, Span, State, VerdictRecord, WaitingOn, Who,
        approval::Scope,
    },
};
use edgefleet_shared::time::Timestamp;
use std::fmt;

/// Width of a terminal nobody made larger.
pub(super) const WIDTH: usize = 80;

/// A value by the name it has in documents: `stage-passed`.
pub(super) fn name(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// `state` in a few words, with the reason that makes it understandable.
pub(super) fn state(state: &State) -> String {
    match state {
        State::Paused { why } => format!("paused: {}", pause(why)),
        State::Scheduled { at } => format!("scheduled for {}", time(*at)),
        State::Assigning { written, .. } => format!("assigning ({written} devices written)"),
        State::Reverted { unreachable: 0 } => "reverted".to_owned(),
        State::Reverted { unreachable } => format!("reverted, but {unreachable} devices were not reached"),
        State::Completed { tail_until } => {
            format!("completed; stragglers are watched until {}", time(*tail_until))
        }
        State::Superseded { by } => format!("superseded by {by}"),
        State::Draft
        | State::PendingApproval
        | State::Ready
        | State::Running
        | State::Reverting
        | State::Aborted
        | State::Expired => state.name().to_string(),
    }
}

pub(super) fn pause(why: &PauseWhy) -> String {
    match why {
        PauseWhy::Operator { by, reason } if reason.is_empty() => format!("by {by}"),
        PauseWhy::Operator { by, reason } => format!("by {by}: {reason}"),
        PauseWhy::Gate { rule, sentence } => format!("{} ({})", sentence, name(rule)),
        PauseWhy::Inconclusive => "no verdict in the longest soak".to_owned(),
        PauseWhy::FreezeCalendar { name } => format!("freeze `{name}`"),
        PauseWhy::LineStopped => "the line is stopped".to_owned(),
        PauseWhy::ApprovalExpired => "nobody approved in time".to_owned(),
    }
}

/// Who can change it.
pub(super) fn who(who: Who) -> &'static str {
    match who {
        Who::Author => "the author",
        Who::OtherPerson => "somebody else",
        Who::Operator => "an operator",
        Who::Devices => "devices",
        Who::Nobody => "time",
        Who::Controller => "the controller",
    }
}

pub(super) fn waiting(waiting: &WaitingOn) -> String {
    match waiting.until {
        Some(until) => format!("{} (until {})", waiting.sentence, time(until)),
        None => waiting.sentence.clone(),
    }
}

pub(super) fn scope(scope: Scope, stages: &[String]) -> String {
    let named = |stage: u16| stages.get(usize::from(stage)).map_or_else(|| stage.to_string(), Clone::clone);
    match scope {
        Scope::Start => "the start".to_owned(),
        Scope::Begin { stage } => format!("stage `{}` to begin", named(stage)),
        Scope::Pass { stage } => format!("stage `{}` to pass without statistics", named(stage)),
    }
}

pub(super) fn decision(decision: Decision) -> String {
    name(decision).replace('-', " ")
}

/// By which rule or person, and why.
pub(super) fn because(because: &Because) -> String {
    match because {
        Because::Rule { rule: Rule::Safe | Rule::Soaked, sentence } => sentence.clone(),
        Because::Rule { rule, sentence } => format!("{} (rule {})", sentence, name(rule)),
        Because::Person { by, reason } if reason.is_empty() => format!("{by} said so"),
        Because::Person { by, reason } => format!("{by}: {reason}"),
    }
}

/// A decision as one sentence.
pub(super) fn verdict(record: &VerdictRecord) -> String {
    let stage = record.stage.as_ref().map(|(_, stage)| format!(" `{stage}`")).unwrap_or_default();
    format!("{}{stage}: {}", decision(record.decision), because(&record.because))
}

/// Devices by bucket in the order of their way, those that are none left out.
pub(super) fn counts(counts: &Counts) -> String {
    let some: Vec<_> = Bucket::ALL
        .iter()
        .filter(|bucket| counts.get(**bucket) > 0)
        .map(|bucket| format!("{} {}", counts.get(*bucket), bucket.as_str()))
        .collect();
    if some.is_empty() { "nobody".to_owned() } else { some.join(", ") }
}

/// A moment for people, to the second: `2026-11-24 10:00:00Z`.
pub(super) fn time(at: Timestamp) -> String {
    let text = at.to_string();
    let whole = text.split('.').next().unwrap_or_default().trim_end_matches('Z');
    format!("{}Z", whole.replacen('T', " ", 1))
}

/// A share of 1 as a percentage without needless digits: `0.5 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 1e2)
}

/// How a gate stands.
pub(super) fn gate_verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::Inconclusive => "no verdict yet",
        Verdict::Powerless => "powerless",
        Verdict::NotAsked => "not asked",
    }
}

/// The gates that say something: those asked, and those not asked that look bad.
pub(super) fn telling(assessment: &Assessment) -> impl Iterator<Item = &GateReport> {
    assessment.gates.iter().filter(|gate| gate.verdict != Verdict::NotAsked || gate.alarm.is_some())
}

/// How far an e-value is on its way from 1 to its threshold, 0 to 1, logarithmically: evidence multiplies.
pub(super) fn progress(e: f64, threshold: f64) -> f64 {
    if threshold <= 1.0 || e.is_nan() || e <= 1.0 {
        return 0.0;
    }
    (e.ln() / threshold.ln()).clamp(0.0, 1.0)
}

/// `share` (0 to 1) as a bar of `cells`.
pub(super) fn bar(share: f64, cells: usize) -> String {
    // Full only when it is: nobody should take 99 % for done.
    let full = (share.clamp(0.0, 1.0) * cells as f64).floor() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(cells - full))
}

/// A number with three figures, short however large.
#[derive(Clone, Copy)]
pub(super) struct Figure(pub f64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0;
        let text = match n.abs() {
            a if a < 1e6 && n.fract() == 0.0 => format!("{n:.0}"),
            a if a >= 1e6 => format!("{n:.1e}"),
            a if a >= 100.0 => format!("{n:.0}"),
            a if a >= 10.0 => format!("{n:.1}"),
            a if a >= 0.01 => format!("{n:.2}"),
            _ => format!("{n:.1e}"),
        };
        f.pad(&text)
    }
}

/// A length of time with its two largest units: `2d 23h`.
pub(super) fn long(span: Span) -> String {
    let text = span.to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `text` in lines of at most `width`, each but the first behind `indent` spaces; words are never cut.
pub(super) fn fold(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for (at, word) in text.split_whitespace().enumerate() {
        let length = word.chars().count();
        if at > 0 && column + 1 + length > width {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

/// `word` and its text, folded beside it: the lines of a page about one thing.
pub(super) fn field(word: &str, text: &str) -> String {
    format!("{word:<10} {}", fold(text, 11, WIDTH))
}

/// Sentences as a list with dashes.
pub(super) fn list<'t>(sentences: impl Iterator<Item = &'t str>) -> String {
    sentences.map(|text| format!("  - {}", fold(text, 4, WIDTH))).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_shown_on_its_way_to_the_threshold() {
        for (e, threshold, wanted) in [
            (1.0, 20.0, 0.0),
            (20.0, 20.0, 1.0),
            (1e300, 20.0, 1.0),
            (0.3, 20.0, 0.0),
            (10.0, 100.0, 0.5),
            (5.0, 0.0, 0.0),
        ] {
            assert!((progress(e, threshold) - wanted).abs() < 1e-9, "{e} of {threshold}");
        }
        assert_eq!(bar(0.99, 10), "█████████░");
        assert_eq!(bar(f64::INFINITY, 3), "███");
    }

    #[test]
    fn figures_are_short_and_lines_end_in_time() {
        let shown: Vec<_> =
            [0.0, 0.5, 19.96, 333.3, 1e300, 0.001, 20.0].iter().map(|n| Figure(*n).to_string()).collect();
        assert_eq!(shown, ["0", "0.50", "20.0", "333", "1.0e300", "1.0e-3", "20"]);
        let folded = field("waits for", &"so many words ".repeat(20));
        assert!(folded.lines().all(|line| line.chars().count() <= WIDTH), "{folded}");
        assert!(folded.lines().skip(1).all(|line| line.starts_with("           so")
            || line.starts_with("           m")
            || line.starts_with("           w")));
        assert_eq!(long(Span::secs(90_061)), "1d 1h");
    }
}
