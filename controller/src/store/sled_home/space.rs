//! How full the file system is, and when that is too full to accept a write.

use std::path::Path;

/// When to stop writing before the disk is really full: sled cannot be trusted with a write that runs out of
/// space, and opening it again needs some room too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimits {
    /// Writes stop with less than this free: several times what one group of transactions needs.
    pub min_free_bytes: u64,
    /// They also stop above this share of the file system (as `df` counts it), unless ...
    pub max_used_percent: u8,
    /// ... this many bytes are still free: 5 % of a very large disk is not "full".
    pub enough_free_bytes: u64,
}

impl Default for DiskLimits {
    fn default() -> Self {
        Self { min_free_bytes: 32 << 20, max_used_percent: 95, enough_free_bytes: 2 << 30 }
    }
}

/// Why nothing may be written to the file system of `dir`, if so.
pub(super) fn refusal(dir: &Path, limits: DiskLimits) -> Option<String> {
    let found = match fs4::statvfs(dir) {
        Ok(found) => found,
        Err(error) => {
            return Some(format!("could not ask how full the disk of `{}` is: {error}", dir.display()));
        }
    };
    let (total, free, available) = (found.total_space(), found.free_space(), found.available_space());
    let percent = used_percent(total, free, available);
    let full = available <= limits.min_free_bytes
        || (percent > limits.max_used_percent && available < limits.enough_free_bytes);
    full.then(|| {
        format!(
            "the disk of `{}` is {percent} % full ({} MiB free); free some space and writing goes on by itself",
            dir.display(),
            available >> 20
        )
    })
}

/// As `df` counts: used by what a normal user could use, rounded up.
fn used_percent(total: u64, free: u64, available: u64) -> u8 {
    let used = u128::from(total.saturating_sub(free));
    let usable = used + u128::from(available);
    if usable == 0 {
        return 100;
    }
    u8::try_from((used * 100).div_ceil(usable)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_counted_like_df_and_rounded_up() {
        for (total, free, available, percent) in
            [(100, 100, 95, 0), (100, 50, 50, 50), (1000, 49, 49, 96), (100, 5, 0, 100), (0, 0, 0, 100)]
        {
            assert_eq!(used_percent(total, free, available), percent, "{total} {free} {available}");
        }
    }
}
