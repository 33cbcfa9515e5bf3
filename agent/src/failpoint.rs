//! Named places where a test may kill the process, one at every durable step.
//!
//! With feature `failpoints`, `EDGEFLEET_FAILPOINT=name` makes the process kill itself (SIGKILL: no
//! destructor, no flush) when it first comes by; `name#3` the third time. `EDGEFLEET_HASTE=60` lets the hours
//! that [`haste`] is asked about pass in minutes. Without the feature nothing is compiled in.

/// Every name that [`hit`] is called with.
pub const NAMES: &[&str] = &[
    "trust.temp-written",
    "trust.saved",
    "trust.chain-written",
    "slots.temp-written",
    "slots.saved",
    "persisted.idle",
    "persisted.fetching",
    "persisted.testing",
    "persisted.switching",
    "persisted.probation",
    "persisted.committed",
    "persisted.failed",
    "part.synced",
    "part.noted",
    "part.verified",
    "part.renamed",
    "test.before",
    "test.after",
    "switch.before",
    "switch.after",
    "activate.before",
    "shadow.before",
    "shadow.after",
    "terminal.before",
    "terminal.after",
    "garbage.before",
    "garbage.removed",
];

#[cfg(feature = "failpoints")]
pub fn hit(name: &str) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    debug_assert!(NAMES.contains(&name), "failpoint `{name}` is not listed");
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("EDGEFLEET_FAILPOINT").ok()?;
        Some(match text.split_once('#') {
            Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
            None => (text, 1),
        })
    });
    if let Some((wanted, nth)) = wanted
        && wanted == name
        && COUNT.fetch_add(1, Ordering::SeqCst) + 1 == *nth
    {
        #[allow(unsafe_code)]
        // SAFETY: plain system calls without pointers; the process does not outlive them.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
        }
    }
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) {}

/// How many times faster than real time the watch over engines runs; 1 but in tests.
#[cfg(feature = "failpoints")]
pub fn haste() -> u32 {
    let asked = std::env::var("EDGEFLEET_HASTE").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(1).clamp(1, 1_000)
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn haste() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    /// A name that nobody calls would make a kill matrix pass by doing nothing.
    #[test]
    fn every_name_is_called_somewhere() {
        let sources = [
            include_str!("store/durable.rs"),
            include_str!("store/trust_state.rs"),
            include_str!("update/apply/mod.rs"),
            include_str!("update/apply/jobs.rs"),
            include_str!("update/apply/perform.rs"),
            include_str!("update/bundles.rs"),
            include_str!("update/part.rs"),
        ];
        for name in super::NAMES {
            let quoted = format!("\"{name}\"");
            assert!(sources.iter().any(|source| source.contains(&quoted)), "{name}");
        }
    }
}
