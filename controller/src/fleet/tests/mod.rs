//! The fleet without HTTP: what enrolment, renewal and removal promise.

mod authority;
mod devices;
mod enrolment;
mod people;
mod requests;
