//! The pages over real TLS, on a store with something in it.

mod browser;
mod filled;
mod people;
mod seen;
