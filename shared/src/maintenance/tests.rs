use super::*;
use proptest::prelude::*;

fn window(cron: &str, for_secs: u64) -> MaintenanceWindow {
    MaintenanceWindow::new(cron.parse().unwrap(), for_secs, Zone::DeviceLocal).unwrap()
}
/// The rules since 2007 and since 1996, written out: tests need no zone files.
fn new_york() -> TimeZone {
    TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap()
}
fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}
fn utc(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn windows_open_by_the_local_clock_through_every_change_of_it() {
    // zone, schedule, asked at, next opening
    let (ny, be) = (new_york(), berlin());
    for (rules, cron, at, opens) in [
        (&be, "0 2 * * *", "2026-11-23T00:00:00Z", "2026-11-23T01:00:00Z"),
        (&be, "0 2 * * *", "2026-11-23T01:00:00Z", "2026-11-24T01:00:00Z"),
        (&be, "0 2 * * *", "2026-07-01T12:00:00Z", "2026-07-02T00:00:00Z"),
        // 2026-03-29, 02:00 to 03:00 does not exist: the next minute that does is 03:00 CEST.
        (&be, "30 2 * * *", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
        (&be, "0 2,3 * * *", "2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"),
        // 2026-10-25, 02:00 to 03:00 comes twice: the first time counts.
        (&be, "30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
        (&be, "30 2 * * *", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        (&be, "0 3 * * *", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"),
        (&ny, "15 2 * * *", "2026-03-08T00:00:00Z", "2026-03-08T07:00:00Z"),
        (&ny, "30 1 * * *", "2026-11-01T00:00:00Z", "2026-11-01T05:30:00Z"),
        (&ny, "30 1 * * *", "2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"),
        (&ny, "0 22 * * fri", "2026-11-23T00:00:00Z", "2026-11-28T03:00:00Z"),
        (&TimeZone::UTC, "0 0 29 feb *", "2026-11-23T00:00:00Z", "2028-02-29T00:00:00Z"),
        (&TimeZone::UTC, "0 0 29 feb *", "2097-01-01T00:00:00Z", "2104-02-29T00:00:00Z"),
    ] {
        let window = window(cron, 1_800);
        let next = window.next_open(utc(at), rules).unwrap();
        assert_eq!(next, utc(opens), "{cron} after {at}");
        let second = std::time::Duration::from_secs(1);
        assert!(window.is_open(next, rules), "{cron}");
        assert!(window.is_open(next + second * 1_799, rules), "{cron}");
        assert!(!window.is_open(next + second * 1_800, rules), "{cron}");
    }
}

#[test]
fn a_repeated_hour_opens_once() {
    let window = window("0 2 * * *", 1_800);
    let rules = berlin();
    let open: Vec<_> = (0..12)
        .map(|n| utc("2026-10-25T00:00:00Z") + std::time::Duration::from_secs(n * 600))
        .filter(|at| window.is_open(*at, &rules))
        .collect();
    assert_eq!(open.len(), 3, "half an hour, from the first 02:00 on: {open:?}");
    assert_eq!(open[0], utc("2026-10-25T00:00:00Z"));
}

#[test]
fn the_wire_form_is_checked_where_it_comes_in() {
    let json = r#"{"cron":"0 2 * * *","for_secs":7200,"zone":"Europe/Berlin","download":"inside"}"#;
    let read: MaintenanceWindow = serde_json::from_str(json).unwrap();
    assert_eq!((read.download, read.ignore_window), (Download::Inside, false));
    assert_eq!(serde_json::to_string(&read).unwrap(), json);
    let short: MaintenanceWindow = serde_json::from_str(r#"{"cron":"0 2 * * *","for_secs":1800}"#).unwrap();
    assert_eq!((short.zone, short.download), (Zone::DeviceLocal, Download::Anytime));
    for bad in [
        r#"{"cron":"0 2 * * *","for_secs":1799}"#,
        r#"{"cron":"0 2 * * *","for_secs":604801}"#,
        r#"{"cron":"0 2 * *","for_secs":7200}"#,
        r#"{"cron":"0 2 * * *","for_secs":7200,"zone":"../../etc/passwd"}"#,
    ] {
        assert!(serde_json::from_str::<MaintenanceWindow>(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_ends_of_time_are_closed_and_do_not_panic() {
    let last = Timestamp::from_millis(u64::MAX);
    for at in [Timestamp::EPOCH, last] {
        for cron in ["* * * * *", "0 0 29 2 *", "59 23 31 12 *"] {
            let window = window(cron, MAX_SECS);
            let _ = (window.is_open(at, &berlin()), window.next_open(at, &berlin()));
        }
    }
    assert_eq!(window("* * * * *", MIN_SECS).next_open(last, &berlin()), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Against the plain reading: every minute of the days before, one after the other.
    #[test]
    fn open_means_an_opening_less_than_the_length_ago(
        minute in 0u32..60, hours in prop::collection::btree_set(0u32..24, 1..4), weekday in 0u32..7, any_day: bool,
        for_secs in MIN_SECS..3 * 86_400, at in 1_770_000_000u64..1_802_000_000, west: bool,
    ) {
        let hours = hours.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let day = if any_day { "*".to_owned() } else { weekday.to_string() };
        let window = window(&format!("{minute} {hours} * * {day}"), for_secs);
        let rules = if west { new_york() } else { berlin() };
        let at = Timestamp::from_secs(at);
        // A window is open exactly from each opening on: the openings found one by one decide.
        let mut opens = at - std::time::Duration::from_secs(for_secs + 1);
        let mut covered = false;
        while let Some(next) = window.next_open(opens, &rules).filter(|next| *next <= at) {
            covered |= at.since(next).as_secs() < for_secs;
            opens = next;
        }
        prop_assert_eq!(window.is_open(at, &rules), covered);
        let next = window.next_open(at, &rules).unwrap();
        prop_assert!(next > at && window.is_open(next, &rules));
        prop_assert!(window.next_open(next - std::time::Duration::from_millis(1), &rules) == Some(next));
    }
}
