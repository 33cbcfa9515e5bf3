//! Sends what waits in the outbox, oldest first, one message in flight, until the controller's store
//! says it has it.

use super::{
    LinkDown, LinkHandle, QoS,
    budget::{Allowance, Budget},
};
use crate::store::outbox::Outbox;
use bytes::Bytes;
use edgefleet_shared::{
    desired::Settings,
    ids::{BootId, DeviceId},
    message,
    telemetry::{
        Ack, BootAck, Record, RecordBody, TelemetryBatch,
        batch::{MAX_RECORDS, TELEMETRY_SCHEMA},
    },
    topics::{Channel, MAX_PAYLOAD_BYTES},
};
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{debug, warn};

/// Largest message on the wire, compressed.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// Records of one message before compression; JSON shrinks about tenfold.
const MAX_RAW_BYTES: usize = 1 << 20;
/// Without an acknowledgement for this long the same records go out again, then after twice as long, and so on: a
/// controller that is silent must not cost a message each time.
const ACK_PATIENCE: Duration = Duration::from_secs(30);
/// Doublings of it: up to 16 minutes.
const MAX_DOUBLINGS: u32 = 5;
/// How often what must wait is added up.
const THIN_OUT_EVERY: Duration = Duration::from_secs(3_600);
/// Records beyond which waiting ones are added up by the day.
const LONG_QUEUE: usize = MAX_RECORDS;

/// What the sender is told.
#[derive(Debug)]
pub enum Signal {
    Connected,
    /// A message from the `ack` topic.
    Ack(Bytes),
    /// Send now, whatever is thought to be in flight.
    Again,
}

/// What telemetry may cost.
pub struct Cost {
    pub settings: watch::Receiver<Settings>,
    /// The device's owner says that its link is paid by volume.
    pub metered: bool,
}

struct InFlight {
    records: Vec<(BootId, u64)>,
    until: Instant,
}

/// How long to wait for an acknowledgement after so many in vain.
fn patience(in_vain: u32) -> Duration {
    ACK_PATIENCE * (1 << in_vain.min(MAX_DOUBLINGS))
}

/// Records wait for company.
#[derive(Default)]
struct Hold {
    since: Option<Duration>,
    released: bool,
}

impl Hold {
    /// Whether what waits goes on waiting; once released it all goes, until nothing is left.
    fn holds(&mut self, nothing: bool, urgent: bool, hold: Duration, now: Duration) -> bool {
        if nothing {
            *self = Self::default();
            return true;
        }
        let since = *self.since.get_or_insert(now);
        self.released |= urgent || now.saturating_sub(since) >= hold;
        !self.released
    }

    fn release(&mut self) {
        self.released = true;
    }
}

/// What became of an attempt to send.
enum Sent {
    /// These, in a message of so many bytes.
    Message {
        records: Vec<(BootId, u64)>,
        bytes: usize,
    },
    /// Nothing waits, or there is no connection.
    Nothing,
    /// The next record is larger than what may be sent.
    TooLittleLeft,
    Failed,
}

