//! How a failed command says so: the error, its causes, and what to do.

use std::process::ExitCode;

/// Prints `error`, one `caused by` line for each source that adds something, and returns 1.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their source in their own words.
        if !last.contains(&cause) {
            eprintln!("  caused by: {cause}");
        }
        last = cause;
    }
    ExitCode::FAILURE
}
