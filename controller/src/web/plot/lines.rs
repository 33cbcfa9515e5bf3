//! Lines and dots over time or over a number, with bands, limits, and marks where something changed.

use super::{
    Unit,
    scale::{Scale, label, ticks},
};
use maud::{Markup, html};
use std::fmt::Write as _;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 22.0;
/// Rows of the table; of longer series the newest.
const ROWS: usize = 60;
/// Colours of the style sheet.
const TONES: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Look {
    Line,
    /// A second line of the same tone.
    Dashed,
    /// Single measurements.
    Dots,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::web) struct Dot {
    pub(in crate::web) x: f64,
    pub(in crate::web) y: f64,
    /// An interval around it.
    pub(in crate::web) band: Option<(f64, f64)>,
}

impl Dot {
    pub(in crate::web) fn new(x: f64, y: f64) -> Self {
        Self { x, y, band: None }
    }
}

#[derive(Clone, Debug)]
pub(in crate::web) struct Series {
    pub(in crate::web) name: String,
    pub(in crate::web) tone: usize,
    pub(in crate::web) look: Look,
    pub(in crate::web) dots: Vec<Dot>,
}

/// A vertical line: something changed here.
#[derive(Clone, Debug)]
pub(in crate::web) struct Mark {
    pub(in crate::web) name: String,
    pub(in crate::web) x: f64,
}

#[derive(Clone, Debug)]
pub(in crate::web) struct Chart {
    pub(in crate::web) title: String,
    /// One sentence that says what is to be seen, for who does not see it.
    pub(in crate::web) says: String,
    pub(in crate::web) x: (f64, f64),
    pub(in crate::web) x_unit: Unit,
    pub(in crate::web) y_unit: Unit,
    /// Whether the axis begins at 0; otherwise it follows the values.
    pub(in crate::web) from_zero: bool,
    /// Distance of neighbours; more than twice that is a gap. 0: no gaps.
    pub(in crate::web) step: f64,
    pub(in crate::web) series: Vec<Series>,
    /// Horizontal lines with their names.
    pub(in crate::web) limits: Vec<(String, f64)>,
    pub(in crate::web) marks: Vec<Mark>,
}

impl Chart {
    pub(in crate::web) fn over_time(title: &str, y_unit: Unit, x: (f64, f64), step: f64) -> Self {
        Self {
            title: title.to_owned(),
            says: String::new(),
            x,
            x_unit: Unit::Time,
            y_unit,
            from_zero: true,
            step,
            series: vec![],
            limits: vec![],
            marks: vec![],
        }
    }

    fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.dots.is_empty())
    }

    /// Range of values with some air; shares stay within 0 to 1.
    fn y_range(&self) -> (f64, f64) {
        let own = |dot: &Dot| {
            let (low, high) = dot.band.unwrap_or((dot.y, dot.y));
            [dot.y, low, high]
        };
        let values = self.series.iter().flat_map(|series| series.dots.iter().flat_map(own));
        let values = values.chain(self.limits.iter().map(|(_, at)| *at)).filter(|value| value.is_finite());
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return (0.0, 1.0);
        }
        let air = ((high - low) * 0.08).max(high.abs() * 0.02).max(1e-9);
        let from = if self.from_zero { low.min(0.0) } else { low - air };
        match self.y_unit {
            Unit::Percent => (from.max(0.0), (high + air).min(1.0)),
            Unit::Millis | Unit::Count | Unit::Plain(_) | Unit::Time => (from, high + air),
        }
    }

    pub(in crate::web) fn render(&self) -> Markup {
        let says = if self.says.is_empty() { self.summary() } else { self.says.clone() };
        html! {
            figure .plot {
                figcaption {
                    strong { (self.title) }
                    @if !self.is_empty() { (self.legend()) }
                }
                @if self.is_empty() {
                    p .empty { "Nothing was measured in this time." }
                } @else {
                    svg role="img" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) aria-label=(self.title) {
                        title { (self.title) }
                        desc { (says) }
                        (self.drawing())
                    }
                    (self.table())
                }
            }
        }
    }

    /// The last value of every series.
    fn summary(&self) -> String {
        let last = |series: &Series| {
            let dot = series.dots.last()?;
            Some(format!("{} {}", series.name, self.y_unit.text(dot.y)))
        };
        let all: Vec<_> = self.series.iter().filter_map(last).collect();
        format!("Latest: {}.", all.join(", "))
    }

    fn legend(&self) -> Markup {
        html! {
            ul .legend {
                @for series in self.series.iter().filter(|series| !series.dots.is_empty()) {
                    li {
                        svg aria-hidden="true" viewBox="0 0 18 8" {
                            @match series.look {
                                Look::Line | Look::Dashed => {
                                    path class={"line " (classes(series))} d="M0 4H18" {}
                                }
                                Look::Dots => circle class={"dot " (classes(series))} cx="9" cy="4" r="3" {},
                            }
                        }
                        (series.name)
                    }
                }
            }
        }
    }

    fn drawing(&self) -> Markup {
        let x = Scale::new(self.x.0, self.x.1, LEFT, WIDTH - RIGHT);
        let (low, high) = self.y_range();
        let y = Scale::new(low, high, HEIGHT - BOTTOM, TOP);
        let range = self.x.1 - self.x.0;
        let across = |at: f64| format!("M{LEFT} {at:.1}H{:.1}", WIDTH - RIGHT);
        html! {
            @for tick in ticks(low, high, 4, &self.y_unit) {
                path .grid d=(across(y.place(tick))) {}
                text .tick .right x=(format!("{:.1}", LEFT - 5.0)) y=(format!("{:.1}", y.place(tick) + 3.5)) {
                    (label(tick, &self.y_unit, high - low))
                }
            }
            @for tick in ticks(self.x.0, self.x.1, 5, &self.x_unit) {
                @let at = x.place(tick);
                text .tick .middle x=(format!("{at:.1}")) y=(format!("{:.1}", HEIGHT - 6.0)) {
                    (label(tick, &self.x_unit, range))
                }
            }
            @for mark in self.marks.iter().filter(|mark| x.holds(mark.x)) {
                @let at = x.place(mark.x);
                path .mark d=(format!("M{at:.1} {TOP}V{:.1}", HEIGHT - BOTTOM)) {}
                @let is_right = at > WIDTH * 0.8;
                text class={"tick mark-name" @if is_right { " right" }}
                    x=(format!("{:.1}", if is_right { at - 3.0 } else { at + 3.0 })) y="10" { (mark.name) }
            }
            @for series in &self.series { (self.one(series, &x, &y)) }
            @for (name, at) in &self.limits {
                path .limit d=(across(y.place(*at))) {}
                text .tick .right x=(format!("{:.1}", WIDTH - RIGHT)) y=(format!("{:.1}", y.place(*at) - 3.0)) { (name) }
            }
        }
    }

    fn one(&self, series: &Series, x: &Scale, y: &Scale) -> Markup {
        let shown: Vec<_> = series.dots.iter().filter(|dot| dot.y.is_finite() && x.holds(dot.x)).collect();
        let classes = classes(series);
        match series.look {
            Look::Line | Look::Dashed => html! {
                @if let Some(band) = self.band(&shown, x, y) { path class={"band " (classes)} d=(band) {} }
                path class={"line " (classes)} d=(self.path(&shown, x, y)) {}
                // A line of one point is not seen.
                @if let [only] = shown.as_slice() {
                    circle class={"dot " (classes)} cx=(format!("{:.1}", x.place(only.x)))
                        cy=(format!("{:.1}", y.place(only.y))) r="2.5" {}
                }
            },
            Look::Dots => html! {
                @for dot in shown {
                    @let (at, height) = (x.place(dot.x), y.place(dot.y));
                    @if let Some((low, high)) = dot.band {
                        path class={"whisker " (classes)} d=(format!("M{at:.1} {:.1}V{:.1}", y.place(low), y.place(high))) {}
                    }
                    circle class={"dot " (classes)} cx=(format!("{at:.1}")) cy=(format!("{height:.1}")) r="3.2" {}
                }
            },
        }
    }

    fn breaks(&self, before: Option<&&Dot>, dot: &Dot) -> bool {
        before.is_none_or(|before| self.step > 0.0 && dot.x - before.x > 2.01 * self.step)
    }

    fn path(&self, dots: &[&Dot], x: &Scale, y: &Scale) -> String {
        let mut path = String::new();
        for (at, dot) in dots.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|before| dots.get(before));
            let order = if self.breaks(before, dot) { 'M' } else { 'L' };
            let _ = write!(path, "{order}{:.1} {:.1}", x.place(dot.x), y.place(dot.y)); // a String takes everything
        }
        path
    }

    /// One closed shape per stretch without a gap.
    fn band(&self, dots: &[&Dot], x: &Scale, y: &Scale) -> Option<String> {
        let banded: Vec<_> = dots.iter().filter_map(|dot| Some((*dot, dot.band?))).collect();
        let mut path = String::new();
        for stretch in banded.chunk_by(|(a, _), (b, _)| !self.breaks(Some(a), b)) {
            let there = stretch.iter().map(|(dot, (_, high))| (dot.x, *high));
            let back = stretch.iter().rev().map(|(dot, (low, _))| (dot.x, *low));
            for (n, (at, value)) in there.chain(back).enumerate() {
                let order = if n == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{order}{:.1} {:.1}", x.place(at), y.place(value));
            }
            path.push('Z');
        }
        (!path.is_empty()).then_some(path)
    }

    fn table(&self) -> Markup {
        let rows: usize = self.series.iter().map(|series| series.dots.len()).sum();
        let each = ROWS / self.series.len().max(1);
        html! {
            details .values {
                summary { "Values" }
                div .wide tabindex="0" {
                    table {
                        thead { tr {
                            th scope="col" { "Series" }
                            th scope="col" { @match &self.x_unit { Unit::Time => "Time (UTC)", Unit::Plain(name) => (name), _ => "x" } }
                            th scope="col" .number { "Value" }
                        } }
                        tbody {
                            @for series in &self.series {
                                @for dot in series.dots.iter().rev().take(each.max(3)) {
                                    tr {
                                        td { (series.name) }
                                        td { (self.x_unit.text(dot.x)) }
                                        td .number {
                                            (self.y_unit.text(dot.y))
                                            @if let Some((low, high)) = dot.band {
                                                " (" (self.y_unit.text(low)) " to " (self.y_unit.text(high)) ")"
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
                @if rows > ROWS { p .faint { "The newest of " (rows) " values." } }
            }
        }
    }
}

fn classes(series: &Series) -> String {
    let dashed = if series.look == Look::Dashed { " dashed" } else { "" };
    format!("t{}{dashed}", series.tone % TONES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let dots = |from: f64| (0..10).map(|n| Dot::new(1.8e9 + f64::from(n) * 3_600.0, from)).collect();
        let mut chart = Chart::over_time("Accuracy <b>", Unit::Percent, (1.8e9, 1.8e9 + 36_000.0), 3_600.0);
        chart.series.push(Series {
            name: "digits@1 & co".into(),
            tone: 0,
            look: Look::Line,
            dots: dots(0.9),
        });
        chart.series.push(Series { name: "audited".into(), tone: 1, look: Look::Dots, dots: dots(0.8) });
        chart.limits.push(("floor".into(), 0.5));
        chart.marks.push(Mark { name: "digits@2".into(), x: 1.8e9 + 7_200.0 });
        chart
    }

    #[test]
    fn a_plot_says_what_it_shows_and_escapes_it() {
        let text = chart().render().into_string();
        assert!(text.contains("<title>Accuracy &lt;b&gt;</title>"), "{text}");
        assert!(text.contains("<desc>Latest: digits@1 &amp; co 90.0 %, audited 80.0 %.</desc>"), "{text}");
        assert!(text.contains("digits@2") && text.contains("floor") && text.contains("<details"));
        assert!(!text.contains("style=") && !text.contains("NaN"));
        assert!(text.len() < 9_000, "{} bytes", text.len());
    }

    #[test]
    fn lines_break_where_nothing_was_measured() {
        let mut chart = chart();
        chart.series.truncate(1);
        chart.series[0].dots.drain(3..7);
        let x = Scale::new(chart.x.0, chart.x.1, 0.0, 100.0);
        let y = Scale::new(0.0, 1.0, 100.0, 0.0);
        let dots: Vec<_> = chart.series[0].dots.iter().collect();
        let path = chart.path(&dots, &x, &y);
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 4, "{path}");
    }

    #[test]
    fn what_is_no_number_does_no_harm() {
        let mut chart = chart();
        chart.series[0].dots =
            vec![Dot::new(f64::NAN, f64::NAN), Dot::new(f64::INFINITY, 1e308), Dot::new(1.8e9, -1e308)];
        let text = chart.render().into_string();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        chart.series.clear();
        chart.limits.clear();
        assert!(chart.render().into_string().contains("Nothing was measured"));
    }
}
