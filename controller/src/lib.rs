//! edgefleet: the controller of the fleet, and its command line.

pub mod api;
pub mod blobs;
pub mod broker;
pub mod clock;
pub mod fleet;
pub mod store;
