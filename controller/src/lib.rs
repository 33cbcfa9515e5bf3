//! edgefleet: the controller of the fleet, and its command line.

pub mod broker;
pub mod clock;
