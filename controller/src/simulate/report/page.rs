//! The page: tables and plots from what was measured.

use super::{
    measure::{Measured, Row},
    stats::Rate,
    svg::{Axis, Plot, Series, percents},
};
use crate::{evidence::Gate, simulate::Scenario};
use std::fmt::Write as _;

/// A file of the page, by its path relative to the page's folder.
pub struct File {
    pub path: String,
    pub text: String,
}

/// The page and its plots. `folder`: where the plots go, relative to the page.
pub fn page(measured: &Measured, folder: &str) -> (String, Vec<File>) {
    let plots = [
        ("detection.svg", "Share of rollouts that a gate stopped, by size of harm", detection(measured)),
        ("false-aborts.svg", "False aborts of a harmless candidate", false_aborts(measured)),
        ("peeking.svg", "False aborts while somebody looks every minute", peeking(measured)),
    ];
    let mut text = String::new();
    head(&mut text, measured);
    table(&mut text, measured);
    text.push_str(
        "\n## What stopped them\n\n| candidate | gates | rules without statistics |\n|---|---|---|\n",
    );
    for row in &measured.rows {
        let gates: Vec<_> =
            row.by_gate.iter().map(|(gate, rate)| format!("{gate} {}", percent(rate.share()))).collect();
        let rules: Vec<_> = row
            .by_rule
            .iter()
            .map(|(rule, rate)| format!("{} {}", name_of(rule), percent(rate.share())))
            .collect();
        let _ = writeln!(text, "| {} | {} | {} |", row.scenario, gates.join(", "), rules.join(", "));
    }
    text.push_str("\nA rollout that two gates fail at the same look counts for both.\n");
    let decayed = &measured.decayed;
    let _ = writeln!(
        text,
        "\n## A fleet where three of ten devices are dead\n\nCanaries are alive when they activate; controls are drawn \
         before anybody knows. One that is not heard of when its canary activates stays out of the comparison, or \
         dead controls, who have no bad hours, would make any candidate look bad. Of {} harmless rollouts {} were failed by \
         statistics: {}.",
        decayed.n,
        decayed.harm.hits,
        with_bounds(decayed.harm)
    );
    let peek = &measured.peeking;
    let _ = writeln!(
        text,
        "\n## Looking every minute for a month\n\nOne canary stage, nothing ever called safe, a look each minute for thirty \
         virtual days: {} looks each. Of {} harmless rollouts {} were failed by statistics: {}.\n",
        30 * 24 * 60,
        peek.n,
        peek.harm.hits,
        with_bounds(peek.harm)
    );
    text.push_str("## Plots\n");
    let mut files = Vec::new();
    for (name, title, plot) in plots {
        let path = format!("{folder}/{name}");
        let _ = write!(text, "\n![{title}]({path})\n");
        files.push(File { path, text: plot.svg() });
    }
    (text, files)
}

fn head(text: &mut String, measured: &Measured) {
    let effort = &measured.effort;
    let _ = write!(
        text,
        "# How often the gates are wrong, and how often right\n\n\
         Written by `edgefleet simulate --report`; `make evidence` makes it anew (long). Every number comes from whole \
         simulated rollouts: the real core of the controller with the default stages and gates, all gates together, against \
         virtual fleets of {} devices (seeds from {}), each with its own rate of bad hours (beta), its own speed \
         (lognormal, sd 0.3), 2 % of them chronically bad, site-wide outages, a day cycle, 1 % never connected, 5 % \
         switched off at night, 5 % with a flaky connection, slow links, late, doubled and overtaken messages. The generator \
         shares no code with the gates.\n\n\
         Intervals are exact (Clopper and Pearson): each bound holds with 99 %. `alpha`, the share of harmless rollouts that \
         statistics may fail, is {}. `inconclusive` means: no verdict within the longest soak; a person looks, and here always \
         goes on.\n\n\
         `errors-N` multiplies every device's rate of bad hours by N. Read its rows with two things in mind: a gate that no \
         single device may decide learns little from twenty canaries in three days, and below `errors.max_bad_rate` (2 % of \
         device-hours) errors count as safe however they compare; most devices of this fleet stay below it even at five \
         times their rate. Such rollouts go on, and are stopped, if at all, by the canaries of later stages, who have controls \
         of their own. `edgefleet rollout plan` prints what your plan finds on your fleet.\n",
        effort.devices,
        effort.seed,
        percent(measured.alpha),
    );
}

fn table(text: &mut String, measured: &Measured) {
    text.push_str(
        "\n## How rollouts end\n\n| candidate | rollouts | failed by statistics | by a rule | inconclusive | completed | \
         median hours to the stop | median share of the fleet reached |\n|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in &measured.rows {
        let rules = Rate::of(row.by_rule.values().map(|rate| rate.hits).sum(), row.n);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            row.scenario,
            row.n,
            with_bounds(row.harm),
            percent(rules.share()),
            percent(row.inconclusive.share()),
            percent(row.completed.share()),
            row.hours_to_stop.map_or("-".to_owned(), |hours| format!("{hours:.0}")),
            row.reached.map_or("-".to_owned(), percent),
        );
    }
}

