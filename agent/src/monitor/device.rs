//! How the device itself is doing, from what the system says of it. A source that is not there leaves its number out.

use edgefleet_shared::telemetry::DeviceHealth;
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// Most zones and processors that are asked.
const MAX_ENTRIES: usize = 64;
/// Most that is read of a file: those of `/proc` and `/sys` are far smaller.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Temperatures a sensor can mean, degrees Celsius; broken ones say anything.
const PLAUSIBLE: std::ops::RangeInclusive<i32> = -60..=150;
/// Where a Raspberry Pi says that it is held back: frequency capped, throttled, soft limit of temperature.
const FIRMWARE: &str = "sys/devices/platform/soc/soc:firmware/get_throttled";
const HELD_BACK: u32 = 0b1110;

/// Looks at the device again and again.
pub struct Senses {
    root: PathBuf,
    data: PathBuf,
    /// When it was last looked at, and the time on processors by then.
    last: Option<(Duration, u64)>,
}

impl Senses {
    /// Reads `/proc` and `/sys` below `root`, and the disk of `data`.
    pub fn new(root: &Path, data: &Path) -> Self {
        Self { root: root.to_owned(), data: data.to_owned(), last: None }
    }

    /// `now`: since any fixed moment. Takes a few milliseconds: never on the way of a request.
    pub fn look(&mut self, now: Duration) -> DeviceHealth {
        let text = |path: &str| read(&self.root.join(path)).unwrap_or_default();
        let cpu_ms = cpu_ms(&text("proc/self/stat"));
        let share = |(at, before): (Duration, u64)| {
            let passed = u64::try_from(now.checked_sub(at)?.as_millis()).ok()?;
            let used = cpu_ms?.checked_sub(before)?;
            u32::try_from(used.checked_mul(100)?.checked_div(passed)?).ok()
        };
        let cpu_percent = self.last.and_then(share);
        self.last = cpu_ms.map(|cpu_ms| (now, cpu_ms));
        DeviceHealth {
            pss_kib: field(&text("proc/self/smaps_rollup"), "Pss:"),
            rss_kib: field(&text("proc/self/status"), "VmRSS:"),
            cpu_ms,
            cpu_percent,
            temp_c: hottest(&self.root),
            slowed: slowed(&self.root),
            disk_free_mib: fs4::available_space(&self.data).ok().map(|bytes| bytes >> 20),
        }
    }
}

/// A file's text, as far as it is read.
fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    read(path)?.trim().parse().ok()
}

/// The number of a line `NAME: 123 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Time on processors, of user and system: fields 14 and 15, counted in hundredths of a second everywhere.
fn cpu_ms(stat: &str) -> Option<u64> {
    // The program's name may hold anything, closing brackets too.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    fields.next()??.checked_add(fields.next()??)?.checked_mul(10)
}

/// Of all zones, degrees Celsius.
fn hottest(root: &Path) -> Option<i32> {
    let zones = fs::read_dir(root.join("sys/class/thermal")).into_iter().flatten().flatten();
    let zones = zones.filter(|zone| zone.file_name().to_string_lossy().starts_with("thermal_zone"));
    let degrees = zones.take(MAX_ENTRIES).filter_map(|zone| number::<i32>(&zone.path().join("temp")));
    degrees.map(|milli| milli / 1_000).filter(|degrees| PLAUSIBLE.contains(degrees)).max()
}

/// Whether a processor may not run as fast as it could.
fn slowed(root: &Path) -> Option<bool> {
    let policies = fs::read_dir(root.join("sys/devices/system/cpu/cpufreq")).into_iter().flatten().flatten();
    let limits = policies.take(MAX_ENTRIES).filter_map(|policy| {
        let speed = |name: &str| number::<u64>(&policy.path().join(name));
        Some(speed("scaling_max_freq")? < speed("cpuinfo_max_freq")?)
    });
    let firmware = read(&root.join(FIRMWARE)).and_then(|text| {
        let bits = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()?;
        Some(bits & HELD_BACK != 0)
    });
    limits.chain(firmware).reduce(|a, b| a || b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn what_the_system_says_is_read_and_the_rest_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let nothing = Senses::new(root, &root.join("gone")).look(HOUR);
        assert_eq!(nothing, DeviceHealth::default());
        assert_eq!(serde_json::to_string(&nothing).unwrap(), "{}");
        let stat = |user: u32| format!("7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 {user} 50 0 0 20 0 9 0");
        for (path, text) in [
            ("proc/self/smaps_rollup", "00400000-7fff [rollup]\nRss: 20480 kB\nPss:   12345 kB\n"),
            ("proc/self/status", "Name:\tagent\nVmRSS:\t   20480 kB\n"),
            ("proc/self/stat", &stat(150)),
            ("sys/class/thermal/thermal_zone0/temp", "41500\n"),
            ("sys/class/thermal/thermal_zone1/temp", "72900\n"),
            ("sys/class/thermal/thermal_zone2/temp", "999000\n"),
            ("sys/class/thermal/cooling_device0/temp", "99000\n"),
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1500000\n"),
            ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "1500000\n"),
        ] {
            write(root, path, text);
        }
        let mut senses = Senses::new(root, root);
        let found = senses.look(HOUR);
        assert_eq!((found.pss_kib, found.rss_kib, found.cpu_ms), (Some(12_345), Some(20_480), Some(2_000)));
        assert_eq!((found.temp_c, found.slowed, found.cpu_percent), (Some(72), Some(false), None));
        assert!(found.disk_free_mib.is_some());
        // A minute later it has worked 30 s more, and is held back.
        write(root, "proc/self/stat", &stat(3_150));
        write(root, FIRMWARE, "0x80004\n");
        let found = senses.look(HOUR + Duration::from_secs(60));
        assert_eq!((found.cpu_percent, found.slowed), (Some(50), Some(true)));
        write(root, FIRMWARE, "80001\n");
        write(root, "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1200000\n");
        let found = senses.look(HOUR + Duration::from_secs(60));
        assert_eq!((found.cpu_percent, found.slowed), (None, Some(true)), "no time has passed");
    }

    #[test]
    fn nonsense_and_endless_files_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let long = "9".repeat(1 << 20);
        for path in [
            "proc/self/smaps_rollup",
            "proc/self/status",
            "proc/self/stat",
            "sys/class/thermal/thermal_zone0/temp",
            FIRMWARE,
        ] {
            write(root, path, &long);
        }
        write(root, "proc/self/stat", &format!("7 (a) {} {} {}", "0 ".repeat(11), u64::MAX, u64::MAX));
        std::os::unix::fs::symlink("/dev/zero", root.join("sys/class/thermal/thermal_zone1")).unwrap();
        fs::create_dir_all(root.join("sys/devices/system/cpu/cpufreq/policy0")).unwrap();
        std::os::unix::fs::symlink(
            "/dev/zero",
            root.join("sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"),
        )
        .unwrap();
        assert_eq!(Senses::new(root, &root.join("gone")).look(HOUR), DeviceHealth::default());
    }

    #[test]
    fn this_machine_has_memory_and_a_disk() {
        let found = Senses::new(Path::new("/"), Path::new("/")).look(HOUR);
        assert!(found.rss_kib.is_some_and(|kib| kib > 1_000) && found.disk_free_mib.is_some(), "{found:?}");
        assert!(found.cpu_ms.is_some());
    }
}
