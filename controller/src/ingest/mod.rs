//! Telemetry in: deduplicated, added up, acknowledged once the store has it; kept ever more coarsely; read again.
//!
//! Pure: [`dedup`], [`aggregate`], [`profile_totals`] and [`thin`] (adding up), [`versus`], [`health`], [`cohort`], [`level`] (ids and buckets),
//! [`spent`] (what one device may weigh), [`device_profile`], [`hours`], [`rollup`] (what grows old), [`settings`].
//! [`worker`] is the one consumer. It takes what waits, merges it in memory ([`taking`], [`working`]), writes records,
//! acknowledgements, aggregates, profiles and finished attempts in **one** transaction and only then acknowledges, so a
//! kill between any two steps loses and repeats nothing. [`keeper`] makes coarse buckets of old ones, [`monitoring`] is
//! what others ask.

mod aggregate;
mod cohort;
mod dedup;
mod device_profile;
mod device_totals;
mod health;
mod hours;
mod keeper;
mod level;
mod monitoring;
mod profile_totals;
mod reading;
mod rollup;
mod settings;
mod spent;
mod taking;
#[cfg(test)]
mod tests;
mod thin;
mod versus;
mod worker;
mod working;

pub use aggregate::{AGGREGATE, AGGREGATE_DAY, AGGREGATE_HOUR, Aggregate, AgreementTotals, LabelTotals};
pub use cohort::{Cohort, CohortChoice, CohortError};
pub use dedup::{Seen, Verdict};
pub use device_profile::{
    DEVICE_PROFILE, DeviceProfile, DeviceProfileError, Recent, Usual, device_profile_id,
};
pub use device_totals::{BundleTotals, DEVICE_TELEMETRY, DeviceTelemetry};
pub use health::{CpuSeen, HealthTotals};
pub use hours::{Hours, Spread};
pub use keeper::{Keeper, Kept};
pub use level::{BucketId, BucketIdError, Level, Summed, start_of};
pub use monitoring::{MAX_POINTS, MonitorError, Monitoring, Point, Watched};
pub use profile_totals::{PROFILE_DAY, PROFILE_HOUR, ProfileTotals};
pub use reading::{Range, total, visit};
pub use settings::{ChoiceError, MonitorSettings, Retention};
pub use spent::ROWS_PER_DEVICE_HOUR;
pub use versus::{DeviceCount, VersusByCandidate, VersusTotals};
pub use worker::{Ingest, IngestQueue, IngestTotals, Overloaded, Surroundings};
pub use working::COHORTS;
