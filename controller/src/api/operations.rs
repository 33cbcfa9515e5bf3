//! What the routes about running things share.

use super::{abilities, commands, findings, freezes, lookout, monitor, rollouts, settings, take, telemetry};
use crate::{
    commands::Commands,
    desired::DesiredStates,
    driver::DriverHandle,
    findings::Findings,
    fleet::Fleet,
    ingest::{IngestTotals, Monitoring},
    link::EventTotals,
    lookout::Reading,
    registry::Registry,
    rollouts::{Calendars, Rollouts},
    settings::SettingsRules,
    store::FleetStore,
    taking::Taking,
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
    pub monitoring: Monitoring,
    pub events: Arc<EventTotals>,
    pub findings: Arc<Findings>,
    pub states: DesiredStates,
    pub settings: SettingsRules,
    pub lookout: Reading,
    pub taking: Taking,
}

/// Rollouts, telemetry, labels, commands, findings and settings.
pub fn routes(operations: Arc<Operations>) -> OpenApiRouter {
    OpenApiRouter::new()
        .merge(rollouts::routes())
        .merge(abilities::routes())
        .merge(freezes::routes())
        .merge(telemetry::routes())
        .merge(monitor::routes())
        .merge(commands::routes())
        .merge(findings::routes())
        .merge(settings::routes())
        .merge(lookout::routes())
        .merge(take::routes())
        .with_state(operations)
}
