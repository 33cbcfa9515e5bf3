use std::process::ExitCode;

fn main() -> ExitCode {
    edgefleet_controller::cli::main()
}
