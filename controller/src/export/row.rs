//! Rows of the exported tables. The row model is its own: what the store keeps may change, columns only come on top.

use super::{
    day::Day,
    parquet_file::{Column, Values},
};
use edgefleet_shared::{ids::ModelName, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// Counts and latency: one row per bundle, role, cohort and bucket.
    Telemetry,
    /// Predictions by class.
    Classes,
    /// Joined labels by source.
    Labels,
    /// What each input or output channel was like.
    Channels,
}

impl Table {
    pub const ALL: [Self; 4] = [Self::Telemetry, Self::Classes, Self::Labels, Self::Channels];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Classes => "classes",
            Self::Labels => "labels",
            Self::Channels => "channels",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Table {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|table| table.as_str() == text)
            .ok_or_else(|| format!("not {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// What every row begins with. The model and the day are in the folder's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bucket {
    pub model: ModelName,
    /// `digits@3`
    pub bundle: String,
    /// The bundle's counter.
    pub version: u64,
    /// `primary` or `shadow`
    pub role: String,
    pub cohort: String,
    pub start: Timestamp,
    pub secs: u64,
}

/// 50th, 95th and 99th percentile, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TelemetryRow {
    pub windows: u64,
    pub requests: u64,
    pub rows: u64,
    pub ok: u64,
    pub errors: u64,
    pub rejected: u64,
    pub total: Quantiles,
    pub queue: Quantiles,
    pub infer: Quantiles,
    pub labels_matched: u64,
    pub labels_correct: u64,
    pub labels_unmatched: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassRow {
    pub class: String,
    pub n: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelRow {
    pub source: String,
    pub matched: u64,
    pub correct: u64,
    pub unmatched: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelRow {
    pub channel: String,
    pub n: u64,
    pub missing: u64,
    pub mean: Option<f64>,
    pub sd: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    /// Rows by bin, a JSON list: below the first edge of the bundle's baseline, between edges, at or above the last.
    pub bins: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "table", rename_all = "kebab-case")]
pub enum Fields {
    Telemetry(TelemetryRow),
    Classes(ClassRow),
    Labels(LabelRow),
    Channels(ChannelRow),
}

/// One row of one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub bucket: Bucket,
    #[serde(flatten)]
    pub fields: Fields,
}

/// One line of the stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// The first one. `fleet`: 16 hex digits that no other fleet has.
    Begin {
        fleet: String,
        from: Day,
        until: Day,
    },
    Row(Box<Row>),
    /// The last one: without it the stream was cut off.
    End {
        rows: u64,
    },
}

impl Row {
    pub fn table(&self) -> Table {
        match self.fields {
            Fields::Telemetry(_) => Table::Telemetry,
            Fields::Classes(_) => Table::Classes,
            Fields::Labels(_) => Table::Labels,
            Fields::Channels(_) => Table::Channels,
        }
    }
    pub fn day(&self) -> Day {
        Day::of(self.bucket.start)
    }
}

/// The columns of `table`; rows of other tables are passed over.
pub fn columns(table: Table, rows: &[Row]) -> Vec<Column<'_>> {
    let rows: Vec<_> = rows.iter().filter(|row| row.table() == table).collect();
    let mut all = bucket_columns(&rows);
    match table {
        Table::Telemetry => {
            let own: Vec<_> = rows
                .iter()
                .filter_map(|row| if let Fields::Telemetry(own) = &row.fields { Some(own) } else { None })
                .collect();
            telemetry_columns(&own, &mut all);
        }
        Table::Classes => {
            let own: Vec<_> = rows
                .iter()
                .filter_map(|row| if let Fields::Classes(own) = &row.fields { Some(own) } else { None })
                .collect();
            all.push(text("class", &own, |row| &row.class));
            all.push(count("n", &own, |row| row.n));
        }
        Table::Labels => {
            let own: Vec<_> = rows
                .iter()
                .filter_map(|row| if let Fields::Labels(own) = &row.fields { Some(own) } else { None })
                .collect();
            all.push(text("source", &own, |row| &row.source));
            all.push(count("matched", &own, |row| row.matched));
            all.push(count("correct", &own, |row| row.correct));
            all.push(count("unmatched", &own, |row| row.unmatched));
        }
        Table::Channels => {
            let own: Vec<_> = rows
                .iter()
                .filter_map(|row| if let Fields::Channels(own) = &row.fields { Some(own) } else { None })
                .collect();
            all.push(text("channel", &own, |row| &row.channel));
            all.push(count("n", &own, |row| row.n));
            all.push(count("missing", &own, |row| row.missing));
            all.push(real("mean", &own, |row| row.mean));
            all.push(real("sd", &own, |row| row.sd));
            all.push(real("min", &own, |row| row.min));
            all.push(real("max", &own, |row| row.max));
            all.push(text("bins", &own, |row| &row.bins));
        }
    }
    all
}

fn bucket_columns<'a>(rows: &[&'a Row]) -> Vec<Column<'a>> {
    let starts = rows.iter().map(|row| row.bucket.start).collect();
    vec![
        text("bundle", rows, |row| &row.bucket.bundle),
        count("version", rows, |row| row.bucket.version),
        text("role", rows, |row| &row.bucket.role),
        text("cohort", rows, |row| &row.bucket.cohort),
        Column { name: "bucket_start", values: Values::Time(starts) },
        count("bucket_secs", rows, |row| row.bucket.secs),
    ]
}

fn telemetry_columns<'a>(rows: &[&'a TelemetryRow], all: &mut Vec<Column<'a>>) {
    all.push(count("windows", rows, |row| row.windows));
    all.push(count("requests", rows, |row| row.requests));
    all.push(count("rows", rows, |row| row.rows));
    all.push(count("ok", rows, |row| row.ok));
    all.push(count("errors", rows, |row| row.errors));
    all.push(count("rejected", rows, |row| row.rejected));
    all.push(real("total_p50_ms", rows, |row| row.total.p50));
    all.push(real("total_p95_ms", rows, |row| row.total.p95));
    all.push(real("total_p99_ms", rows, |row| row.total.p99));
    all.push(real("queue_p50_ms", rows, |row| row.queue.p50));
    all.push(real("queue_p95_ms", rows, |row| row.queue.p95));
    all.push(real("queue_p99_ms", rows, |row| row.queue.p99));
    all.push(real("infer_p50_ms", rows, |row| row.infer.p50));
    all.push(real("infer_p95_ms", rows, |row| row.infer.p95));
    all.push(real("infer_p99_ms", rows, |row| row.infer.p99));
    all.push(count("labels_matched", rows, |row| row.labels_matched));
    all.push(count("labels_correct", rows, |row| row.labels_correct));
    all.push(count("labels_unmatched", rows, |row| row.labels_unmatched));
}

fn text<'a, T>(name: &'static str, rows: &[&'a T], of: impl Fn(&'a T) -> &'a str) -> Column<'a> {
    Column { name, values: Values::Text(rows.iter().map(|row| of(row)).collect()) }
}
fn count<'a, T>(name: &'static str, rows: &[&'a T], of: impl Fn(&'a T) -> u64) -> Column<'a> {
    Column { name, values: Values::Count(rows.iter().map(|row| of(row)).collect()) }
}
fn real<'a, T>(name: &'static str, rows: &[&'a T], of: impl Fn(&'a T) -> Option<f64>) -> Column<'a> {
    Column { name, values: Values::Real(rows.iter().map(|row| of(row)).collect()) }
}
