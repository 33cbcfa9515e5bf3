//! Stories told from end to end with real processes. Names are sentences; a story that measures time or
//! load lives in a module named `alone`, and nothing runs beside it.

mod backups;
mod bad_requests;
mod bad_sessions;
mod building;
mod captures;
mod clients;
mod clocks;
mod controllers;
mod engine_packs;
mod enrolment;
mod external_broker;
mod links;
mod quick_start;
mod rollouts;
mod shared_identity;
mod telling;
mod terminals;
mod trust;
mod updates;
