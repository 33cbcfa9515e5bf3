//! What the gates are worth, measured: tables and plots of `docs/evidence.md`.

mod measure;
mod page;
mod stats;
pub(crate) mod svg;

pub use measure::{Effort, Measured, Row, as_measured, measure, replay};
pub use page::{File, page};
pub use stats::Rate;
