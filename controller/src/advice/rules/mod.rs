//! The rules, by family. Each is a pure function of the evidence; without its part of it, it is silent.

pub(super) mod audits;
pub(super) mod calibration;
pub(super) mod captures;
pub(super) mod classes;
pub(super) mod engines;
pub(super) mod faults;
pub(super) mod inputs;
pub(super) mod latency;
pub(super) mod release;
pub(super) mod season;
pub(super) mod shadow;
pub(super) mod slices;
