//! Hands blobs to devices block by block, within byte budgets.
//!
//! [`budget`] is pure; [`server`] answers fetch requests of the broker. What a device may fetch is the
//! [`Library`]'s decision: blobs of pushed bundles and versions of the trust document, nothing else.

mod budget;
mod server;

pub use budget::{Budget, Limits};
pub use server::{BlockServer, Library, LibraryError, TransferTotals};
