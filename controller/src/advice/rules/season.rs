//! A11: drift that comes and goes by the clock.

use super::super::{
    action::Action,
    evidence::Evidence,
    finding::{Confidence, Finding, Plot, RuleId, Scope, Severity, percent},
    rule::{AdviceSettings, Judged},
};
use crate::drift::{Rhythm, recurring};
use edgefleet_shared::time::Timestamp;

/// Jensen-Shannon distance that the loud hours must reach: the effect floor of a drift.
const LOUD: f64 = 0.1;

pub(in super::super) fn rhythm(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    let Some(bundle) = &evidence.bundle else { return judged };
    let mut cohorts: Vec<_> = evidence.scores.iter().map(|series| series.cohort.as_str()).collect();
    cohorts.sort_unstable();
    cohorts.dedup();
    for cohort in cohorts {
        let scope = Scope::Cohort { bundle: bundle.clone(), cohort: cohort.to_owned() };
        let seasons = evidence.scores.iter().filter(|series| series.cohort == cohort).filter_map(|series| {
            let season = recurring(&series.scores)?;
            (season.loud_mean >= LOUD && season.loud_mean >= 1.5 * season.quiet_mean)
                .then_some((series, season))
        });
        let best = seasons.max_by(|a, b| a.1.predicted.total_cmp(&b.1.predicted));
        let found = best.map(|(series, season)| {
            let weekly = season.rhythm == Rhythm::Weekly;
            let profile = season.profile.iter().enumerate().map(|(hour, score)| (hour as f64, *score));
            let cycle = if weekly { "week" } else { "day" };
            let plot = Plot::Lines {
                title: format!("{}: distance from the baseline by hour of the {cycle} (UTC)", series.channel),
                x: "hour".into(),
                y: "JS distance".into(),
                series: vec![("mean".into(), profile.collect())],
            };
            let first = series.scores.iter().map(|(at, _)| *at).min().unwrap_or(now);
            let action = Action::SeasonalBaselines {
                cohort: cohort.to_owned(),
                weekly,
                hours: season.loud.clone(),
            };
            Finding::new(RuleId::A11, scope.clone(), first, action)
                .rated(Severity::Info, if season.predicted > 0.7 { Confidence::High } else { Confidence::Medium })
                .number("predicted", season.predicted)
                .number("loud", season.loud_mean)
                .number("quiet", season.quiet_mean)
                .number("hours", season.loud.len() as f64)
                .plot(plot)
                .says(
                    format!(
                        "`{}` is {:.2} from the baseline in {} hours of each {cycle} and {:.2} in the others; other {cycle}s predict {} of it.",
                        series.channel,
                        season.loud_mean,
                        season.loud.len(),
                        season.quiet_mean,
                        percent(season.predicted)
                    ),
                    "It comes and goes by the clock: day and night, shifts, weekends; not decay.",
                    "Give these hours a baseline of their own, so that a real drift is seen against them.".into(),
                )
        });
        judged.look(&scope, found);
    }
    judged
}
