//! What the routes about running things share.

use super::{commands, rollouts, telemetry};
use crate::{
    assignments::Assignments, commands::Commands, driver::DriverHandle, fleet::Fleet, ingest::IngestTotals,
    link::EventTotals, registry::Registry, store::FleetStore, transfer::BlockServer,
};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

pub struct Operations {
    pub fleet: Arc<Fleet>,
    pub store: Arc<dyn FleetStore>,
    pub registry: Arc<Registry>,
    pub assignments: Assignments,
    pub driver: DriverHandle,
    pub commands: Commands,
    pub blocks: Arc<BlockServer>,
    pub ingest: Arc<IngestTotals>,
    pub events: Arc<EventTotals>,
}

/// Rollouts, telemetry, labels and commands.
pub fn routes(operations: Arc<Operations>) -> OpenApiRouter {
    OpenApiRouter::new()
        .merge(rollouts::routes())
        .merge(telemetry::routes())
        .merge(commands::routes())
        .with_state(operations)
}
