//! Power: what a stage of this size can find, by simulation, before it starts.
//!
//! The gates' own arithmetic on a virtual fleet: device rates spread (lognormal, sd 0.5), silent devices,
//! spread of latency. Looks 24 times a stage. Outages, chronically bad devices
//! and late reports are left out: of 5 times more errors in a week, 20 canaries beside 60 controls find 51 %
//! here and 36 % in the tests' fuller fleet. Smaller than the whole-rollout simulator and meant for `rollout
//! plan`: well under a second. Figures are rounded by their number of runs: 200 runs, so up to 7 points.

use super::accuracy::Accuracy;
use super::judge::Side;
use super::latency::{BeforeAfter, Latency, latency_vote};
use super::logrank::LogRank;
use super::mixture::{HARM_RATIOS, SAFE_RATIOS, ln_bernoulli};
use super::random::Random;
use super::settings::{Gate, GateSettings};
use super::telemetry::Telemetry;
use super::{Reporting, Vote};
use serde::{Deserialize, Serialize};

/// Sizes of harm that are tried: multiples of the incumbent's (or the allowed) figure.
pub const SIZES: [f64; 4] = [1.5, 2.0, 3.0, 5.0];
const RUNS: u32 = 200;
/// Looks per stage.
const LOOKS: u32 = 24;
/// Larger arms are simulated at this size: more devices only find more.
const DEVICES: u32 = 150;
/// Share of runs that must find a harm for it to count as found.
const FOUND: f64 = 0.8;
/// Share of devices silent for reasons of their own; share of labelled inputs only one model gets right.
const SILENT: f64 = 0.02;
const DISCORDANT: f64 = 0.04;

/// What one stage will have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageForecast {
    pub canaries: u32,
    pub controls: u32,
    pub hours: f64,
    /// Bad device-hours of the incumbent, as a share (last week's telemetry).
    pub bad_rate: f64,
    /// Shadow comparisons per device and hour that weigh; 0 without shadow.
    pub shadow_per_hour: f64,
    /// Labelled inputs per device and hour; 0 without labels.
    pub labels_per_hour: f64,
    /// Spread (standard deviation of the logarithm) of a device's after/before ratio of p95.
    pub latency_spread: f64,
}

/// How often harm of a given size is found within the stage, and what is never found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatePower {
    pub gate: Gate,
    /// (size of harm, share of simulated runs that failed); sizes 1.5, 2, 3, 5.
    pub detection: Vec<(f64, f64)>,
    /// Share of harmless runs that failed.
    pub false_aborts: f64,
    /// Smallest simulated harm found in at least 80 % of runs.
    pub smallest_found: Option<f64>,
    /// Median hours until a harmless candidate is called safe; `None`: not within the stage.
    pub hours_to_safe: Option<f64>,
    /// Too few devices: this gate decides nothing in this stage (DECISIONS 25).
    pub powerless: bool,
    pub sentence: String,
}

/// Hours after which a run was failed and called safe, if ever.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    failed: Option<f64>,
    safe: Option<f64>,
}

/// Simulates the stage, one entry per asked gate that can be simulated (not `hard`, which counts, nor
/// `drift`, which depends on the mix of classes). The same seed gives the same figures.
pub fn forecast(stage: &StageForecast, settings: &GateSettings, seed: u64) -> Vec<GatePower> {
    let (told, stage) = (stage, &bounded(stage));
    settings
        .gates
        .iter()
        .filter(|gate| settings.decides(**gate))
        .filter_map(|gate| {
            let run: fn(&StageForecast, &GateSettings, f64, &mut Random) -> Run = match gate {
                Gate::Errors => errors,
                Gate::Latency => latency,
                Gate::Agreement => agreement,
                Gate::Telemetry => telemetry,
                Gate::Accuracy => accuracy,
                Gate::Hard | Gate::Drift => return None,
            };
            let mut random = Random::new(seed ^ (*gate as u64).wrapping_mul(0x9e37_79b9));
            let mut runs =
                |size: f64| (0..RUNS).map(|_| run(stage, settings, size, &mut random)).collect::<Vec<_>>();
            let share =
                |runs: &[Run]| runs.iter().filter(|r| r.failed.is_some()).count() as f64 / f64::from(RUNS);
            let harmless = runs(1.0);
            let detection: Vec<_> = SIZES.into_iter().map(|size| (size, share(&runs(size)))).collect();
            let small =
                stage.canaries < settings.canaries_needed(*gate) || stage.controls < settings.min_controls;
            let mut power = GatePower {
                gate: *gate,
                smallest_found: detection.iter().find(|(_, found)| *found >= FOUND).map(|(size, _)| *size),
                detection,
                false_aborts: share(&harmless),
                hours_to_safe: median(harmless.iter().map(|r| r.safe)),
                powerless: gate.is_device_level() && small,
                sentence: String::new(),
            };
            power.sentence = sentence(&power, told);
            Some(power)
        })
        .collect()
}

