//! `edgefleet rollout watch`: asks the controller every second and shows what changed.
//!
//! A controller that does not answer (it may be restarting: rollouts survive that) is asked again for
//! ten minutes.

mod frame;
mod screen;

pub(super) use frame::Frame;
#[cfg(test)]
pub(super) use {frame::changes, screen::Screen};

use super::{path, words};
use crate::{
    api::rollout_views::Explanation,
    cli::{
        client::{ApiClient, ClientError},
        context::{Context, Output},
        failure::Failure,
    },
    rollout::{Rollout, StateName},
};
use clap::Args;
use edgefleet_shared::ids::RolloutId;
use frame::At;
use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};
use tokio::time::Instant;

/// How long a controller may be silent.
const PATIENCE: Duration = Duration::from_secs(600);

/// Watch a rollout until it ends: exit code 0 if it completed, 1 otherwise
#[derive(Debug, Args)]
#[command(
    after_help = "On a terminal the view is live; otherwise, and with --output json, one line per change is written.
Leaving with Ctrl-C changes nothing: the rollout goes on."
)]
pub struct WatchArgs {
    /// Its id, see `edgefleet rollout list`
    rollout: RolloutId,
    /// How often to ask
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = every)]
    every: Duration,
    /// Write lines, also on a terminal
    #[arg(long)]
    plain: bool,
}

fn every(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    // Faster is of no use to anybody, and a load for the controller.
    if parsed < Duration::from_millis(100) { Err("at least 100ms".to_owned()) } else { Ok(parsed) }
}

impl WatchArgs {
    /// # Errors
    /// [`Failure`], also if the rollout ends without completing, and if it is left before.
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let mut view = match context.output {
            Output::Json => View::Json,
            Output::Table if terminal && !self.plain => View::Live(screen::Screen::new()),
            Output::Table => View::Lines,
        };
        let end = tokio::select! {
            end = self.follow(&client, &mut view) => end?,
            _ = tokio::signal::ctrl_c() => {
                view.close();
                return Err(Failure::new(format!("left before rollout {} ended; it goes on", self.rollout)));
            }
        };
        view.close();
        match end.state.name() {
            StateName::Completed => Ok(()),
            _ => Err(Failure::new(format!("rollout {} ended {}", self.rollout, words::state(&end.state)))
                .hint(format!("see why with `edgefleet rollout explain {}`", self.rollout))),
        }
    }

    /// Shows every change until the rollout ends.
    async fn follow(&self, client: &ApiClient, view: &mut View) -> Result<Rollout, Failure> {
        let mut last: Option<Frame> = None;
        let mut heard = Instant::now();
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (rollout, explanation) = match self.ask(client).await {
                Ok(answer) => answer,
                Err(ClientError::Failed(failure)) if last.is_some() && heard.elapsed() < PATIENCE => {
                    view.trouble(&failure.message);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            heard = Instant::now();
            let frame = Frame::of(&rollout, &explanation);
            if last.as_ref() != Some(&frame) {
                view.show(last.as_ref(), &frame, &rollout)?;
                last = Some(frame);
            }
            if rollout.is_terminal() {
                return Ok(rollout);
            }
        }
    }

    async fn ask(&self, client: &ApiClient) -> Result<(Rollout, Explanation), ClientError> {
        let path = path(&self.rollout);
        let rollout: Rollout = client.get(&path).await?;
        Ok((rollout, client.get(&format!("{path}/explain")).await?))
    }
}

/// How changes are shown.
enum View {
    Live(screen::Screen),
    Lines,
    Json,
}

impl View {
    fn show(&mut self, last: Option<&Frame>, frame: &Frame, rollout: &Rollout) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match self {
            Self::Live(screen) => screen.draw(frame),
            Self::Lines => {
                for line in frame::changes(last, frame) {
                    writeln!(out, "{}  {}", words::time(rollout.clock), tame(&line))?;
                }
            }
            Self::Json => {
                serde_json::to_writer(&mut out, &At { at: rollout.clock, frame })?;
                writeln!(out)?;
            }
        }
        Ok(out.flush()?)
    }

    fn trouble(&mut self, message: &str) {
        match self {
            Self::Live(screen) => screen.trouble(message),
            Self::Lines | Self::Json => eprintln!("{message}; asking again"),
        }
    }

    fn close(&mut self) {
        if let Self::Live(screen) = self {
            screen.close();
        }
    }
}

/// Much of it is what devices and people wrote; a terminal must not obey it.
fn tame(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}
