//! Controller.
pub mod blobs;
pub mod store;
