//! Where a `libonnxruntime` may lie.

use std::path::{Path, PathBuf};

/// System folders, in the order the dynamic linker would look; the architecture's own first.
fn folders() -> [PathBuf; 6] {
    let own = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [
        "/usr/local/lib".into(),
        own.into(),
        "/usr/lib64".into(),
        "/usr/lib".into(),
        "/lib64".into(),
        "/opt/onnxruntime/lib".into(),
    ]
}

/// The newest `libonnxruntime.so*` of the first system folder that has one.
pub fn find() -> Option<PathBuf> {
    folders().iter().find_map(|folder| in_folder(folder))
}

fn in_folder(folder: &Path) -> Option<PathBuf> {
    let found = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_prefix("libonnxruntime.so")?;
        let numbers: Vec<u32> =
            version.split('.').filter(|part| !part.is_empty()).map_while(|part| part.parse().ok()).collect();
        Some((numbers, entry.path()))
    });
    found.filter(|(_, path)| path.is_file()).max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_folder_is_found_and_other_libraries_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(in_folder(folder.path()), None);
        for name in ["libonnxruntime_providers_shared.so", "libonnx.so", "libonnxruntime.so.1"] {
            std::fs::write(path(name), "").unwrap();
        }
        assert_eq!(in_folder(folder.path()), Some(path("libonnxruntime.so.1")));
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.20.1"] {
            std::fs::write(path(name), "").unwrap();
        }
        assert_eq!(in_folder(folder.path()), Some(path("libonnxruntime.so.1.20.1")));
        assert_eq!(in_folder(&path("missing")), None);
    }
}
