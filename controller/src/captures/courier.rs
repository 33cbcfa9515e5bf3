//! Decides where each label counts: at the device while that can still know the prediction, here otherwise. And lets
//! old captures go. Loses nothing by a kill: what is undecided is written down.

use super::{
    record::{CaptureRecord, Joined},
    service::Captures,
};
use crate::{clock, commands::Commands, fleet::Fleet};
use edgefleet_shared::{ids::DeviceId, message::Label, time::Timestamp};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// So long a label can be taken back without a trace.
const GRACE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(5);
/// Devices remember predictions this long at most.
const MEMORY: Duration = Duration::from_secs(14 * 86_400);
const EXPIRE: Duration = Duration::from_secs(3_600);

/// What is known of the device that made a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    is_enrolled: bool,
    is_online: bool,
    /// Whether it still runs since the prediction; absent if it never reported.
    same_boot: Option<bool>,
}

/// Where to count a label now, or `None` to wait.
fn place(seen: Seen, made: Timestamp, now: Timestamp) -> Option<Joined> {
    let Seen { is_enrolled, is_online, same_boot } = seen;
    match same_boot {
        _ if !is_enrolled || now.since(made) > MEMORY => Some(Joined::Controller),
        // Its memory of predictions ends with its process.
        Some(false) => Some(Joined::Controller),
        Some(true) if is_online => Some(Joined::Device),
        Some(true) | None => None,
    }
}

pub struct Courier {
    pub captures: Arc<Captures>,
    pub fleet: Arc<Fleet>,
    pub commands: Commands,
}

impl Courier {
    /// Until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let (mut look, mut expire) = (tokio::time::interval(LOOK), tokio::time::interval(EXPIRE));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => self.deliver().await,
                _ = expire.tick() => match self.captures.expire(clock::now()).await {
                    Ok(0) => {}
                    Ok(expired) => tracing::info!(expired, "captures.expire"),
                    Err(error) => tracing::error!(%error, "captures.expire"),
                },
            }
        }
    }

    fn seen(&self, record: &CaptureRecord) -> Seen {
        let device = &record.document.prediction.device;
        let known = self.fleet.enrolled_device(device);
        let status = known.as_ref().ok().map(|known| &known.status);
        let reported = status.and_then(|status| status.reported.as_ref());
        Seen {
            is_enrolled: known.is_ok(),
            is_online: status.is_some_and(|status| status.online),
            same_boot: reported.map(|reported| reported.boot == record.boot()),
        }
    }

    async fn deliver(&self) {
        let now = clock::now();
        let due = match self.captures.undecided(GRACE, now).await {
            Ok(due) => due,
            Err(error) => return tracing::error!(%error, "captures.undecided"),
        };
        let mut to_devices: BTreeMap<DeviceId, Vec<CaptureRecord>> = BTreeMap::new();
        for record in due {
            match place(self.seen(&record), record.received, now) {
                Some(Joined::Device) => {
                    let device = record.document.prediction.device.clone();
                    to_devices.entry(device).or_default().push(record);
                }
                Some(joined) => self.decided(&record, joined).await,
                None => {}
            }
        }
        for (device, records) in to_devices {
            let label = |record: &CaptureRecord| {
                let label = record.label.as_ref()?.label.clone()?;
                Some(Label { prediction: record.document.prediction.clone(), label })
            };
            let labels: Vec<_> = records.iter().filter_map(label).collect();
            // Sent and then written down: a kill in between sends it again, and the device counts it once.
            match self.commands.label(&device, labels).await {
                Ok(()) => {
                    for record in &records {
                        self.decided(record, Joined::Device).await;
                    }
                }
                Err(error) => tracing::debug!(%device, %error, "captures.label"),
            }
        }
    }

    async fn decided(&self, record: &CaptureRecord, joined: Joined) {
        if let Err(error) = self.captures.decided(record, joined).await {
            tracing::error!(digest = %record.digest, %error, "captures.decided");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_go_where_the_prediction_is_still_known() {
        let made = Timestamp::from_secs(1_800_000_000);
        let at = |secs| made + Duration::from_secs(secs);
        let seen = |is_enrolled, is_online, same_boot| Seen { is_enrolled, is_online, same_boot };
        for (device, now, wanted) in [
            (seen(true, true, Some(true)), at(60), Some(Joined::Device)),
            (seen(true, false, Some(true)), at(60), None),
            (seen(true, true, None), at(60), None),
            (seen(true, true, Some(false)), at(60), Some(Joined::Controller)),
            (seen(false, false, Some(true)), at(60), Some(Joined::Controller)),
            (seen(true, false, Some(true)), at(15 * 86_400), Some(Joined::Controller)),
        ] {
            assert_eq!(place(device, made, now), wanted, "{device:?}");
        }
    }
}
