//! Telemetry in: deduplicated, aggregated, acknowledged once the store has it.
//!
//! [`dedup`] and [`aggregate`] are pure; [`worker`] is the one consumer. It takes what waits, merges
//! it in memory, writes records, acknowledgements, aggregates and finished attempts in **one**
//! transaction and only then acknowledges, so a kill between any two steps loses and repeats nothing.

mod aggregate;
mod dedup;
mod device_totals;
mod hours;
#[cfg(test)]
mod tests;
mod worker;

pub use aggregate::{AGGREGATE, Aggregate, BUCKET, aggregate_id, bucket_of};
pub use dedup::{Seen, Verdict};
pub use device_totals::{BundleTotals, DEVICE_TELEMETRY, DeviceTelemetry};
pub use hours::{Hours, Spread};
pub use worker::{Ingest, IngestQueue, IngestTotals, Overloaded, Surroundings};