/// Runs until the other end of `signals` is gone.
pub async fn send_telemetry(
    outbox: Outbox,
    link: LinkHandle,
    device: DeviceId,
    mut signals: mpsc::Receiver<Signal>,
    cost: Cost,
) {
    let started = Instant::now();
    let mut budget = Budget::default();
    let mut in_flight: Option<InFlight> = None;
    let mut in_vain = 0u32;
    let mut thinned: Option<Duration> = None;
    let mut hold = Hold::default();
    loop {
        let until = in_flight.as_ref().map_or_else(|| Instant::now() + ACK_PATIENCE, |sent| sent.until);
        tokio::select! {
            signal = signals.recv() => match signal {
                None => return,
                Some(Signal::Connected | Signal::Again) => {
                    (in_flight, in_vain) = (None, 0);
                    hold.release();
                }
                Some(Signal::Ack(raw)) => {
                    take_ack(&outbox, &link, &raw, &mut in_flight).await;
                    in_vain = if in_flight.is_none() { 0 } else { in_vain };
                }
            },
            () = outbox.appended(), if in_flight.is_none() => {}
            () = tokio::time::sleep_until(until) => {
                if in_flight.take().is_some() {
                    in_vain = in_vain.saturating_add(1);
                    debug!("telemetry was not acknowledged, sending it again");
                }
            }
        }
        let (telemetry, now) = (cost.settings.borrow().telemetry, started.elapsed());
        let urgent = outbox.is_urgent() || outbox.len() >= LONG_QUEUE;
        if in_flight.is_none()
            && link.is_connected()
            && !hold.holds(outbox.is_empty(), urgent, Duration::from_secs(telemetry.hold_secs), now)
        {
            let mut allowance = budget.allows(&telemetry, cost.metered, now);
            let mut sent = send(&outbox, &link, &device, allowance).await;
            if matches!(sent, Sent::TooLittleLeft) {
                budget.exhaust(&telemetry, now);
                allowance = Allowance::Essential;
                sent = send(&outbox, &link, &device, allowance).await;
            }
            let until = Instant::now() + patience(in_vain);
            in_flight = match sent {
                Sent::Message { records, bytes } => {
                    budget.spend(bytes, now);
                    Some(InFlight { records, until })
                }
                Sent::Failed => Some(InFlight { records: vec![], until }),
                Sent::Nothing | Sent::TooLittleLeft => None,
            };
            let is_due = thinned.is_none_or(|at| now.saturating_sub(at) >= THIN_OUT_EVERY);
            if allowance == Allowance::Essential && is_due {
                thinned = Some(now);
                let merged = outbox.thin_out(LONG_QUEUE).await;
                debug!(merged, "telemetry that must wait was added up");
            }
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

async fn waiting(outbox: &Outbox, allowance: Allowance) -> Vec<Record> {
    match allowance {
        Allowance::Upto(_) => outbox.peek(MAX_RAW_BYTES, MAX_RECORDS).await,
        Allowance::Essential => outbox.peek_essential(MAX_RAW_BYTES, MAX_RECORDS).await,
    }
}

async fn send(outbox: &Outbox, link: &LinkHandle, device: &DeviceId, allowance: Allowance) -> Sent {
    let most = match allowance {
        Allowance::Upto(left) => MAX_MESSAGE_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX)),
        Allowance::Essential => MAX_MESSAGE_BYTES,
    };
    let mut records = waiting(outbox, allowance).await;
    loop {
        if records.is_empty() {
            return Sent::Nothing;
        }
        let numbers: Vec<_> = records.iter().map(|record| (record.boot, record.seq)).collect();
        let batch = TelemetryBatch { schema: TELEMETRY_SCHEMA, device: device.clone(), records };
        match batch.to_bytes() {
            Ok(bytes) if bytes.len() <= most => {
                let length = bytes.len();
                let sent = link.publish(Channel::Telemetry, bytes, false, QoS::AtLeastOnce).await;
                return match sent {
                    Ok(()) => Sent::Message { records: numbers, bytes: length },
                    Err(LinkDown::Offline) => Sent::Nothing, // tried again when connected
                    Err(error) => {
                        warn!(%error, "telemetry was not sent");
                        Sent::Failed
                    }
                };
            }
            Ok(_) | Err(_) if batch.records.len() > 1 => {
                records = batch.records;
                records.truncate(records.len() / 2);
            }
            Ok(bytes) if bytes.len() <= MAX_MESSAGE_BYTES => return Sent::TooLittleLeft,
            Ok(_) | Err(_) => {
                give_up(outbox, &batch.records[0]).await;
                records = waiting(outbox, allowance).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_company_goes_together_and_what_is_urgent_at_once() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
        let mut hold = Hold::default();
        assert!(hold.holds(true, false, hour, minute), "nothing waits");
        assert!(!Hold::default().holds(false, false, Duration::ZERO, minute), "not asked to wait");
        assert!(hold.holds(false, false, hour, minute));
        assert!(hold.holds(false, false, hour, minute * 59));
        assert!(!hold.holds(false, false, hour, minute * 61));
        assert!(!hold.holds(false, false, hour, minute * 61), "all of it, in as many messages as it takes");
        assert!(hold.holds(true, false, hour, minute * 62));
        assert!(hold.holds(false, false, hour, minute * 63), "the next ones wait anew");
        assert!(!hold.holds(false, true, hour, minute * 64), "an urgent one takes all along");
        hold = Hold::default();
        hold.release();
        assert!(!hold.holds(false, false, hour, minute), "after a connection");
    }

    #[test]
    fn silence_is_answered_ever_more_rarely() {
        let minutes: Vec<_> = (0..8).map(|n| patience(n).as_secs_f64() / 60.0).collect();
        assert_eq!(minutes, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]);
        assert_eq!(patience(u32::MAX), patience(5));
    }
}
