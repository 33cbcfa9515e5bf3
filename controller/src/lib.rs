//! edgefleet: the controller of the fleet, and its command line.

pub mod api;
pub mod backup;
pub mod blobs;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod demo;
pub mod desired;
pub mod driver;
pub mod evidence;
pub mod findings;
pub mod fleet;
pub mod ingest;
pub mod link;
pub mod registry;
pub mod rollout;
pub mod rollouts;
pub mod server;
pub mod signing;
pub mod simulate;
pub mod store;
pub mod transfer;
