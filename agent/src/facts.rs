//! What this machine says of itself. Claims for people and selectors; they never grant rights.

use edgefleet_shared::reported::Facts;
use std::fs;

/// Reads the facts once; a fact the system does not tell stays empty. `hardware` is the class from
/// the configuration, `engines` those that can run models here.
pub fn gather(hardware: &str, engines: Vec<String>) -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Facts {
        agent_version: env!("CARGO_PKG_VERSION").into(),
        arch: std::env::consts::ARCH.into(),
        os: os_name(&read("/etc/os-release")),
        cpu: cpu_name(&read("/proc/cpuinfo")),
        cores: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory_bytes(&read("/proc/meminfo")),
        hardware: hardware.to_owned(),
        hostname: short(read("/proc/sys/kernel/hostname").trim()),
        engines,
    }
}

/// Facts travel in every report: none is longer than this.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

fn os_name(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    short(value.unwrap_or(std::env::consts::OS).trim_matches('"'))
}

fn cpu_name(cpuinfo: &str) -> String {
    // x86 says `model name`, boards say `Model` or `Hardware`.
    let value = ["model name", "Model", "Hardware"].into_iter().find_map(|key| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim())
        })
    });
    short(value.unwrap_or_default())
}

fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_where_the_system_tells_them_and_empty_otherwise() {
        assert_eq!(memory_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), 16384 * 1024);
        assert_eq!(memory_bytes("nonsense"), 0);
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: Cortex-A72\n"), "Cortex-A72");
        assert_eq!(cpu_name("Hardware\t: BCM2835\n"), "BCM2835");
        assert_eq!(os_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        let here = gather("pi-4", vec!["tract 1".into()]);
        assert!(here.cores >= 1 && here.memory_bytes > 0 && here.hardware == "pi-4", "{here:?}");
    }
}
