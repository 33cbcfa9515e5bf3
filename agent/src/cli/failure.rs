//! How a failure looks: what failed, why, what to do about it.

use crate::config::ConfigError;
use std::process::ExitCode;

/// What `main` prints before it ends with 1 or 2.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    pub(super) fn new(what: &str, cause: anyhow::Error) -> Self {
        Self { error: cause.context(what.to_owned()), hint: None, code: 1 }
    }
    pub(super) fn hinted(error: anyhow::Error, hint: impl Into<String>) -> Self {
        Self { error, hint: Some(hint.into()), code: 1 }
    }
    pub(super) fn usage(error: anyhow::Error, hint: impl Into<String>) -> Self {
        Self { error, hint: Some(hint.into()), code: 2 }
    }
    /// All mistakes, one a line.
    pub(super) fn config(mistakes: Vec<ConfigError>) -> Self {
        let text: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        let count = text.len();
        let error = anyhow::anyhow!("the settings have {count} mistake(s)\n  {}", text.join("\n  "));
        Self::usage(error, "`edgefleet-agent run --help` lists all settings")
    }

    pub(super) fn print(&self) -> ExitCode {
        eprint!("{}", self.text());
        ExitCode::from(self.code)
    }

    fn text(&self) -> String {
        let mut text = format!("error: {}\n", self.error);
        for cause in self.error.chain().skip(1) {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }
}

impl From<crate::run::RunError> for Failure {
    fn from(error: crate::run::RunError) -> Self {
        let hint = error.hint();
        Self { error: error.into(), hint, code: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let inner = std::io::Error::other("no route to host");
        let error = anyhow::Error::new(inner).context("could not ask https://c:8443");
        assert_eq!(
            Failure::hinted(error, "check the cable").text(),
            "error: could not ask https://c:8443\n  caused by: no route to host\nhint: check the cable\n"
        );
    }
}
