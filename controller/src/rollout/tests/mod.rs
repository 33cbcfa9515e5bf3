//! Properties and stories of the core, on a fleet of simple virtual devices.

mod fleet;
mod handout;
mod membership;
mod properties;
mod stories;
