//! Harness of the end-to-end stories: real processes, real TLS, faults between them.
//!
//! A story starts with a [`place::Place`] (a folder of its own), starts processes in it, and ends with
//! [`place::Place::end`]. Without that end (a failed assertion, an error) the logs are printed and the
//! folder stays. Every process is killed when its handle is dropped. Nothing here builds anything.

pub mod agent;
pub mod api;
pub mod binaries;
pub mod cli;
pub mod controller;
pub mod faults;
pub mod fleet;
pub mod inference;
pub mod models;
pub mod mosquitto;
pub mod place;
pub mod plans;
pub mod process;
pub mod proxy;
pub mod session;
pub mod waiting;

/// Installs the one crypto provider; every story does so first, through [`place::Place::new`].
pub(crate) fn install_crypto() {
    // A second story of the same process finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
