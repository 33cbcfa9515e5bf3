//! Numbers, times and names as pages write them.

use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    time::Timestamp,
};
use maud::{Markup, html};
use std::{fmt::Write as _, time::Duration};

/// What is shown where there is nothing to show.
pub(super) const NONE: &str = "–";

/// `text` for a path segment or the value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}"); // a String takes everything
            }
        }
    }
    out
}

/// A moment to the second, UTC: `2026-11-24 10:00:00Z`.
pub(super) fn instant(at: Timestamp) -> String {
    let text = at.to_string();
    let whole = text.split('.').next().unwrap_or_default().trim_end_matches('Z');
    format!("{}Z", whole.replacen('T', " ", 1))
}

/// How long ago, with the moment itself behind it.
pub(super) fn ago(at: Timestamp, now: Timestamp) -> Markup {
    let text = match at > now {
        true => format!("in {}", span(at.since(now))),
        false if now.since(at) < Duration::from_secs(5) => "just now".to_owned(),
        false => format!("{} ago", span(now.since(at))),
    };
    html! { time datetime=(at.to_string()) title=(instant(at)) { (text) } }
}

/// In its largest unit: `3 min`.
pub(super) fn span(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0..60 => format!("{secs} s"),
        60..3_600 => format!("{} min", secs / 60),
        3_600..172_800 => format!("{} h", secs / 3_600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// `1,234,567`.
pub(super) fn count(n: impl TryInto<u64>) -> String {
    let Ok(n) = n.try_into() else { return "many".to_owned() };
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number with three figures, short however large.
pub(super) fn figure(n: f64) -> String {
    match n.abs() {
        _ if !n.is_finite() => NONE.to_owned(),
        a if a < 1e6 && n.fract() == 0.0 => format!("{n:.0}"),
        a if a >= 1e6 => format!("{n:.1e}"),
        a if a >= 100.0 => format!("{n:.0}"),
        a if a >= 10.0 => format!("{n:.1}"),
        a if a >= 0.01 => format!("{n:.2}"),
        _ => format!("{n:.1e}"),
    }
}

/// A share of 1: `93.2 %`.
pub(super) fn percent(share: Option<f64>) -> String {
    share
        .filter(|share| share.abs() < 1e6)
        .map_or_else(|| NONE.to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

pub(super) fn millis(ms: Option<f64>) -> String {
    ms.map_or_else(|| NONE.to_owned(), |ms| format!("{} ms", figure(ms)))
}

pub(super) fn bytes(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.1} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n:.0} B"),
    }
}

/// A value by the name it has in documents: `stage-passed`.
pub(super) fn name(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// A device's name for people, else its id.
pub(super) fn device_name(web: &super::Web, id: &DeviceId) -> String {
    let known = web.operations.fleet.device(id).ok();
    let name = known.map(|known| known.device.name.clone()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| id.to_string())
}

/// A device as a link to its page, by its name for people.
pub(super) fn device(web: &super::Web, id: &DeviceId) -> Markup {
    html! { a href={"/devices/" (id)} title=(id) { (device_name(web, id)) } }
}

/// A bundle as a link to its model's page.
pub(super) fn bundle(bundle: &BundleName) -> Markup {
    html! { a href={"/models/" (bundle.model)} { (bundle) } }
}

/// A digest cut to what tells it apart.
pub(super) fn digest(digest: &str) -> Markup {
    let hex = digest.trim_start_matches("sha256:");
    let short: String = hex.chars().take(12).collect();
    html! { code title=(digest) { (short) } }
}

/// A sentence; what stands in backticks is set as code.
pub(super) fn prose(text: &str) -> Markup {
    let parts: Vec<_> = text.split('`').collect();
    // An odd number of backticks leaves one that opens nothing.
    let pairs = if parts.len() % 2 == 1 { parts.len() } else { 0 };
    html! {
        @if pairs == 0 { (text) } @else {
            @for (n, part) in parts.iter().enumerate() { @if n % 2 == 1 { code { (part) } } @else { (part) } }
        }
    }
}

/// A word in a coloured frame; the word says it, the colour only helps.
pub(super) fn badge(tone: &str, word: &str) -> Markup {
    html! { span class={"badge " (tone)} { (word) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown: Vec<_> = [0.0, 0.5, 19.96, 333.3, 1e300, 0.001, 20.0, f64::NAN].map(figure).into();
        assert_eq!(shown, ["0", "0.50", "20.0", "333", "1.0e300", "1.0e-3", "20", "–"]);
        assert_eq!([0u64, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([bytes(12), bytes(1_500), bytes(2_000_000)], ["12 B", "1.5 kB", "2.0 MB"]);
        assert_eq!((percent(Some(0.9318)).as_str(), percent(None).as_str()), ("93.2 %", "–"));
    }

    #[test]
    fn times_are_read_at_a_glance() {
        let now = Timestamp::from_secs(1_800_000_000);
        let text = |secs: u64| ago(now - Duration::from_secs(secs), now).into_string();
        assert!(text(3).contains(">just now<") && text(90).contains(">1 min ago<"));
        assert!(text(7_200).contains(">2 h ago<") && text(4 * 86_400).contains(">4 d ago<"));
        assert_eq!(instant(now), "2027-01-15 08:00:00Z");
        assert!(ago(now + Duration::from_secs(60), now).into_string().contains(">in 1 min<"));
    }

    #[test]
    fn code_in_sentences_is_set_and_everything_escaped() {
        assert_eq!(prose("stage `a<b` failed").into_string(), "stage <code>a&lt;b</code> failed");
        assert_eq!(prose("a ` b").into_string(), "a ` b");
        assert_eq!(prose("").into_string(), "");
    }

    #[test]
    fn what_goes_into_addresses_is_encoded() {
        assert_eq!(encoded("digits@1/a b&c=\"é"), "digits%401%2Fa%20b%26c%3D%22%C3%A9");
    }
}
