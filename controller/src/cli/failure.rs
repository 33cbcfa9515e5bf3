//! How a failed command says so: the error, its causes, and what to do.

use std::{error::Error, fmt, process::ExitCode};

/// Prints `error`, one `caused by` line for each source that adds something, and a hint if there is one.
/// Returns 1, or 2 for wrong usage.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    let failure = match error.downcast_ref::<Shown>() {
        Some(shown) => shown.0.clone(),
        None => {
            let error: &(dyn Error + 'static) = error.as_ref();
            Failure { causes: sources(error), ..Failure::new(error.to_string()) }
        }
    };
    eprintln!("{failure}");
    ExitCode::from(failure.exit_code())
}

/// A failure on its way through `anyhow`, whole: [`report`] takes it out again.
#[derive(Debug)]
struct Shown(Failure);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}
impl Error for Shown {}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        Self::new(Shown(failure))
    }
}

/// Printed on stderr by `main`; the exit code says failed (1) or wrongly used (2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    /// From the outermost cause inward.
    pub causes: Vec<String>,
    pub hint: Option<String>,
    /// The controller's word for it, if it came from there.
    pub code: Option<String>,
    pub usage: bool,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: vec![], hint: None, code: None, usage: false }
    }
    /// A wrong combination of arguments.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { usage: true, ..Self::new(message) }
    }
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    pub fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let causes = sources(&error);
        Self { causes, ..Self::new(error.to_string()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// The causes of an error, outermost first. Texts that repeat what the one before said are left out.
pub(in crate::cli) fn sources(error: &dyn Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !last.contains(&text) {
            causes.push(text.clone());
        }
        last = text;
        next = cause.source();
    }
    causes
}