fn name_of(rule: &crate::rollout::Rule) -> String {
    serde_json::to_string(rule).unwrap_or_default().trim_matches('"').to_owned()
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 9.95 { format!("{percent:.0} %") } else { format!("{percent:.2} %") }
}

fn with_bounds(rate: Rate) -> String {
    format!("{} ({} to {})", percent(rate.share()), percent(rate.low), percent(rate.high))
}

fn point(x: f64, rate: Rate) -> (f64, f64, Option<(f64, f64)>) {
    (x, rate.share(), Some((rate.low, rate.high)))
}

fn detection(measured: &Measured) -> Plot {
    let at = |scenario: Scenario, gate: Gate, x: f64| {
        measured.row(scenario).map(|row| {
            let rate = row.by_gate.get(&gate).copied().unwrap_or(Rate::of(0, row.n));
            point(x, rate)
        })
    };
    let errors = [
        (Scenario::Good, 1.0),
        (Scenario::Errors1_5, 1.5),
        (Scenario::Errors2, 2.0),
        (Scenario::Errors3, 3.0),
        (Scenario::Errors5, 5.0),
    ];
    let latency = [
        (Scenario::Good, 1.0),
        (Scenario::Slower1_2, 1.2),
        (Scenario::Slower1_5, 1.5),
        (Scenario::Slower3, 3.0),
    ];
    let series = |name: &str, gate: Gate, sizes: &[(Scenario, f64)]| Series {
        name: name.to_owned(),
        points: sizes.iter().filter_map(|(scenario, x)| at(*scenario, gate, *x)).collect(),
        joined: true,
    };
    Plot {
        title: "Detection by size of harm".to_owned(),
        x: Axis {
            name: "how many times worse".to_owned(),
            from: 0.8,
            to: 5.2,
            ticks: [1.0, 1.5, 2.0, 3.0, 4.0, 5.0].map(|x| (x, format!("{x}"))).to_vec(),
        },
        y: share_axis(1.0, &[0.0, 0.25, 0.5, 0.75, 1.0]),
        series: vec![series("errors", Gate::Errors, &errors), series("latency", Gate::Latency, &latency)],
        limits: Vec::new(),
    }
}

fn share_axis(to: f64, ticks: &[f64]) -> Axis {
    Axis { name: "share of rollouts".to_owned(), from: 0.0, to, ticks: percents(ticks) }
}

fn false_aborts(measured: &Measured) -> Plot {
    let good = measured.row(Scenario::Good).cloned().unwrap_or_default();
    let bars: Vec<(String, Rate)> = Gate::ALL
        .iter()
        .map(|gate| (gate.to_string(), good.by_gate.get(gate).copied().unwrap_or(Rate::of(0, good.n))))
        .chain([("all".to_owned(), good.harm), ("watched".to_owned(), measured.peeking.harm)])
        .collect();
    let top = bars.iter().map(|(_, rate)| rate.high).fold(1.5 * measured.alpha, f64::max).min(1.0);
    Plot {
        title: "False aborts of a harmless candidate, with 99 % bounds".to_owned(),
        x: Axis {
            name: "gate".to_owned(),
            from: -0.5,
            to: bars.len() as f64 - 0.5,
            ticks: bars.iter().enumerate().map(|(x, (name, _))| (x as f64, name.clone())).collect(),
        },
        y: share_axis(top, &[0.0, measured.alpha / 2.0, measured.alpha, top]),
        series: vec![Series {
            name: "measured".to_owned(),
            points: bars.iter().enumerate().map(|(x, (_, rate))| point(x as f64, *rate)).collect(),
            joined: false,
        }],
        limits: vec![("alpha".to_owned(), measured.alpha)],
    }
}

fn peeking(measured: &Measured) -> Plot {
    let row: &Row = &measured.peeking;
    let mut days = measured.peeking_days.clone();
    days.sort_by(f64::total_cmp);
    let mut points = vec![(0.0, 0.0, None)];
    for (number, day) in days.iter().enumerate() {
        let share = |n: usize| n as f64 / row.n.max(1) as f64;
        points.push((day.min(30.0), share(number), None));
        points.push((day.min(30.0), share(number + 1), None));
    }
    points.push((30.0, row.harm.share(), None));
    let top = (1.5 * measured.alpha).max(1.1 * row.harm.share());
    Plot {
        title: "False aborts so far, looking every minute".to_owned(),
        x: Axis {
            name: "virtual days".to_owned(),
            from: 0.0,
            to: 31.0,
            ticks: [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0].map(|x| (x, format!("{x}"))).to_vec(),
        },
        y: share_axis(top, &[0.0, measured.alpha / 2.0, measured.alpha]),
        series: vec![Series { name: "harmless".to_owned(), points, joined: true }],
        limits: vec![("alpha".to_owned(), measured.alpha)],
    }
}