fn bounded(stage: &StageForecast) -> StageForecast {
    let keep = |x: f64, most: f64| if x.is_finite() { x.clamp(0.0, most) } else { 0.0 };
    StageForecast {
        canaries: stage.canaries.min(DEVICES),
        controls: stage.controls.min(3 * DEVICES),
        hours: keep(stage.hours, 336.0).floor(),
        bad_rate: keep(stage.bad_rate, 0.9),
        shadow_per_hour: keep(stage.shadow_per_hour, 1e5),
        labels_per_hour: keep(stage.labels_per_hour, 1e5),
        latency_spread: keep(stage.latency_spread, 3.0),
    }
}

/// Hours (or votes) at which a stage is looked at, each with the number since the look before.
fn looks(hours: u32) -> impl Iterator<Item = (u32, u64)> {
    let step = hours.div_ceil(LOOKS).max(1);
    (step..=hours).step_by(step as usize).map(move |hour| (hour, u64::from(step)))
}

fn median(times: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut times: Vec<f64> = times.map(|time| time.unwrap_or(f64::INFINITY)).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().filter(|time| time.is_finite())
}

fn sentence(power: &GatePower, stage: &StageForecast) -> String {
    let (c, b, hours) = (stage.canaries, stage.controls, stage.hours);
    if power.powerless {
        return format!(
            "{c} canaries and {b} controls are too few for `{}`: a person must decide.",
            power.gate
        );
    }
    let found = match power.smallest_found {
        Some(size) => format!("finds {size} times worse"),
        None => "finds none of 1.5, 2, 3 and 5 times worse reliably".to_owned(),
    };
    let shares: Vec<_> =
        power.detection.iter().map(|(size, found)| format!("{size}x {:.0} %", found * 100.0)).collect();
    let safe = match power.hours_to_safe {
        Some(safe) => format!("a harmless candidate is called safe after about {safe:.0} h"),
        None => "a harmless candidate is usually not called safe in time".to_owned(),
    };
    format!(
        "`{}` with {c} canaries and {b} controls in {hours:.0} h {found} ({}); {safe}.",
        power.gate,
        shares.join(", ")
    )
}

/// First bad windows and device-hours; `size` multiplies the canaries' rate.
fn errors(stage: &StageForecast, settings: &GateSettings, size: f64, random: &mut Random) -> Run {
    let (n_c, n_b) = (stage.canaries, stage.controls);
    let mut firsts: Vec<(f64, bool)> = Vec::new();
    for i in 0..n_c + n_b {
        let canary = i < n_c;
        let rate = stage.bad_rate * (0.5 * random.normal() - 0.125).exp() * if canary { size } else { 1.0 };
        let at = random.exponential() / rate.max(1e-12);
        if at < stage.hours {
            firsts.push((at, canary));
        }
    }
    firsts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let threshold = settings.harm_threshold(Gate::Errors);
    let (mut run, mut rank) = (Run::default(), LogRank::default());
    let (mut at_risk, mut events) = ((n_c, n_b), (0, 0));
    let (mut bad, mut clean) = (0.0, 0.0);
    let mut firsts = firsts.into_iter().peekable();
    for (hour, span) in looks(stage.hours as u32) {
        let hour = f64::from(hour);
        while let Some((_, canary)) = firsts.next_if(|(at, _)| *at < hour) {
            rank.draw(canary, 1.0, f64::from(at_risk.0), f64::from(at_risk.1), settings.errors.margin);
            let (left, seen) =
                if canary { (&mut at_risk.0, &mut events.0) } else { (&mut at_risk.1, &mut events.1) };
            *left -= 1;
            *seen += 1;
        }
        let now_bad = random.binomial(u64::from(n_c) * span, (stage.bad_rate * size).min(0.99)) as f64;
        bad += now_bad;
        clean += (u64::from(n_c) * span) as f64 - now_bad;
        let harm = Side::new((rank.ln_harm(), rank.ln_harm_without_one()), events.0);
        if harm.proves(threshold, settings.min_devices) {
            run.failed.get_or_insert(hour);
            break;
        }
        let at = |clean: f64| ln_bernoulli(bad, clean, settings.errors.max_bad_rate, &SAFE_RATIOS);
        let absolute = Side::new((at(clean), at((clean - hour).max(0.0))), n_c);
        let relative = Side::new((rank.ln_safe(), rank.ln_safe_without_one()), events.1);
        let safe = |side: Side| side.proves(settings.safe_threshold(), settings.min_devices);
        if safe(absolute) || safe(relative) {
            run.safe.get_or_insert(hour);
        }
    }
    run
}

