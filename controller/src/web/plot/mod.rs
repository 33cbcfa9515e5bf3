//! Plots as SVG with a table beneath. Pure: values in, markup out.
//!
//! Each is a `figure` with a caption, a legend in words, `title` and `desc` for screen readers, and all values as a table
//! for who wants to read or copy them. Colours, dashes and dark mode are classes of the style sheet: nothing inline.

mod lines;
mod pairs;
mod scale;

pub(super) use lines::{Chart, Dot, Look, Mark, Series};
pub(super) use pairs::{meter, pairs};

/// What the numbers of an axis are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unit {
    /// Shares of 1.
    Percent,
    Millis,
    Count,
    /// A number with a name.
    Plain(String),
    /// Seconds since 1970, UTC.
    Time,
}

impl Unit {
    /// One value on its own.
    pub(super) fn text(&self, value: f64) -> String {
        use super::words::{figure, instant, percent};
        match self {
            Self::Percent => percent(Some(value)),
            Self::Millis => format!("{} ms", figure(value)),
            Self::Count | Self::Plain(_) => figure(value),
            Self::Time => instant(seconds(value)).trim_end_matches(":00Z").trim_end_matches('Z').to_owned(),
        }
    }
}

fn seconds(value: f64) -> edgefleet_shared::time::Timestamp {
    // A cast from a float saturates.
    edgefleet_shared::time::Timestamp::from_secs(value.max(0.0) as u64)
}
