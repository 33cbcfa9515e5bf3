//! What the gates say: the effect with its interval, and how far the evidence is on its way to each threshold.

use super::super::{
    Web,
    plot::meter,
    words::{badge, count, device, figure},
};
use crate::evidence::{Assessment, Effect, GateReport, Verdict};
use maud::{Markup, html};

/// Places of the interval's drawing.
const WIDTH: f64 = 240.0;

pub(super) fn gates(web: &Web, assessment: Option<&Assessment>) -> Markup {
    let Some(assessment) = assessment else {
        return html! { p .empty { "Nothing was compared yet." } };
    };
    html! {
        p { "Together: " (verdict(assessment.verdict)) }
        div .cards { @for gate in &assessment.gates { (one(web, gate)) } }
        p .faint {
            "E-values say how much better the data fit \"it does harm\" (or \"it is safe\") than the opposite. They may be looked at "
            "at any time. A verdict also has to hold without any one device."
        }
    }
}

fn one(web: &Web, gate: &GateReport) -> Markup {
    html! {
        section .card {
            h3 { (gate.gate) " " (verdict(gate.verdict)) }
            p { (gate.sentence) }
            @if let Some(alarm) = &gate.alarm { p .notice { (alarm) } }
            @if let Some(effect) = &gate.effect { (interval(effect)) }
            @if gate.harm_threshold > 0.0 { (evidence("Harm", "bad", gate.e_harm, gate.e_harm_without_one, gate.harm_threshold)) }
            @if gate.safe_threshold > 0.0 { (evidence("Safe", "good", gate.e_safe, gate.e_safe_without_one, gate.safe_threshold)) }
            p .faint { (figure(gate.observations)) " observations of " (count(gate.devices)) " devices" }
            @if !gate.worst.is_empty() {
                details { summary { "Where it looks worst" }
                    ul { @for slice in gate.worst.iter().take(10) { li { (slice.name) ": " (figure(slice.bad)) " of " (figure(slice.of)) } } } }
            }
            @if !gate.examples.is_empty() {
                p .faint { "For example " @for (n, id) in gate.examples.iter().take(5).enumerate() { @if n > 0 { ", " } (device(web, id)) } }
            }
        }
    }
}

fn verdict(verdict: Verdict) -> Markup {
    match verdict {
        Verdict::Pass => badge("good", "pass"),
        Verdict::Fail => badge("bad", "fail"),
        Verdict::Inconclusive => badge("warn", "no verdict yet"),
        Verdict::Powerless => badge("warn", "powerless"),
        Verdict::NotAsked => badge("", "not asked"),
    }
}

/// How far an e-value is on its way from 1 to its threshold, 0 to 1, logarithmically: evidence multiplies.
fn way(e: f64, threshold: f64) -> f64 {
    if threshold <= 1.0 || e.is_nan() || e <= 1.0 {
        return 0.0;
    }
    (e.ln() / threshold.ln()).clamp(0.0, 1.0)
}

fn evidence(word: &str, tone: &str, e: f64, without_one: f64, threshold: f64) -> Markup {
    let says = format!(
        "{word}: E = {} of {}, {} without any one device",
        figure(e),
        figure(threshold),
        figure(without_one)
    );
    html! { p { (meter(way(e, threshold), Some(way(without_one, threshold)), tone, &says)) " " (says) } }
}

/// A line from low to high with the estimate on it, and where "no difference" lies.
fn interval(effect: &Effect) -> Markup {
    let same = if effect.low >= 0.0 && effect.what.contains("over") { 1.0 } else { 0.0 };
    let high = if effect.high >= 1e6 { effect.estimate.max(same) * 2.0 + 1.0 } else { effect.high };
    let (from, to) = (effect.low.min(same), high.max(same));
    let range = (to - from).max(1e-9);
    let at = |value: f64| {
        format!("{:.1}", (8.0 + (value - from) / range * (WIDTH - 16.0)).clamp(2.0, WIDTH - 2.0))
    };
    let upper = if effect.high >= 1e6 { "unknown".to_owned() } else { figure(effect.high) };
    let says = format!(
        "{}: {}, 95 % between {} and {upper}",
        effect.what,
        figure(effect.estimate),
        figure(effect.low)
    );
    html! {
        figure .plot {
            svg role="img" aria-label=(says) viewBox=(format!("0 0 {WIDTH} 22")) {
                title { (says) }
                path .mark d=(format!("M{} 2V20", at(same))) {}
                path .line .t0 d=(format!("M{} 11H{}", at(effect.low), at(high))) {}
                circle .dot .t0 cx=(at(effect.estimate)) cy="11" r="4" {}
            }
            figcaption { span { (says) } }
        }
    }
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
            assert!((way(e, threshold) - wanted).abs() < 1e-9, "{e} of {threshold}");
        }
    }

    #[test]
    fn intervals_without_an_end_are_drawn_and_said() {
        let effect = Effect { what: "rate, canary over control".into(), estimate: 1.0, low: 0.0, high: 1e6 };
        let text = interval(&effect).into_string();
        assert!(text.contains("between 0 and unknown") && !text.contains("NaN"), "{text}");
    }
}
