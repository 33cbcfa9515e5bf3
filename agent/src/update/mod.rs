//! Moves a slot from one bundle to the next and back: a pure machine and the shell that performs it.
//!
//! [`machine`] decides; [`apply`] performs its effects in order; [`transfer`] and [`https`] fetch into
//! [`part`] files; [`bundles`] knows where everything lies.

pub mod apply;
pub mod bundles;
mod fetch;
pub mod https;
pub mod machine;
pub mod part;
pub mod transfer;
pub mod world;

#[cfg(test)]
pub(crate) mod testing;

pub use apply::{
    Command, DeviceReport, Host, InstalledPack, Probe, Reports, SlotHealth, Updater, UpdaterConfig, World,
    installed_pack,
};
pub use bundles::{BundleFiles, BundleStore};
pub use https::{HttpsSource, RangeSource};
pub use transfer::{BlockLink, Blocks, LinkDown};
pub use world::{Loadable, ShadowStatus};
