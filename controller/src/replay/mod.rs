//! A drift replay: a virtual fleet answers real data, clean and shifted, hour by hour, through the code that watches
//! real fleets ([`drift`](crate::drift), [`estimate`](crate::estimate), [`advice`](crate::advice)).
//!
//! Pure: rows in, figures out, the same seed the same figures. Rows and answers come from real models
//! (`models/monitoring/recipe.py`); what is virtual is which device sees which row when. `docs/monitoring.md` is made of
//! it.
//!
//! | file | what |
//! |---|---|
//! | [`rows`] | the input |
//! | `fleet` | virtual devices: which rows, and the profile an agent would make of them |
//! | `reference` | the baseline of the reference rows |
//! | [`scenario`] | what goes wrong, where, and which rules would be right |
//! | `watch` | one hour through drift, estimates and advice |
//! | [`outcome`] | delays, false alarms, errors of the estimates |
//! | [`page`] | tables and plots |

mod fleet;
pub mod outcome;
pub mod page;
mod reference;
pub mod rows;
pub mod scenario;
#[cfg(test)]
mod tests;
mod watch;

pub use outcome::{Outcome, measure, run};
pub use rows::{DataSet, RowsError};
pub use scenario::{Effort, Scenario};
