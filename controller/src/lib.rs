//! edgefleet: the controller of the fleet, and its command line.

pub mod blobs;
pub mod broker;
pub mod clock;
pub mod store;
