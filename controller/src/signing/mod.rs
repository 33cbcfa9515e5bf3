//! Keys, roles and signed metadata: who may publish, who assigns, and how that changes.
//!
//! [`chain`], [`proposal`] and [`release`] decide and touch nothing; [`key_file`], [`trust_store`], [`setup`] and
//! [`ceremony`] read and write files. Verification itself is the same code that runs on devices,
//! `edgefleet_shared::trust`. Trust state lives in plain files and never in the fleet store:
//!
//! ```text
//! <data>/keys/{trust,publisher,controller}.pk8   PKCS#8 in PEM, 0600; only `controller` has to be here
//! <data>/trust/1.json, 2.json, ...               signed trust documents, exact bytes, kept for ever
//! ```

pub mod ceremony;
pub mod chain;
mod durable;
pub mod http;
pub mod key_file;
pub mod proposal;
pub mod release;
pub mod setup;
pub mod signer;
pub mod summary;
pub mod trust_store;

pub use chain::TrustChain;
pub use key_file::KeyFileError;
pub use setup::{Setup, SetupError};
pub use signer::{OnlineKey, Signer, SignerError};
pub use summary::TrustSummary;
pub use trust_store::{Installed, TrustStore, TrustStoreError};
