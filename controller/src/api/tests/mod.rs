//! The API over real TLS on a real port.

mod blobs;
mod connections;
mod description;
mod enrolment;
mod matrix;
mod people;
mod server;
