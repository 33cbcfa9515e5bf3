//! Sends what waits in the outbox, oldest first, one message in flight, until the controller's store
//! says it has it.

use super::{LinkDown, LinkHandle, QoS};
use crate::store::outbox::Outbox;
use bytes::Bytes;
use edgefleet_shared::{
    ids::{BootId, DeviceId},
    message,
    telemetry::{
        Ack, BootAck, Record, RecordBody, TelemetryBatch,
        batch::{MAX_RECORDS, TELEMETRY_SCHEMA},
    },
    topics::{Channel, MAX_PAYLOAD_BYTES},
};
use std::time::Duration;
use tokio::{sync::mpsc, time::Instant};
use tracing::{debug, warn};

/// Largest message on the wire, compressed.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// Records of one message before compression; JSON shrinks about tenfold.
const MAX_RAW_BYTES: usize = 1 << 20;
/// Without an acknowledgement for this long the same records go out again.
const ACK_PATIENCE: Duration = Duration::from_secs(30);

/// What the sender is told.
#[derive(Debug)]
pub enum Signal {
    Connected,
    /// A message from the `ack` topic.
    Ack(Bytes),
    /// Send now, whatever is thought to be in flight.
    Again,
}

struct InFlight {
    records: Vec<(BootId, u64)>,
    until: Instant,
}

/// Runs until the other end of `signals` is gone.
pub async fn send_telemetry(
    outbox: Outbox,
    link: LinkHandle,
    device: DeviceId,
    mut signals: mpsc::Receiver<Signal>,
) {
    let mut in_flight: Option<InFlight> = None;
    loop {
        let until = in_flight.as_ref().map_or_else(|| Instant::now() + ACK_PATIENCE, |sent| sent.until);
        tokio::select! {
            signal = signals.recv() => match signal {
                None => return,
                Some(Signal::Connected | Signal::Again) => in_flight = None,
                Some(Signal::Ack(raw)) => take_ack(&outbox, &link, &raw, &mut in_flight).await,
            },
            () = outbox.appended(), if in_flight.is_none() => {}
            () = tokio::time::sleep_until(until) => {
                if in_flight.take().is_some() {
                    debug!("telemetry was not acknowledged, sending it again");
                }
            }
        }
        if in_flight.is_none() && link.is_connected() && !outbox.is_empty() {
            in_flight = send(&outbox, &link, &device).await;
        }
    }
}

async fn take_ack(outbox: &Outbox, link: &LinkHandle, raw: &[u8], in_flight: &mut Option<InFlight>) {
    let ack: Ack = match message::parse(raw, TELEMETRY_SCHEMA, MAX_PAYLOAD_BYTES) {
        Ok(ack) => ack,
        Err(error) => return link.malformed("ack", &error),
    };
    let covered = |boot: &BootId, seq: u64| ack.boots.iter().any(|of| of.boot == *boot && of.covers(seq));
    if in_flight.as_ref().is_some_and(|sent| sent.records.iter().all(|(boot, seq)| covered(boot, *seq))) {
        *in_flight = None;
    }
    outbox.ack(ack).await;
}

async fn send(outbox: &Outbox, link: &LinkHandle, device: &DeviceId) -> Option<InFlight> {
    let mut records = outbox.peek(MAX_RAW_BYTES, MAX_RECORDS).await;
    loop {
        if records.is_empty() {
            return None;
        }
        let numbers: Vec<_> = records.iter().map(|record| (record.boot, record.seq)).collect();
        let batch = TelemetryBatch { schema: TELEMETRY_SCHEMA, device: device.clone(), records };
        match batch.to_bytes() {
            Ok(bytes) if bytes.len() <= MAX_MESSAGE_BYTES => {
                let sent = link.publish(Channel::Telemetry, bytes, false, QoS::AtLeastOnce).await;
                return match sent {
                    Ok(()) => Some(InFlight { records: numbers, until: Instant::now() + ACK_PATIENCE }),
                    Err(LinkDown::Offline) => None, // tried again when connected
                    Err(error) => {
                        warn!(%error, "telemetry was not sent");
                        Some(InFlight { records: vec![], until: Instant::now() + ACK_PATIENCE })
                    }
                };
            }
            Ok(_) | Err(_) if batch.records.len() > 1 => {
                records = batch.records;
                records.truncate(records.len() / 2);
            }
            Ok(_) | Err(_) => {
                give_up(outbox, &batch.records[0]).await;
                records = outbox.peek(MAX_RAW_BYTES, MAX_RECORDS).await;
            }
        }
    }
}

/// A record that fits no message would block all behind it.
async fn give_up(outbox: &Outbox, record: &Record) {
    warn!(seq = record.seq, "a telemetry record fits no message and is dropped");
    let only = BootAck { boot: record.boot, contiguous: 0, extra: vec![(record.seq, record.seq)] };
    outbox.ack(Ack { schema: TELEMETRY_SCHEMA, boots: vec![only] }).await;
    let body = RecordBody::Dropped { records: 1, reason: "it fits no message".into() };
    if let Err(error) = outbox.append_soon(body) {
        warn!(%error, "the loss of a telemetry record was not recorded");
    }
}
