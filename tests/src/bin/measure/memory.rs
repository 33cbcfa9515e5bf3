//! Proportional set size, as the kernel reports it.

use super::READINGS;
use anyhow::Context;
use serde::Serialize;
use std::time::Duration;

/// Median of several readings of `/proc/PID/smaps_rollup`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Pss {
    pub(super) pss_bytes: u64,
    /// Heap and stacks.
    pub(super) anonymous_bytes: u64,
    /// Mapped files: the program itself and its libraries.
    pub(super) file_bytes: u64,
}

impl Pss {
    /// Reads ten times, a second apart.
    pub(super) async fn settled(pid: u32) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for _ in 0..READINGS {
            all.push(Self::read(pid)?);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let of = |get: fn(&Self) -> u64| {
            let values: Vec<_> = all.iter().map(|one| get(one) as f64).collect();
            median(&values) as u64
        };
        Ok(Self {
            pss_bytes: of(|one| one.pss_bytes),
            anonymous_bytes: of(|one| one.anonymous_bytes),
            file_bytes: of(|one| one.file_bytes),
        })
    }

    pub(super) fn read(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        Ok(Self {
            pss_bytes: field("Pss:"),
            anonymous_bytes: field("Pss_Anon:"),
            file_bytes: field("Pss_File:"),
        })
    }
}

pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
