//! edgefleet: the controller of the fleet, and its command line.

pub mod clock;
pub mod registry;
pub mod signing;
