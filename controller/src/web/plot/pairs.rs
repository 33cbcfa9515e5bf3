//! Shares side by side, and one value on its way to a limit.

use maud::{Markup, html};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 150.0;
const BOTTOM: f64 = 20.0;
/// Bins drawn; more would be thinner than a line.
const MOST: usize = 64;

/// What was seen now beside what it is compared with, bin by bin. Both are shares of 1; missing ones are 0.
pub(in crate::web) fn pairs(title: &str, names: &[String], now: &[f64], reference: &[f64]) -> Markup {
    let bins = now.len().max(reference.len()).min(MOST);
    let share =
        |of: &[f64], n: usize| of.get(n).copied().filter(|share| share.is_finite()).unwrap_or(0.0).max(0.0);
    let most = (0..bins).map(|n| share(now, n).max(share(reference, n))).fold(1e-9, f64::max);
    let wide = WIDTH / bins.max(1) as f64;
    let foot = HEIGHT - BOTTOM;
    let bar = |n: usize, value: f64, class: &str, shift: f64| {
        let tall = value / most * (foot - 4.0);
        html! {
            rect class={"bar " (class)} x=(format!("{:.1}", (n as f64 + shift) * wide))
                y=(format!("{:.1}", foot - tall)) width=(format!("{:.1}", (wide * 0.42).max(0.8)))
                height=(format!("{tall:.1}")) {}
        }
    };
    let every = bins.div_ceil(8).max(1);
    html! {
        figure .plot {
            figcaption {
                strong { (title) }
                ul .legend {
                    li { svg aria-hidden="true" viewBox="0 0 18 8" { rect .bar .t1 x="4" y="0" width="10" height="8" {} } "now" }
                    li { svg aria-hidden="true" viewBox="0 0 18 8" { rect .bar .t5 x="4" y="0" width="10" height="8" {} } "reference" }
                }
            }
            svg role="img" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) aria-label=(title) {
                title { (title) }
                desc { "Shares of rows by bin, now and in the reference; the values are in the table." }
                path .grid d=(format!("M0 {foot}H{WIDTH}")) {}
                @for n in 0..bins {
                    (bar(n, share(now, n), "t1", 0.06))
                    (bar(n, share(reference, n), "t5", 0.52))
                    @if n % every == 0 {
                        text .tick .middle x=(format!("{:.1}", (n as f64 + 0.5) * wide)) y=(format!("{:.1}", HEIGHT - 5.0)) {
                            (short(names.get(n)))
                        }
                    }
                }
            }
            details .values {
                summary { "Values" }
                div .wide tabindex="0" {
                    table {
                        thead { tr { th scope="col" { "Bin" } th scope="col" .number { "Now" } th scope="col" .number { "Reference" } } }
                        tbody {
                            @for n in 0..bins {
                                tr {
                                    th scope="row" { (names.get(n).map_or_else(|| (n + 1).to_string(), Clone::clone)) }
                                    td .number { (format!("{:.1} %", 100.0 * share(now, n))) }
                                    td .number { (format!("{:.1} %", 100.0 * share(reference, n))) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn short(name: Option<&String>) -> String {
    name.map(|name| name.chars().take(8).collect()).unwrap_or_default()
}

/// A bar filled to `share` of 1, with a line at `limit` if there is one. `says`: the same in words.
pub(in crate::web) fn meter(share: f64, limit: Option<f64>, tone: &str, says: &str) -> Markup {
    let at =
        |share: f64| format!("{:.1}", if share.is_finite() { share.clamp(0.0, 1.0) * 100.0 } else { 0.0 });
    html! {
        svg .meter role="img" aria-label=(says) viewBox="0 0 100 8" preserveAspectRatio="none" {
            title { (says) }
            rect .ground x="0" y="0" width="100" height="8" {}
            rect class={"fill " (tone)} x="0" y="0" width=(at(share)) height="8" {}
            @if let Some(limit) = limit {
                rect .line x=(at(limit)) y="0" width="0.8" height="8" {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_drawn_beside_each_other_whatever_they_are() {
        let names: Vec<String> = ["a<b", "c"].map(str::to_owned).into();
        let text = pairs("Input", &names, &[0.25, 0.75, f64::NAN], &[0.5]).into_string();
        assert!(text.contains("a&lt;b") && text.contains("75.0 %") && !text.contains("NaN"), "{text}");
        let many = vec![0.001; 5_000];
        assert!(pairs("Many", &[], &many, &many).into_string().len() < 60_000);
        assert!(pairs("None", &[], &[], &[]).into_string().contains("svg"));
        assert!(meter(f64::NAN, Some(2.0), "", "x").into_string().contains("width=\"0.0\""));
    }
}
