//! `edgefleet-agent enroll CODE`.

use super::{ConfigArgs, Failure};
use crate::{
    engine::tract,
    facts,
    identity::{
        TrustedClock,
        enroll::{EnrollOptions, enroll as enroll_device},
    },
    run::lock::DataLock,
};
use clap::Args;
use edgefleet_shared::enroll::JoinCode;
use std::{process::ExitCode, time::Duration};

#[derive(Args, Debug)]
pub(super) struct EnrollArgs {
    /// The join code, as printed by `edgefleet device invite`
    code: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// Name for people
    #[arg(long)]
    name: Option<String>,
    /// Hardware class, as bundles name it
    #[arg(long, value_name = "CLASS")]
    hardware: Option<String>,
    /// Enrol again although this device is enrolled; it keeps its key
    #[arg(long)]
    force: bool,
    /// How long to wait if a person has to approve
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

pub(super) async fn enroll(args: EnrollArgs) -> Result<ExitCode, Failure> {
    let code: JoinCode = args.code.parse().map_err(|e: edgefleet_shared::enroll::JoinCodeError| {
        Failure::usage(
            e.into(),
            "copy the whole code, it is one word; make one with `edgefleet device invite`",
        )
    })?;
    let hardware = args.hardware.map(|hardware| ("hardware", hardware));
    let config = args.config.load(hardware.into_iter().collect())?;
    let _lock = DataLock::take(&config.data).map_err(crate::run::RunError::from)?;
    // What else is there is told with the first report.
    let engines = vec![format!("{} {}", tract::NAME, tract::VERSION)];
    let options = EnrollOptions {
        data: config.data.clone(),
        name: args.name,
        force: args.force,
        wait: args.wait,
        facts: facts::gather(&config.hardware, engines),
    };
    let clock = TrustedClock::system();
    let identity = enroll_device(&code, &options, &clock, |news| eprintln!("{news}")).await.map_err(|e| {
        let hint = e.hint();
        Failure::hinted(e.into(), hint)
    })?;
    eprintln!("enrolled at {}; start it with `edgefleet-agent run`", identity.controller.url);
    println!("{}", identity.device());
    Ok(ExitCode::SUCCESS)
}
