//! The driver with a real store; only the devices, and who they are, are played.

mod bench;
mod devices;
mod holds;
mod kills;
mod stores;
mod stories;
