//! What the running parts add to `/metrics`. All labels are closed sets.

use crate::{
    api::{
        metrics::{MetricKind, Metrics},
        operations::Operations,
    },
    broker::Broker,
};
use std::sync::{Arc, atomic::Ordering::Relaxed};

pub(super) fn add(metrics: &Metrics, operations: &Arc<Operations>, broker: &Arc<dyn Broker>) {
    let (operations, broker) = (operations.clone(), broker.clone());
    metrics.add_source(Box::new(move |text| {
        let (ingest, events) = (&operations.ingest, &operations.events);
        for (name, help, value) in [
            ("edgefleet_mqtt_messages_total", "Messages of devices", events.messages.load(Relaxed)),
            (
                "edgefleet_mqtt_malformed_total",
                "Messages refused as malformed",
                events.malformed.load(Relaxed),
            ),
            (
                "edgefleet_mqtt_takeovers_total",
                "Sessions displaced by the same identity",
                events.takeovers.load(Relaxed),
            ),
            (
                "edgefleet_mqtt_shed_total",
                "Messages of devices that sent faster than they could be taken",
                events.shed.load(Relaxed),
            ),
            ("edgefleet_telemetry_messages_total", "Telemetry messages taken", ingest.messages.load(Relaxed)),
            ("edgefleet_telemetry_records_total", "Telemetry records stored", ingest.records.load(Relaxed)),
            (
                "edgefleet_telemetry_repeats_total",
                "Telemetry records seen before",
                ingest.repeats.load(Relaxed),
            ),
            (
                "edgefleet_telemetry_refused_total",
                "Telemetry messages refused as malformed",
                ingest.refused.load(Relaxed),
            ),
            (
                "edgefleet_telemetry_split_total",
                "Rounds of telemetry too large for one transaction",
                ingest.split.load(Relaxed),
            ),
            (
                "edgefleet_telemetry_deferred_total",
                "Telemetry messages turned away, to come again",
                ingest.overloaded.load(Relaxed),
            ),
            (
                "edgefleet_transfer_bytes_total",
                "Blob bytes sent to devices over MQTT",
                operations.blocks.sent_bytes(),
            ),
            (
                "edgefleet_fetch_refused_total",
                "Requests for blocks refused as malformed",
                operations.blocks.refused(),
            ),
        ] {
            text.single(name, MetricKind::Counter, help, value);
        }
        let name = "edgefleet_findings";
        text.family(name, MetricKind::Gauge, "Findings that wait for a person");
        for (code, count) in operations.findings.counts() {
            text.sample(name, &[("code", code.as_str())], count);
        }
        if let Some(connected) = broker.connected() {
            text.single("edgefleet_mqtt_connections", MetricKind::Gauge, "Devices connected now", connected);
        }
    }));
}
