//! edgefleet: the controller of the fleet, and its command line.

pub mod assignments;
pub mod blobs;
pub mod broker;
pub mod clock;
pub mod desired;
pub mod driver;
pub mod ingest;
pub mod link;
pub mod registry;
pub mod signing;
pub mod store;
pub mod transfer;
pub mod api;
pub mod blobs;
pub mod broker;
pub mod clock;
pub mod fleet;
pub mod store;
