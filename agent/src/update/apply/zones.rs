//! Time zones from the device's own database: `/usr/share/zoneinfo`, `$TZ`, `/etc/localtime`.

use edgefleet_shared::maintenance::{TimeZone, Zone};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// How long rules that were read hold: the database is updated, and devices are moved.
const FRESH: Duration = Duration::from_secs(60);
/// Zones remembered; a device is asked about a few.
const MAX_ZONES: usize = 64;

/// Rules by zone, `None` where the device does not know it.
#[derive(Default)]
pub(super) struct Zones(HashMap<String, (Instant, Option<TimeZone>)>);

impl Zones {
    pub(super) fn rules(&mut self, zone: &Zone) -> Option<&TimeZone> {
        let (key, now) = (zone.to_string(), Instant::now());
        let stale = self.0.get(&key).is_none_or(|(read, _)| now.duration_since(*read) >= FRESH);
        if stale {
            if self.0.len() >= MAX_ZONES {
                self.0.clear();
            }
            self.0.insert(key.clone(), (now, read(zone)));
        }
        self.0.get(&key).and_then(|(_, rules)| rules.as_ref())
    }
}

fn read(zone: &Zone) -> Option<TimeZone> {
    let known = match zone {
        Zone::Offset(_) => return zone.without_files(),
        Zone::DeviceLocal => TimeZone::try_system(),
        Zone::Named(name) => TimeZone::get(name),
    };
    known
        .inspect_err(|reason| tracing::warn!(%zone, %reason, "time zone unknown; its window stays closed"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the system's database, where it has one: most images do, those from scratch do not.
    #[test]
    fn the_systems_rules_are_the_ones_that_hold() {
        use edgefleet_shared::{maintenance::MaintenanceWindow, time::Timestamp};
        if !std::path::Path::new("/usr/share/zoneinfo/Europe/Berlin").exists() {
            return;
        }
        for (zone, at, opens) in [
            ("Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
            ("Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("America/New_York", "2026-03-08T00:00:00Z", "2026-03-08T07:00:00Z"),
            ("America/New_York", "2026-11-01T05:00:00Z", "2026-11-01T07:30:00Z"),
        ] {
            let zone: Zone = zone.parse().unwrap();
            let window = MaintenanceWindow::new("30 2 * * *".parse().unwrap(), 3_600, zone.clone()).unwrap();
            let rules = read(&zone).unwrap();
            let next = window.next_open(at.parse::<Timestamp>().unwrap(), &rules).unwrap();
            assert_eq!(next.to_string(), opens.replace('Z', ".000Z"), "{zone}");
        }
    }

    #[tokio::test]
    async fn zones_come_from_the_device_and_unknown_ones_are_none() {
        let mut zones = Zones::default();
        assert!(zones.rules(&Zone::Offset(7_200)).is_some());
        assert!(zones.rules(&Zone::Named("Atlantis/Capital".into())).is_none());
        for n in 0..500 {
            zones.rules(&Zone::Offset(n * 60));
        }
        assert!(zones.0.len() <= MAX_ZONES);
    }
}
