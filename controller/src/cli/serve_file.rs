//! `serve --config FILE`: the same settings as the flags, as TOML. Flags and environment win.

use crate::{
    alerts::AlertSettings,
    export::OtlpSettings,
    registry::{
        Mistakes, SourceMistake,
        toml_reader::{Reader, Table},
    },
};
use std::{fmt::Display, fs, io, path::Path, str::FromStr};

const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeFileError {
    #[error("could not read `{path}`")]
    Read { path: String, source: io::Error },
    #[error("the configuration has mistakes:\n{0}")]
    Wrong(Mistakes),
}

/// Settings as written; absent ones keep what flags, environment or defaults say.
#[derive(Debug, Default)]
pub(super) struct ServeFile {
    pub(super) data: Option<std::path::PathBuf>,
    pub(super) https: Option<std::net::SocketAddr>,
    pub(super) mqtt: Option<std::net::SocketAddr>,
    pub(super) public_url: Option<String>,
    pub(super) agent_bin: Option<std::path::PathBuf>,
    pub(super) ort_lib: Option<std::path::PathBuf>,
    pub(super) limits: Option<super::serve::LimitsArg>,
    pub(super) broker: Option<super::serve::BrokerArg>,
    pub(super) broker_reload: Option<String>,
    pub(super) alerts: AlertSettings,
    pub(super) otlp: Option<OtlpSettings>,
}

impl ServeFile {
    /// Reads `path`, naming every mistake with file, line and key.
    ///
    /// # Errors
    /// [`ServeFileError`].
    pub(super) fn read(path: &Path) -> Result<Self, ServeFileError> {
        let failed = |source| ServeFileError::Read { path: path.display().to_string(), source };
        if fs::metadata(path).map_err(failed)?.len() > MAX_FILE_BYTES {
            return Err(failed(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes"))));
        }
        Self::parse(path, &fs::read_to_string(path).map_err(failed)?)
            .map_err(|wrong| ServeFileError::Wrong(Mistakes(wrong)))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Vec<SourceMistake>> {
        let reader = Reader::new(path, text);
        let document = reader.parse();
        let top = Table::top(&reader, &document);
        let file = Self {
            data: parsed(&top, "data"),
            https: parsed(&top, "https"),
            mqtt: parsed(&top, "mqtt"),
            public_url: parsed(&top, "public_url"),
            agent_bin: parsed(&top, "agent_bin"),
            ort_lib: parsed(&top, "ort_lib"),
            limits: parsed(&top, "limits"),
            broker: parsed(&top, "broker"),
            broker_reload: parsed(&top, "broker_reload"),
            alerts: top.table("alerts").map(AlertSettings::read).unwrap_or_default(),
            otlp: top.table("otlp").and_then(OtlpSettings::read),
        };
        top.finish();
        let wrong = reader.into_mistakes();
        if wrong.is_empty() { Ok(file) } else { Err(wrong) }
    }
}

/// An optional string that must parse as `T`.
fn parsed<T: FromStr<Err: Display>>(table: &Table<'_>, key: &'static str) -> Option<T> {
    let text = table.string(key)?;
    text.parse().map_err(|error| table.wrong(key, format!("is {text:?}: {error}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_named_with_their_line() {
        let text = "data = \"/srv/fleet\"\nhttps = \"nowhere\"\nlimits = \"some\"\nhtps = 1\nbroker = 5\n";
        let wrong = ServeFile::parse(Path::new("fleet.toml"), text).unwrap_err();
        let lines: Vec<_> = wrong.iter().map(|one| (one.line.unwrap(), one.key.as_str())).collect();
        assert_eq!(lines, [(2, "https"), (3, "limits"), (4, "htps"), (5, "broker")]);
        let good = ServeFile::parse(Path::new("f"), "limits = \"none\"\nbroker = \"mqtts://h:1\"").unwrap();
        assert!(good.limits.is_some() && good.broker.is_some() && good.data.is_none());
    }
}
