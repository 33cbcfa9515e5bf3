//! The command line: each command translates arguments into a call of the API or into files.

pub mod client;
pub mod context;
pub mod failure;
pub mod keys;
pub mod model;
#[cfg(test)]
mod tests;
pub mod trust;
mod verdict;
