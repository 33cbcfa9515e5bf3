//! Ways out for data: telemetry as Parquet files, and metrics for Prometheus and OpenTelemetry.
//!
//! | file | does |
//! |---|---|
//! | `day` | a day of UTC, the unit of an export |
//! | `row` | rows of the tables, whatever the store keeps them in |
//! | `source` | reads rows of one day out of the store: the one place that knows its documents |
//! | `http` | streams rows as lines of JSON |
//! | `parquet_file` | columns become one Parquet file |
//! | `folder` | Hive-style folders of such files, each replaced as a whole |
//! | `s3` | a bucket in place of the folder |
//! | `gauges` | how each bundle did in the last hour, for `/metrics` |
//! | `otlp`, `otlp_push` | the metrics as OTLP/HTTP with JSON, and the task that sends them |
//!
//! The command line writes the files, from the stream: the folder is on the machine of whoever asks for it.

mod day;
pub mod folder;
mod gauges;
pub mod http;
pub mod otlp;
mod otlp_push;
pub mod parquet_file;
pub mod row;
pub mod s3;
mod source;
#[cfg(test)]
pub(crate) mod tests;

pub use day::{Day, DayError};
pub use gauges::BundleGauges;
pub use otlp_push::{OtlpPush, OtlpSettings};
pub use source::Source;
