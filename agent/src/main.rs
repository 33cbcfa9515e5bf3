use edgefleet_agent::engine::probe;
use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [probe::WORKER_COMMAND] => probe::probe_worker_main(),
        ["probe", bundle] => {
            let files = probe::BundleFiles::in_folder(Path::new(bundle));
            let verdict = probe::run(&files, &probe::ProbeOptions::this_program());
            println!("{}", serde_json::to_string(&verdict).unwrap_or_default());
            ExitCode::from(u8::from(!verdict.ok))
        }
        _ => ExitCode::from(2),
    }
}
