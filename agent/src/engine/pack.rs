//! Engine packs as this program sees them: which library of a pack it could load, if any.

use super::{LoadError, onnxruntime};
use edgefleet_shared::{
    bundle::{Library, Manifest},
    reported::RefusalCode,
};

/// What libraries this program can load; `None` where it can load none: a static build, or an architecture
/// that no pack is made for.
pub fn target() -> Option<&'static str> {
    let loads = cfg!(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static")));
    match std::env::consts::ARCH {
        "x86_64" if loads => Some("x86_64-linux-gnu"),
        "aarch64" if loads => Some("aarch64-linux-gnu"),
        _ => None,
    }
}

/// The library of a pack for this device; `None` if the pack is a withdrawal. Looks at the manifest alone, so
/// before a byte is fetched.
///
/// # Errors
/// [`RefusalCode::NoArtifact`] with the reason; that the manifest is of a model, too.
pub fn own_library(manifest: &Manifest) -> Result<Option<&Library>, LoadError> {
    let no = |message: String| LoadError { code: RefusalCode::NoArtifact, message, node: None, op: None };
    let name = manifest.name();
    let Some(card) = &manifest.engine else { return Err(no(format!("`{name}` is no engine pack"))) };
    if card.is_withdrawal() {
        return Ok(None);
    }
    let Some(target) = target() else {
        let arch = std::env::consts::ARCH;
        let why = if cfg!(target_feature = "crt-static") || cfg!(not(target_env = "gnu")) {
            "a static build, which cannot load libraries"
        } else {
            "of an architecture that packs are not made for"
        };
        return Err(no(format!("`{name}` is an engine pack, and this agent ({arch}) is {why}")));
    };
    if card.api < onnxruntime::OLDEST_MINOR {
        return Err(no(format!(
            "`{name}` speaks version {} of its C interface, this agent needs {} or newer",
            card.api,
            onnxruntime::OLDEST_MINOR
        )));
    }
    card.library(Some(target)).map(Some).ok_or_else(|| {
        no(format!("`{name}` has no library for {target}, only for {}", card.targets().join(", ")))
    })
}

/// Whether `head`, the first bytes of a file, begins a shared library for `target`. For libraries that
/// cannot be loaded here.
pub(super) fn is_library_for(head: &[u8], target: &str) -> bool {
    const SHARED: u16 = 3;
    let machine: u16 = match target {
        "x86_64-linux-gnu" => 62,
        "aarch64-linux-gnu" => 183,
        _ => return false,
    };
    let two = |at: usize| head.get(at..at + 2).map(|two| u16::from_le_bytes([two[0], two[1]]));
    // ELF, 64 bits, little-endian.
    head.starts_with(b"\x7fELF\x02\x01") && two(16) == Some(SHARED) && two(18) == Some(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_tells_what_a_library_is_for() {
        let head = |kind: u16, machine: u16| {
            let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
            head.extend(kind.to_le_bytes());
            head.extend(machine.to_le_bytes());
            head
        };
        for (head, target, good) in [
            (head(3, 62), "x86_64-linux-gnu", true),
            (head(3, 183), "aarch64-linux-gnu", true),
            (head(3, 62), "aarch64-linux-gnu", false),
            (head(2, 62), "x86_64-linux-gnu", false),
            (head(3, 40), "armv7-linux-gnueabihf", false),
            (b"PK\x03\x04".to_vec(), "x86_64-linux-gnu", false),
            (b"\x7fELF\x02\x01".to_vec(), "x86_64-linux-gnu", false),
        ] {
            assert_eq!(is_library_for(&head, target), good, "{target}");
        }
    }
}
