//! edgefleet: the controller of the fleet, and its command line.

pub mod blobs;
pub mod clock;
pub mod store;
