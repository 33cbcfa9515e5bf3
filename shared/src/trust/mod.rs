//! Who may say what, and how a device checks it.
//!
//! TUF's roles and Uptane's split of owners in three DSSE documents: [`Trust`] (the keys),
//! [`Release`] (publishers: this manifest is `digits@3`) and the desired state (the controller: this
//! device runs that release). A device acts only on what **both** signed. [`envelope`] checks
//! signatures over exact bytes before anything is parsed; [`device`] holds what a device must
//! remember and decides what it accepts.

pub mod device;
pub mod documents;
pub mod envelope;
pub mod keys;

pub use device::{Accepted, DeviceTrust};
pub use documents::{Release, Role, RoleName, Trust};
pub use envelope::{Envelope, TrustError, open, seal};
pub use keys::{KeyId, PublicKey, SigningKey};
