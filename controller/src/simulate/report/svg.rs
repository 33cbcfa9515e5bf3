//! A small writer of SVG plots: axes, lines, points with intervals. Numbers in, text out.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 48.0;
/// Told apart by people who see colours differently (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

pub(crate) struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    /// Horizontal lines with a name: what must not be exceeded.
    pub limits: Vec<(String, f64)>,
}

pub(crate) struct Axis {
    pub name: String,
    pub from: f64,
    pub to: f64,
    /// Where a label stands, and its text.
    pub ticks: Vec<(f64, String)>,
}

/// x, y, and the interval around y.
pub(crate) type Point = (f64, f64, Option<(f64, f64)>);

pub(crate) struct Series {
    pub name: String,
    pub points: Vec<Point>,
    pub joined: bool,
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let mut out = String::new();
        let x =
            |value: f64| LEFT + (value - self.x.from) / (self.x.to - self.x.from) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| {
            let share = ((value - self.y.from) / (self.y.to - self.y.from)).clamp(0.0, 1.0);
            HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        };
        let (x0, x1, y0, y1) = (x(self.x.from), x(self.x.to), y(self.y.from), y(self.y.to));
        let mut line = |text: String| out.push_str(&(text + "\n"));
        line(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
        ));
        line(format!(r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#));
        line(format!(r#"<text x="{LEFT}" y="20" font-size="14">{}</text>"#, escape(&self.title)));
        line(format!(r##"<path d="M{x0:.1} {y1:.1}V{y0:.1}H{x1:.1}" fill="none" stroke="#444"/>"##));
        for (at, label) in &self.x.ticks {
            line(format!(
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                x(*at),
                y0 + 16.0,
                escape(label)
            ));
        }
        for (at, label) in &self.y.ticks {
            line(format!(r##"<path d="M{x0:.1} {0:.1}H{x1:.1}" stroke="#ddd"/>"##, y(*at)));
            line(format!(
                r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                x0 - 6.0,
                y(*at) + 4.0,
                escape(label)
            ));
        }
        line(format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            0.5 * (x0 + x1),
            HEIGHT - 10.0,
            escape(&self.x.name)
        ));
        line(format!(
            r#"<text transform="translate(14 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            0.5 * (y0 + y1),
            escape(&self.y.name)
        ));
        for (name, value) in &self.limits {
            line(format!(
                r##"<path d="M{x0:.1} {0:.1}H{x1:.1}" stroke="#b00" stroke-dasharray="6 4"/>"##,
                y(*value)
            ));
            line(format!(
                r##"<text x="{:.1}" y="{:.1}" fill="#b00">{}</text>"##,
                x1 + 8.0,
                y(*value) + 4.0,
                escape(name)
            ));
        }
        for (number, series) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            if series.joined {
                let mut path = String::new();
                for (index, (at, value, _)) in series.points.iter().enumerate() {
                    let _ =
                        write!(path, "{}{:.1} {:.1}", if index == 0 { 'M' } else { 'L' }, x(*at), y(*value));
                }
                line(format!(r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#));
            }
            for (at, value, interval) in &series.points {
                if let Some((low, high)) = interval {
                    line(format!(
                        r#"<path d="M{0:.1} {1:.1}V{2:.1}" stroke="{colour}"/>"#,
                        x(*at),
                        y(*low),
                        y(*high)
                    ));
                    line(format!(
                        r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#,
                        x(*at),
                        y(*value)
                    ));
                }
            }
            let row = TOP + 16.0 * number as f64;
            line(format!(
                r#"<rect x="{:.1}" y="{:.1}" width="10" height="10" fill="{colour}"/>"#,
                x1 + 8.0,
                row - 9.0
            ));
            line(format!(r#"<text x="{:.1}" y="{row:.1}">{}</text>"#, x1 + 22.0, escape(&series.name)));
        }
        out.push_str("</svg>\n");
        out
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Labels of a share's axis.
pub(crate) fn percents(values: &[f64]) -> Vec<(f64, String)> {
    values.iter().map(|value| (*value, format!("{} %", (value * 1_000.0).round() / 10.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_well_formed_and_escapes_names() {
        let axis = |name: &str| Axis { name: name.into(), from: 0.0, to: 1.0, ticks: percents(&[0.0, 0.5]) };
        let plot = Plot {
            title: "a < b & c".into(),
            x: axis("x"),
            y: axis("y"),
            series: vec![Series {
                name: "s".into(),
                points: vec![(0.1, 0.2, Some((0.1, 0.3)))],
                joined: true,
            }],
            limits: vec![("alpha".into(), 0.9)],
        };
        let svg = plot.svg();
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("a &lt; b &amp; c"),
            "{svg}"
        );
        let open = svg.matches('<').count();
        assert_eq!(open, svg.matches('>').count());
    }
}
