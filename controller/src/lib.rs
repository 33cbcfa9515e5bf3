//! Controller.
pub mod store;