/// One vote per canary, at the end of the stage, in turn; `size` multiplies the canaries' latency.
fn latency(stage: &StageForecast, settings: &GateSettings, size: f64, random: &mut Random) -> Run {
    let mut ratio = |size: f64| BeforeAfter {
        before_ms: 10.0,
        after_ms: 10.0 * size * (stage.latency_spread * random.normal()).exp(),
    };
    let (mut votes, mut run) = (Latency::default(), Run::default());
    for (seen, span) in looks(stage.canaries) {
        for _ in 0..span {
            let own = (stage.controls / stage.canaries.max(1)).clamp(1, 3);
            let controls: Vec<_> = (0..own).map(|_| ratio(1.0)).collect();
            match latency_vote(ratio(size), &controls, settings.latency.factor) {
                Vote::Slower => votes.slower += 1,
                Vote::NotSlower => votes.not_slower += 1,
                Vote::Tie => {}
            }
        }
        let threshold = settings.harm_threshold(Gate::Latency);
        let hours = stage.hours * f64::from(seen) / f64::from(stage.canaries);
        if Side::new(votes.ln_harm(), votes.slower).proves(threshold, settings.min_devices) {
            run.failed.get_or_insert(hours);
            break;
        }
        if Side::new(votes.ln_safe(), votes.not_slower)
            .proves(settings.safe_threshold(), settings.min_devices)
        {
            run.safe.get_or_insert(hours);
        }
    }
    run
}

/// Shadow comparisons; harmless: a quarter of the allowed disagreement, harmful: `size` times it.
fn agreement(stage: &StageForecast, settings: &GateSettings, size: f64, random: &mut Random) -> Run {
    let allowed = 1.0 - settings.agreement.floor;
    let share = if size <= 1.0 { allowed / 4.0 } else { (allowed * size).min(0.95) };
    let devices = f64::from(stage.canaries.max(1));
    let per_device = stage.shadow_per_hour.min(f64::from(settings.per_window));
    let per_hour = (per_device * devices) as u64;
    let (mut n, mut x, mut run) = (0.0, 0.0, Run::default());
    for (hour, span) in looks(stage.hours as u32) {
        let more = per_hour.saturating_mul(span);
        n += more as f64;
        x += random.binomial(more, share) as f64;
        let harm = |x: f64| ln_bernoulli(x, n - x, allowed, &HARM_RATIOS);
        let safe = |clean: f64| ln_bernoulli(x, clean, allowed, &SAFE_RATIOS);
        let (clean, less) = (n - x, 1.0 - 1.0 / devices);
        // The gate takes only the disagreements of the heaviest device away; alike devices: a share each.
        let harm = Side::new((harm(x), ln_bernoulli(x * less, n - x, allowed, &HARM_RATIOS)), stage.canaries);
        let safe = Side::new((safe(clean), safe(clean * less)), stage.canaries);
        if harm.proves(settings.harm_threshold(Gate::Agreement), settings.min_devices) {
            run.failed.get_or_insert(f64::from(hour));
            break;
        }
        if safe.proves(settings.safe_threshold(), settings.min_devices) {
            run.safe.get_or_insert(f64::from(hour));
        }
    }
    run
}

/// Each device is counted once, at the end; `size` multiplies the share of canaries that fall silent.
fn telemetry(stage: &StageForecast, settings: &GateSettings, size: f64, random: &mut Random) -> Run {
    let mut group = |expected: u32, share: f64| {
        let silent = random.binomial(u64::from(expected), share.min(1.0)) as u32;
        Reporting { expected, received: expected - silent.min(expected) }
    };
    let (canary, control) = (group(stage.canaries, SILENT * size), group(stage.controls, SILENT));
    let mut telemetry = Telemetry::default();
    telemetry.add(canary, control, settings.telemetry.margin);
    let harm = Side::new(telemetry.ln_harm(), canary.expected - canary.received);
    let failed = harm.proves(settings.harm_threshold(Gate::Telemetry), settings.min_devices);
    let safe = telemetry.coverage() >= settings.telemetry.min_coverage;
    Run { failed: failed.then_some(stage.hours), safe: (!failed && safe).then_some(stage.hours) }
}

