use std::process::ExitCode;

fn main() -> ExitCode {
    edgefleet_agent::cli::main()
}
