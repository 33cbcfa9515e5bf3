//! The command line.

pub mod backup;
