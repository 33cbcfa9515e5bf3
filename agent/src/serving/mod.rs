//! Answers clients: the Open Inference Protocol over HTTP and gRPC, and the table of slots behind it.
//!
//! [`slots`] says which bundle answers, [`shadow`] runs a candidate beside it, [`oip`] turns bytes into tensors and
//! back (pure). The rest is the shell: [`listen`] takes connections on addresses and socket files, [`http`] and
//! `grpc` read and write their protocol, [`local`] takes questions of this program itself, `flight` runs and counts what
//! all of them ask for, `cache` remembers answers, `shm` holds shared memory.

mod budget;
mod cache;
mod describe;
mod error;
mod flight;
mod grpc;
pub mod http;
pub mod listen;
pub mod local;
pub mod oip;
pub mod pressure;
pub mod shadow;
mod shm;
pub mod slots;
mod state;
pub mod stats;

#[cfg(test)]
pub(crate) use http::tests::state as state_for_tests;
pub use slots::{ServedBundle, SlotTable};
