//! Engine packs as this program sees them: which library of a pack it could load, if any.

use super::{LoadError, onnxruntime};
use edgefleet_shared::{
    bundle::{Library, Manifest},
    reported::RefusalCode,
};

/// A program, as far as libraries are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Build {
    arch: &'static str,
    /// Whether it can load any: not where it is linked statically, or against another C library than glibc.
    loads: bool,
}

impl Build {
    const THIS: Self = Self {
        arch: std::env::consts::ARCH,
        loads: cfg!(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static"))),
    };

    fn target(self) -> Option<&'static str> {
        match self.arch {
            "x86_64" if self.loads => Some("x86_64-linux-gnu"),
            "aarch64" if self.loads => Some("aarch64-linux-gnu"),
            _ => None,
        }
    }
}

/// What libraries this program can load; `None` where it can load none: a static build, or an architecture
/// that no pack is made for.
pub fn target() -> Option<&'static str> {
    Build::THIS.target()
}

/// The library of a pack for this device; `None` if the pack is a withdrawal. Looks at the manifest alone, so
/// before a byte is fetched.
///
/// # Errors
/// [`RefusalCode::NoArtifact`] with the reason; that the manifest is of a model, too.
pub fn own_library(manifest: &Manifest) -> Result<Option<&Library>, LoadError> {
    library_for(Build::THIS, manifest)
}

fn library_for(build: Build, manifest: &Manifest) -> Result<Option<&Library>, LoadError> {
    let no = |message: String| LoadError { code: RefusalCode::NoArtifact, message, node: None, op: None };
    let name = manifest.name();
    let Some(card) = &manifest.engine else { return Err(no(format!("`{name}` is no engine pack"))) };
    if card.is_withdrawal() {
        return Ok(None);
    }
    let Some(target) = build.target() else {
        let arch = build.arch;
        let why = match build.loads {
            false => "a static build, which cannot load libraries",
            true => "of an architecture that packs are not made for",
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
    use edgefleet_shared::digest::BlobDigest;
    use serde_json::json;

    fn pack(api: u32, targets: &[&str]) -> Manifest {
        let library =
            |target: &&str| json!({"target": target, "digest": BlobDigest::of(target.as_bytes()), "size": 7});
        let libraries: Vec<_> = targets.iter().map(library).collect();
        let manifest = json!({"schema": 1, "kind": "engine",
            "model": {"name": "onnxruntime", "counter": 1, "version": "1.32.0"},
            "engine": {"api": api, "libraries": libraries}});
        Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap()
    }

    #[test]
    fn a_pack_is_refused_by_what_cannot_load_it_and_a_withdrawal_by_nobody() {
        let (x86, arm) = ("x86_64-linux-gnu", "aarch64-linux-gnu");
        let build = |arch, loads| Build { arch, loads };
        for (build, targets, wanted) in [
            (build("x86_64", true), vec![x86, arm], Ok(x86)),
            (build("aarch64", true), vec![x86, arm], Ok(arm)),
            (
                build("x86_64", true),
                vec![arm],
                Err("no library for x86_64-linux-gnu, only for aarch64-linux-gnu"),
            ),
            (
                build("aarch64", true),
                vec![x86],
                Err("no library for aarch64-linux-gnu, only for x86_64-linux-gnu"),
            ),
            (
                build("x86_64", false),
                vec![x86, arm],
                Err("(x86_64) is a static build, which cannot load libraries"),
            ),
            (
                build("aarch64", false),
                vec![x86, arm],
                Err("(aarch64) is a static build, which cannot load libraries"),
            ),
            (
                build("arm", true),
                vec![x86, arm],
                Err("(arm) is of an architecture that packs are not made for"),
            ),
        ] {
            let manifest = pack(32, &targets);
            match (library_for(build, &manifest), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found.expect("a library").target, wanted, "{build:?}"),
                (Err(error), Err(words)) => {
                    assert_eq!(error.code, RefusalCode::NoArtifact);
                    assert!(error.message.contains(words), "{build:?}: {}", error.message);
                }
                (found, wanted) => panic!("{build:?}: {found:?} instead of {wanted:?}"),
            }
            assert_eq!(library_for(build, &pack(0, &[])).unwrap(), None, "{build:?}");
        }
        let old =
            library_for(build("x86_64", true), &pack(onnxruntime::OLDEST_MINOR - 1, &[x86])).unwrap_err();
        assert!(old.message.contains("or newer"), "{}", old.message);
    }

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
