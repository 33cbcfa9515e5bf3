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
        client::ClientError,
        context::{Context, Output},
        failure::Failure,
    },
    rollout::{Rollout, StateName},
};
use clap::Args;
use edgefleet_shared::ids::RolloutId;
use frame::At;
use std::{
    io::{self, IsTerminal as _},
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
        let view = match context.output {
            // One document a line is YAML as well.
            Output::Json | Output::Yaml => View::Json,
            Output::Table if terminal && !self.plain => View::Live(screen::Screen::new()),
            Output::Table => View::Lines,
        };
        let mut watch = Watch { view, out: io::stdout(), patience: PATIENCE };
        let path = path(&self.rollout);
        let ask = async || {
            let rollout: Rollout = client.get(&path).await?;
            let explanation: Explanation = client.get(&format!("{path}/explain")).await?;
            Ok((rollout, explanation))
        };
        let end = tokio::select! {
            end = watch.follow(self.every, ask) => end,
            _ = tokio::signal::ctrl_c() => {
                Err(Failure::new(format!("left before rollout {} ended; it goes on", self.rollout)))
            }
        };
        watch.close();
        ended(&end?)
    }
}

/// How a rollout's end ends the command.
fn ended(rollout: &Rollout) -> Result<(), Failure> {
    match rollout.state.name() {
        StateName::Completed => Ok(()),
        _ => Err(Failure::new(format!("rollout {} ended {}", rollout.id, words::state(&rollout.state)))
            .hint(format!("see why with `edgefleet rollout explain {}`", rollout.id))),
    }
}

/// A view of one rollout, and where its lines go.
struct Watch<W> {
    view: View,
    out: W,
    /// How long a controller that answered once may be silent.
    patience: Duration,
}

impl<W: io::Write> Watch<W> {
    /// Shows every change until the rollout ends.
    async fn follow(
        &mut self,
        every: Duration,
        mut ask: impl AsyncFnMut() -> Result<(Rollout, Explanation), ClientError>,
    ) -> Result<Rollout, Failure> {
        let mut last: Option<Frame> = None;
        let mut heard = Instant::now();
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (rollout, explanation) = match ask().await {
                Ok(answer) => answer,
                // A mistake in the address shows at once; one who was there may come back.
                Err(ClientError::Failed(failure)) if last.is_some() && heard.elapsed() < self.patience => {
                    self.trouble(&failure.message);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            heard = Instant::now();
            let frame = Frame::of(&rollout, &explanation);
            if last.as_ref() != Some(&frame) {
                self.show(last.as_ref(), &frame, &rollout)?;
                last = Some(frame);
            }
            if rollout.is_terminal() {
                return Ok(rollout);
            }
        }
    }

    fn show(&mut self, last: Option<&Frame>, frame: &Frame, rollout: &Rollout) -> Result<(), Failure> {
        match &mut self.view {
            View::Live(screen) => screen.draw(frame),
            View::Lines => {
                for line in frame::changes(last, frame) {
                    writeln!(self.out, "{}  {}", words::time(rollout.clock), tame(&line))?;
                }
            }
            View::Json => {
                serde_json::to_writer(&mut self.out, &At { at: rollout.clock, frame })?;
                writeln!(self.out)?;
            }
        }
        Ok(self.out.flush()?)
    }

    fn trouble(&mut self, message: &str) {
        match &mut self.view {
            View::Live(screen) => screen.trouble(message),
            View::Lines | View::Json => eprintln!("{message}; asking again"),
        }
    }

    fn close(&mut self) {
        if let View::Live(screen) = &mut self.view {
            screen.close();
        }
    }
}

/// How changes are shown.
enum View {
    Live(screen::Screen),
    Lines,
    Json,
}

/// Much of it is what devices and people wrote; a terminal must not obey it.
fn tame(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{client::ProblemAnswer, rollout::tests::samples};

    const SHORT: Duration = Duration::from_millis(30);

    type Answer = Result<(Rollout, Explanation), ClientError>;

    fn answer(index: usize) -> Answer {
        let sample = samples::all().swap_remove(index);
        Ok((sample.rollout, sample.explanation))
    }
    fn silence() -> Answer {
        Err(ClientError::Failed(Failure::new("the controller could not be reached")))
    }

    /// What is written while the controller answers `answers`, the last one for ever.
    async fn watched(view: View, mut answers: Vec<fn() -> Answer>) -> (String, Result<Rollout, Failure>) {
        let mut watch = Watch { view, out: Vec::new(), patience: SHORT };
        answers.reverse();
        let ask = async || {
            let next = if answers.len() > 1 { answers.pop() } else { answers.last().copied() };
            next.unwrap()()
        };
        let end = watch.follow(Duration::from_millis(1), ask).await;
        (String::from_utf8(watch.out).unwrap(), end)
    }

    #[tokio::test]
    async fn a_controller_that_restarts_is_waited_for_and_nothing_is_told_twice() {
        let answers: Vec<fn() -> Answer> = vec![|| answer(0), silence, || answer(0), || answer(3)];
        let (written, end) = watched(View::Lines, answers).await;
        assert_eq!(end.as_ref().map(ended), Ok(Ok(())));
        assert_eq!(written.matches("is running").count(), 1, "{written}");
        assert!(written.lines().all(|line| line.starts_with("2026-11-2")), "{written}");
        assert!(written.contains("is completed"));
    }

    #[tokio::test]
    async fn patience_ends_and_a_refusal_ends_at_once() {
        let (_, end) = watched(View::Lines, vec![silence]).await;
        assert!(end.is_err(), "who never answered is not waited for");
        let begun = Instant::now();
        let (_, end) = watched(View::Lines, vec![|| answer(0), silence]).await;
        assert!(end.is_err() && begun.elapsed() >= SHORT, "{:?}", begun.elapsed());
        let refused = || {
            let gone = r#"{"status": 404, "code": "rollout-unknown", "detail": "there is no rollout"}"#;
            Err(ClientError::Problem(Box::new(serde_json::from_str::<ProblemAnswer>(gone).unwrap())))
        };
        let (_, end) = watched(View::Lines, vec![|| answer(0), refused]).await;
        assert_eq!(end.unwrap_err().code.as_deref(), Some("rollout-unknown"));
    }

    #[tokio::test]
    async fn json_has_one_object_per_change_and_the_end_decides_the_exit_code() {
        let reverted = || {
            answer(1).map(|(mut rollout, explanation)| {
                rollout.state = crate::rollout::State::Reverted { unreachable: 2 };
                (rollout, explanation)
            })
        };
        let (written, end) = watched(View::Json, vec![|| answer(0), || answer(0), reverted]).await;
        let lines: Vec<serde_json::Value> =
            written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "the same again is no change");
        assert_eq!((&lines[0]["state"], &lines[0]["over"]), (&"running".into(), &false.into()));
        assert_eq!((&lines[1]["state"], &lines[1]["over"]), (&"reverted".into(), &true.into()));
        assert_eq!(lines[0]["gates"][1]["safe_threshold"], 20.0);
        let failure = ended(&end.unwrap()).unwrap_err();
        assert!(
            failure.message.contains("2 devices were not reached") && failure.exit_code() == 1,
            "{failure}"
        );
    }
}
