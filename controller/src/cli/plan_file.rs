//! A rollout's plan as people write it: YAML or TOML, by the file's ending.

use super::failure::Failure;
use serde::de::DeserializeOwned;
use std::{fs::File, io::Read as _, path::Path};

/// Largest file that is read, bytes. A plan is some twenty lines, or a list of lab devices.
const MAX_BYTES: u64 = 1 << 20;

/// Reads `path` as what its ending says.
///
/// # Errors
/// [`Failure`] naming file, line and key.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let failed = |reason: String| {
        let mut failure = Failure::new(format!("could not read the plan `{}`", path.display()));
        failure.causes.push(reason);
        failure
    };
    let mut text = String::new();
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
    if read as u64 > MAX_BYTES {
        return Err(failed(format!("it is larger than {MAX_BYTES} bytes")));
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending {
        "toml" => toml::from_str(&text).map_err(|e| failed(e.to_string())),
        "yaml" | "yml" | "json" => serde_saphyr::from_str(&text).map_err(|e| failed(e.to_string())),
        _ => Err(failed("its name ends neither in .yaml nor in .toml".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Small {
        soak: String,
        #[serde(default)]
        stages: Vec<String>,
    }

    fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn yaml_and_toml_say_the_same() {
        let (_a, yaml) = file("plan.yaml", "soak: 24h\nstages: [lab, all]\n");
        let (_b, toml) = file("plan.toml", "soak = \"24h\"\nstages = [\"lab\", \"all\"]\n");
        assert_eq!(read::<Small>(&yaml).unwrap(), read::<Small>(&toml).unwrap());
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_key() {
        for (name, text) in
            [("plan.yaml", "soak: 24h\nsoaks: 1h\n"), ("plan.toml", "soak = \"24h\"\nsoaks = \"1h\"\n")]
        {
            let (_dir, path) = file(name, text);
            let said = read::<Small>(&path).unwrap_err().causes.join(" ");
            assert!(said.contains("soaks") && said.contains('2'), "{said}");
        }
        let (_dir, path) = file("plan.ini", "");
        assert!(read::<Small>(&path).unwrap_err().causes[0].contains(".yaml"));
    }

    #[test]
    fn a_document_that_unfolds_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let all = vec![format!("*a{}", n - 1); 9].join(", ");
            text += &format!("a{n}: &a{n} [{all}]\n");
        }
        let (_dir, path) = file("plan.yaml", &text);
        assert!(read::<serde_json::Value>(&path).is_err());
    }
}