/// Labels; 4 % of the inputs are right with one model only, and losses are `size` times the wins.
fn accuracy(stage: &StageForecast, settings: &GateSettings, size: f64, random: &mut Random) -> Run {
    let devices = f64::from(stage.canaries.max(1));
    let per_hour = (stage.labels_per_hour.min(f64::from(settings.per_window)) * devices) as u64;
    let mut run = Run::default();
    let (mut all, mut less) = (Accuracy::default(), Accuracy::default());
    for (hour, span) in looks(stage.hours as u32) {
        let more = per_hour.saturating_mul(span);
        let pairs = random.binomial(more, DISCORDANT);
        let losses = random.binomial(pairs, size / (1.0 + size));
        all.losses += losses as f64;
        all.wins += (pairs - losses) as f64;
        all.ties += (more - pairs) as f64;
        let rest = 1.0 - 1.0 / devices;
        (less.losses, less.wins, less.ties) = (all.losses * rest, all.wins, all.ties);
        let harm = Side::new((all.ln_harm().0, less.ln_harm().0), stage.canaries);
        (less.losses, less.wins, less.ties) = (all.losses, all.wins * rest, all.ties * rest);
        let drop = settings.accuracy.max_drop;
        let safe = Side::new((all.ln_safe(drop).0, less.ln_safe(drop).0), stage.canaries);
        if harm.proves(settings.harm_threshold(Gate::Accuracy), settings.min_devices) {
            run.failed.get_or_insert(f64::from(hour));
            break;
        }
        if safe.proves(settings.safe_threshold(), settings.min_devices) {
            run.safe.get_or_insert(f64::from(hour));
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage() -> StageForecast {
        StageForecast {
            canaries: 20,
            controls: 60,
            hours: 24.0,
            bad_rate: 0.01,
            shadow_per_hour: 60.0,
            labels_per_hour: 60.0,
            latency_spread: 0.1,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_honest_figures() {
        let settings = GateSettings {
            gates: [Gate::Errors, Gate::Latency, Gate::Telemetry, Gate::Agreement].into(),
            ..GateSettings::default()
        };
        let powers = forecast(&stage(), &settings, 1);
        assert_eq!(powers, forecast(&stage(), &settings, 1));
        assert_eq!(powers.len(), 4);
        for power in &powers {
            println!("{} (false {:.3})", power.sentence, power.false_aborts);
            assert!(power.false_aborts <= 0.02, "{power:?}");
            let found: Vec<_> = power.detection.iter().map(|(_, found)| *found).collect();
            assert!(found.windows(2).all(|w| w[0] <= w[1] + 0.1), "{power:?}");
        }
        let of = |gate| powers.iter().find(|p| p.gate == gate).unwrap();
        assert!(of(Gate::Latency).detection[0].1 > 0.9, "{:?}", of(Gate::Latency));
        assert_eq!(of(Gate::Agreement).smallest_found, Some(1.5));
        assert!(of(Gate::Errors).detection[0].1 < 0.5, "1.5 times 1 % is not found by 80 devices in a day");
        let labels = GateSettings { gates: [Gate::Accuracy].into(), ..GateSettings::default() };
        println!("{}", forecast(&stage(), &labels, 1)[0].sentence);
    }

    #[test]
    fn small_large_and_absurd_stages_get_an_answer() {
        let small = StageForecast { canaries: 3, controls: 6, ..stage() };
        let powers = forecast(&small, &GateSettings::default(), 1);
        assert!(powers.iter().all(|p| p.powerless && p.sentence.contains("too few")), "{powers:?}");
        let large = StageForecast { canaries: 40_000, controls: 120_000, hours: 400.0, ..stage() };
        let mut settings = GateSettings::default();
        settings.gates.extend([Gate::Accuracy]);
        let powers = forecast(&large, &settings, 1);
        assert!(powers.iter().all(|p| p.false_aborts <= 0.02 && p.sentence.contains("40000")), "{powers:?}");
        let absurd = StageForecast {
            canaries: 0,
            controls: u32::MAX,
            hours: f64::NAN,
            bad_rate: f64::INFINITY,
            ..stage()
        };
        assert!(forecast(&absurd, &GateSettings::default(), 1).iter().all(|p| p.powerless));
    }
}
