//! When the next input is due. Pure: time comes in.

use std::{fmt, str::FromStr, time::Duration};

/// Longest pause of a recording: a wrong unit must not stop it for a year.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);
const MOST: f64 = 1e6;

/// How much faster than it was recorded; 0 is without any pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    millionths: u64,
}

impl Speed {
    pub const RECORDED: Self = Self { millionths: 1_000_000 };

    /// # Errors
    /// What is allowed.
    pub fn new(times: f64) -> Result<Self, String> {
        let fits = times == 0.0 || (1e-3..=MOST).contains(&times);
        match fits {
            true => Ok(Self { millionths: (times * 1e6).round() as u64 }),
            false => Err(format!("0.001 to {MOST} are allowed, or 0 for no pauses")),
        }
    }

    /// Inputs follow one another without any pause.
    pub fn is_unpaced(self) -> bool {
        self.millionths == 0
    }

    fn scaled(self, recorded: Duration) -> Duration {
        match self.millionths {
            0 => Duration::ZERO,
            millionths => recorded.mul_f64(1e6 / millionths as f64), // at most 24 h times 1,000
        }
    }
}

impl FromStr for Speed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(text.parse().map_err(|_| format!("`{text}` is no number"))?)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.millionths as f64 / 1e6)
    }
}

/// Turns times of a recording into times since its replay began.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    speed: Speed,
    last: Option<Duration>,
    due: Duration,
}

impl Timeline {
    pub fn new(speed: Speed) -> Self {
        Self { speed, last: None, due: Duration::ZERO }
    }

    /// When an entry recorded at `at` is due, from the start of the replay. One without a time, or with an earlier
    /// one than its predecessor, is due with it.
    ///
    /// # Errors
    /// A pause of more than [`LONGEST_PAUSE`] in the recording.
    pub fn due(&mut self, at: Option<Duration>) -> Result<Duration, String> {
        if let (Some(at), last) = (at, self.last) {
            let pause = last.map_or(Duration::ZERO, |last| at.saturating_sub(last));
            if pause > LONGEST_PAUSE {
                let hours = pause.as_secs() / 3600;
                return Err(format!("`at_ms` is {hours} hours after the one before, 24 are allowed"));
            }
            self.due += self.speed.scaled(pause);
            self.last = Some(last.map_or(at, |last| last.max(at)));
        }
        Ok(self.due)
    }
}

/// Keeps a least time between inputs.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    between: Option<Duration>,
    next: Duration,
}

impl Rate {
    pub fn new(between: Option<Duration>) -> Self {
        Self { between, next: Duration::ZERO }
    }

    /// How long to wait at `now` (of a clock that only goes forward); counts the input as begun after that.
    pub fn wait(&mut self, now: Duration) -> Duration {
        let Some(between) = self.between else { return Duration::ZERO };
        let begins = self.next.max(now);
        self.next = begins + between;
        begins - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_recording_keeps_its_intervals_divided_by_the_speed() {
        for (speed, wanted) in
            [(1.0, [0, 0, 100, 100, 100, 400]), (2.0, [0, 0, 50, 50, 50, 200]), (0.0, [0; 6])]
        {
            let mut timeline = Timeline::new(Speed::new(speed).unwrap());
            let recorded = [None, Some(5_000), Some(5_100), None, Some(4_000), Some(5_400)];
            let due = recorded.map(|at| timeline.due(at.map(|at: u32| MS * at)).unwrap());
            assert_eq!(due, wanted.map(|ms| MS * ms), "{speed}");
        }
        let mut timeline = Timeline::new(Speed::RECORDED);
        timeline.due(Some(MS)).unwrap();
        assert!(timeline.due(Some(Duration::from_secs(90_002))).unwrap_err().contains("25 hours"));
        for bad in ["-1", "1e7", "NaN", "inf", "fast", "0.0001"] {
            assert!(bad.parse::<Speed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_spreads_a_burst_and_saves_nothing_up() {
        let mut rate = Rate::new(Some(MS * 200));
        assert_eq!(
            [0, 0, 100, 1_000, 1_000].map(|now| rate.wait(MS * now).as_millis()),
            [0, 200, 300, 0, 200]
        );
        let mut free = Rate::new(None);
        assert_eq!([0, 0].map(|now| free.wait(MS * now)), [Duration::ZERO; 2]);
    }
}
