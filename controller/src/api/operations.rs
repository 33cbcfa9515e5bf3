//! What the routes about running things share.

use super::{abilities, commands, findings, freezes, rollouts, telemetry};
use crate::{
    commands::Commands,
    desired::DesiredStates,
    driver::DriverHandle,
    findings::Findings,
    fleet::Fleet,
    ingest::IngestTotals,
    link::EventTotals,
    registry::Registry,
    rollouts::{Calendars, Rollouts},
    store::FleetStore,
    transfer::{BlockServer, Limits},
};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

pub struct Operations {
    pub fleet: Arc<Fleet>,
    pub store: Arc<dyn FleetStore>,
    pub registry: Arc<Registry>,
    pub rollouts: Rollouts,
    pub calendar: Calendars,
    /// What the block server gives each device and all together.
    pub links: Limits,
    pub driver: DriverHandle,
    pub commands: Commands,
    pub blocks: Arc<BlockServer>,
    pub ingest: Arc<IngestTotals>,
    pub events: Arc<EventTotals>,
    pub findings: Arc<Findings>,
    pub states: DesiredStates,
}

/// Rollouts, telemetry, labels, commands and findings.
pub fn routes(operations: Arc<Operations>) -> OpenApiRouter {
    OpenApiRouter::new()
        .merge(rollouts::routes())
        .merge(abilities::routes())
        .merge(freezes::routes())
        .merge(telemetry::routes())
        .merge(commands::routes())
        .merge(findings::routes())
        .with_state(operations)
}
