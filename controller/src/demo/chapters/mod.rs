//! The chapters: what is told, in which order, and what each of them needs told before.
//!
//! To add one: a file here with `tell(&mut Tale)`, and a line of [`Chapter`] in each `match` below.

mod balance;
mod better;
mod drift;
mod first;
mod golden;
mod join;
mod killed;
mod slow;
mod stolen;
mod wrong;

use super::{DemoError, tale::Tale};
use std::str::FromStr;

/// In the order they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chapter {
    Join,
    First,
    Better,
    Golden,
    Stolen,
    Wrong,
    Slow,
    Killed,
    Drift,
    Balance,
}

impl Chapter {
    pub const ALL: [Self; 10] = [
        Self::Join,
        Self::First,
        Self::Better,
        Self::Golden,
        Self::Stolen,
        Self::Wrong,
        Self::Slow,
        Self::Killed,
        Self::Drift,
        Self::Balance,
    ];

    /// For `--chapter` and for programs that read the report.
    pub fn key(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::First => "first",
            Self::Better => "better",
            Self::Golden => "golden",
            Self::Stolen => "stolen",
            Self::Wrong => "wrong",
            Self::Slow => "slow",
            Self::Killed => "killed",
            Self::Drift => "drift",
            Self::Balance => "balance",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Join => "A controller, and agents that join by one code",
            Self::First => "digits@1: build, check, sign, push, assign",
            Self::Better => "digits@2: lab, shadow, canary, all, on evidence and under load",
            Self::Golden => "digits@3: its golden samples do not match its model",
            Self::Stolen => "digits@4: a stolen controller hands out what no publisher signed",
            Self::Wrong => "digits@5: plausible, and wrong on one class",
            Self::Slow => "digits@6: right, and slow",
            Self::Killed => "digits@7: the controller is killed in the middle of a rollout",
            Self::Drift => "One hall loses its focus: drift, an estimate without labels, advice, an audit",
            Self::Balance => "What the agents counted",
        }
    }

    /// Counted from 1.
    pub fn number(self) -> usize {
        self as usize + 1
    }

    fn needs(self) -> &'static [Self] {
        match self {
            Self::Join => &[],
            Self::First => &[Self::Join],
            Self::Better | Self::Golden | Self::Stolen | Self::Drift | Self::Balance => {
                &[Self::Join, Self::First]
            }
            Self::Wrong | Self::Slow | Self::Killed => &[Self::Join, Self::First, Self::Better],
        }
    }

    /// What to tell: all, or one chapter with what it needs, and the balance wherever there was a load.
    pub fn plan(only: Option<Self>) -> Vec<Self> {
        let Some(only) = only else { return Self::ALL.to_vec() };
        let wanted = |one: &Self| {
            let loaded = only >= Self::First;
            *one == only || only.needs().contains(one) || (loaded && *one == Self::Balance)
        };
        Self::ALL.into_iter().filter(wanted).collect()
    }

    pub(super) async fn tell(self, tale: &mut Tale<'_>) -> Result<(), DemoError> {
        match self {
            Self::Join => join::tell(tale).await,
            Self::First => first::tell(tale).await,
            Self::Better => better::tell(tale).await,
            Self::Golden => golden::tell(tale).await,
            Self::Stolen => stolen::tell(tale).await,
            Self::Wrong => wrong::tell(tale).await,
            Self::Slow => slow::tell(tale).await,
            Self::Killed => killed::tell(tale).await,
            Self::Drift => drift::tell(tale).await,
            Self::Balance => balance::tell(tale).await,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{given}` is no chapter; they are {}", known())]
pub struct UnknownChapter {
    given: String,
}

fn known() -> String {
    Chapter::ALL.map(|chapter| format!("{} {}", chapter.number(), chapter.key())).join(", ")
}

impl FromStr for Chapter {
    type Err = UnknownChapter;

    /// A number or a key.
    fn from_str(given: &str) -> Result<Self, UnknownChapter> {
        let is = |one: &Self| one.key() == given || given.parse() == Ok(one.number());
        Self::ALL.into_iter().find(is).ok_or_else(|| UnknownChapter { given: given.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chapters_are_named_by_number_and_key() {
        for (at, chapter) in Chapter::ALL.into_iter().enumerate() {
            assert_eq!(chapter.number(), at + 1);
            assert_eq!(chapter.number().to_string().parse::<Chapter>().unwrap(), chapter);
            assert_eq!(chapter.key().parse::<Chapter>().unwrap(), chapter);
        }
        for unknown in ["0", "11", "", "-1", "Join"] {
            let error = unknown.parse::<Chapter>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{unknown}`")) && error.contains("3 better"), "{error}");
        }
    }

    #[test]
    fn a_plan_tells_each_chapter_after_all_that_it_needs() {
        assert_eq!(Chapter::plan(None), Chapter::ALL);
        assert_eq!(Chapter::plan(Some(Chapter::Join)), [Chapter::Join]);
        for only in Chapter::ALL {
            let plan = Chapter::plan(Some(only));
            assert!(plan.contains(&only) && plan.is_sorted());
            for (at, chapter) in plan.iter().enumerate() {
                assert!(chapter.needs().iter().all(|needed| plan[..at].contains(needed)), "{plan:?}");
            }
        }
        let plan = Chapter::plan(Some(Chapter::Stolen));
        assert_eq!(plan, [Chapter::Join, Chapter::First, Chapter::Stolen, Chapter::Balance]);
    }
}
