//! The command line: one noun, one verb.

pub mod broker;
pub mod demo;
pub mod serve;
