//! The agent as `main.rs` is, under the name that crash tests look for.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgefleet_agent::cli::main()
}
