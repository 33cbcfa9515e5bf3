//! One report per gate: its numbers, verdict, effect and words.

use super::Evidence;
use super::interval;
use super::judge::{Found, Side, closing, show};
use super::mixture::e_value;
use super::report::{ArmSizes, Effect, GateReport, Verdict};
use super::settings::{Gate, GateSettings};

/// Level of the intervals that are shown.
const SHOWN: f64 = 0.05;

impl Evidence {
    pub(super) fn report(&self, gate: Gate, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        match gate {
            Gate::Hard => self.hard_report(settings, arms),
            Gate::Errors => self.errors_report(settings, arms),
            Gate::Latency => self.latency_report(settings, arms),
            Gate::Agreement => self.agreement_report(settings, arms),
            Gate::Drift => self.drift_report(settings, arms),
            Gate::Telemetry => self.telemetry_report(settings, arms),
            Gate::Accuracy => self.accuracy_report(settings, arms),
        }
    }

    fn hard_report(&self, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        let hard = &self.hard;
        let fails = hard.fails(settings.hard.failures, settings.hard.share, arms.canaries);
        let none = Side::new((0.0, 0.0), 0);
        let found = Found { harm: none, matters: false, safe: none, is_safe: false };
        let verdict = match () {
            () if !settings.decides(Gate::Hard) => Verdict::NotAsked,
            () if fails => Verdict::Fail,
            () if arms.canaries > 0 => Verdict::Pass,
            () => Verdict::Inconclusive,
        };
        let (back, lost, refused) = (hard.rolled_back.devices, hard.lost.devices, hard.refused.devices);
        let kinds = [&hard.rolled_back, &hard.lost, &hard.refused];
        GateReport {
            verdict,
            harm_threshold: 0.0,
            safe_threshold: 0.0,
            alarm: hard
                .alarms(arms.canaries)
                .then(|| format!("{refused} devices refused the bundle (signature or rollback check)")),
            observations: f64::from(back) + f64::from(lost) + f64::from(refused),
            devices: arms.canaries,
            sentence: format!(
                "Of {} canaries {back} went back by themselves, {lost} were lost, {refused} refused the bundle; \
                 the stage fails from {} of a kind on, once they are over {} % of the canaries.",
                arms.canaries,
                settings.hard.failures,
                settings.hard.share * 100.0
            ),
            examples: kinds.into_iter().flat_map(|kind| kind.named.iter().cloned()).take(5).collect(),
            ..found.report(Gate::Hard, settings, arms)
        }
    }

    fn errors_report(&self, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        let errors = &self.errors;
        let (min, threshold) = (settings.min_devices, settings.safe_threshold());
        let harm = Side::new(errors.ln_harm(), errors.canary_events);
        let relative = Side::new(errors.ln_safe_relative(), errors.control_events);
        let hours = errors.ln_safe_absolute(settings.errors.max_bad_rate);
        let absolute = Side::new(hours, errors.devices_with_hours());
        let is_safe = relative.proves(threshold, min) || absolute.proves(threshold, min);
        let safe = if relative.ln_without_one > absolute.ln_without_one { relative } else { absolute };
        let found = Found { harm, matters: true, safe, is_safe };
        let (canary, control) = (f64::from(errors.canary_events), f64::from(errors.control_events));
        let (estimate, low, high) = interval::ratio(canary, control, errors.mean_odds(), SHOWN);
        let mut report = GateReport {
            effect: Some(Effect {
                what: "rate of first bad windows, canaries over controls".into(),
                estimate,
                low,
                high,
            }),
            observations: canary + control,
            devices: errors.canary_events.saturating_add(errors.control_events),
            worst: errors.slices.worst(),
            examples: errors.examples.clone(),
            ..found.report(Gate::Errors, settings, arms)
        };
        let merged = match errors.merged {
            0 => String::new(),
            merged => format!(" {merged} more belonged to outages already counted."),
        };
        report.sentence = format!(
            "{} canaries and {} controls had a first bad window; ratio of rates {} (95 %: {} to {}).{merged} \
             {} of {} canary device-hours were bad. {}",
            errors.canary_events,
            errors.control_events,
            times(estimate),
            times(low),
            times(high),
            errors.canary_bad_hours,
            errors.canary_hours,
            closing(&report, settings, arms)
        );
        report
    }

    fn latency_report(&self, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        let latency = &self.latency;
        let harm = Side::new(latency.ln_harm(), latency.slower);
        let safe = Side::new(latency.ln_safe(), latency.not_slower);
        let is_safe = safe.proves(settings.safe_threshold(), settings.min_devices);
        let found = Found { harm, matters: true, safe, is_safe };
        let (slower, all) =
            (f64::from(latency.slower), f64::from(latency.slower) + f64::from(latency.not_slower));
        let (low, high) = interval::proportion(slower, all, SHOWN);
        let share = settings.latency.exceed_share * settings.latency.alarm_margin;
        let exceeds = e_value(latency.ln_exceed(share));
        let mut report = GateReport {
            alarm: (exceeds >= 1.0 / settings.alpha).then(|| {
                format!(
                    "{:.1} % of canary results exceed the frozen threshold, {:.1} % are allowed (E = {})",
                    latency.exceed_share() * 100.0,
                    share * 100.0,
                    show(exceeds)
                )
            }),
            effect: (all > 0.0).then(|| Effect {
                what: "share of canaries that got slower than their controls".into(),
                estimate: slower / all,
                low,
                high,
            }),
            observations: all,
            devices: latency.slower.saturating_add(latency.not_slower).saturating_add(latency.ties),
            worst: latency.slices.worst(),
            examples: latency.examples.clone(),
            ..found.report(Gate::Latency, settings, arms)
        };
        report.sentence = format!(
            "{} canaries got slower by more than {} times the median of their controls, {} did not, {} had no \
             usable figures. {}",
            latency.slower,
            settings.latency.factor,
            latency.not_slower,
            latency.ties,
            closing(&report, settings, arms)
        );
        report
    }

    fn agreement_report(&self, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        let (shadow, limits) = (&self.shadow, &settings.agreement);
        let class_floor = limits.per_class.then_some(limits.class_floor);
        let harm = Side::new(shadow.ln_harm(limits.floor, class_floor), shadow.disagreeing_devices());
        let safe = Side::new(shadow.ln_safe(limits.floor), shadow.agreeing_devices());
        let is_safe = safe.proves(settings.safe_threshold(), settings.min_devices);
        let found = Found { harm, matters: true, safe, is_safe };
        let (low, high) = interval::proportion(shadow.disagree, shadow.n, SHOWN);
        let share = if shadow.n > 0.0 { shadow.disagree / shadow.n } else { 0.0 };
        let mut worst = shadow.classes.worst();
        worst.extend(shadow.slices.worst());
        let mut report = GateReport {
            effect: (shadow.n > 0.0).then(|| Effect {
                what: "share of answers that differ from the incumbent's".into(),
                estimate: share,
                low,
                high,
            }),
            observations: shadow.n,
            devices: shadow.agreeing_devices().max(shadow.disagreeing_devices()),
            worst,
            examples: shadow.examples(),
            ..found.report(Gate::Agreement, settings, arms)
        };
        let class = report.worst.first().filter(|_| shadow.classes.iter().next().is_some());
        let class = class.map_or(String::new(), |c| {
            format!(" Worst class: `{}`, {:.1} % of {:.0}.", c.name, c.bad / c.of * 100.0, c.of)
        });
        report.sentence = format!(
            "{:.2} % of {:.0} shadow answers differ from the incumbent's (95 %: {:.2} to {:.2} %); {:.1} % may.{class} {}",
            share * 100.0,
            shadow.n,
            low * 100.0,
            high * 100.0,
            (1.0 - limits.floor) * 100.0,
            closing(&report, settings, arms)
        );
        report
    }

    fn drift_report(&self, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        let (drift, limits) = (&self.drift, &settings.drift);
        let psi = drift.psi();
        let harm = Side::new(drift.ln_harm(), drift.devices());
        let [n_c, n_b] = drift.totals();
        let enough = n_c.min(n_b) >= f64::from(limits.min_samples) && drift.devices() >= settings.min_devices;
        let safe = Side::new((0.0, 0.0), drift.devices());
        let found =
            Found { harm, matters: psi >= limits.psi_fail, safe, is_safe: enough && psi < limits.psi_fail };
        let significant = harm.proves(settings.safe_threshold(), settings.min_devices);
        let mut report = GateReport {
            safe_threshold: 0.0,
            alarm: (psi >= limits.psi_warn && significant)
                .then(|| format!("the mix of classes moved: PSI {psi:.2}, warning from {}", limits.psi_warn)),
            effect: Some(Effect {
                what: "PSI of canaries against controls".into(),
                estimate: psi,
                low: 0.0,
                high: 1e6,
            }),
            observations: n_c + n_b,
            devices: drift.devices(),
            worst: drift.worst(),
            examples: drift.examples(),
            ..found.report(Gate::Drift, settings, arms)
        };
        report.sentence = format!(
            "PSI {psi:.3} over {n_c:.0} answers of canaries and {n_b:.0} of controls; it fails from {} on if proven, \
             and needs {} answers of each to pass. {}",
            limits.psi_fail,
            limits.min_samples,
            closing(&report, settings, arms)
        );
        report
    }

    fn telemetry_report(&self, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        let (telemetry, limits) = (&self.telemetry, &settings.telemetry);
        let devices = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let harm = Side::new(telemetry.ln_harm(), devices(telemetry.canary_silent));
        let coverage = telemetry.coverage();
        let enough = telemetry.canary_expected >= u64::from(settings.min_devices);
        let safe = Side::new((0.0, 0.0), devices(telemetry.canary_expected));
        let found = Found { harm, matters: true, safe, is_safe: enough && coverage >= limits.min_coverage };
        let (low, high) =
            interval::proportion(telemetry.canary_silent as f64, telemetry.canary_expected as f64, SHOWN);
        let mut report = GateReport {
            safe_threshold: 0.0,
            effect: (telemetry.canary_expected > 0).then(|| Effect {
                what: "share of canaries that fell silent".into(),
                estimate: 1.0 - coverage,
                low,
                high,
            }),
            observations: telemetry.canary_expected as f64 + telemetry.control_expected as f64,
            devices: devices(telemetry.canary_expected.saturating_add(telemetry.control_expected)),
            ..found.report(Gate::Telemetry, settings, arms)
        };
        report.sentence = format!(
            "{} of {} canaries and {} of {} controls did not report; at least {:.0} % of the canaries must. {}",
            telemetry.canary_silent,
            telemetry.canary_expected,
            telemetry.control_silent,
            telemetry.control_expected,
            limits.min_coverage * 100.0,
            closing(&report, settings, arms)
        );
        report
    }

    fn accuracy_report(&self, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        let (labels, limits) = (&self.accuracy, &settings.accuracy);
        let harm = Side::new(labels.ln_harm(), labels.losing_devices());
        let safe = Side::new(labels.ln_safe(limits.max_drop), labels.safe_devices());
        let is_safe = safe.proves(settings.safe_threshold(), settings.min_devices);
        let found = Found { harm, matters: true, safe, is_safe };
        let n = labels.n();
        let pairs = labels.wins + labels.losses;
        let (low, high) = interval::proportion(labels.wins, pairs, SHOWN);
        // Given the share of discordant inputs, accuracy moves by (2 share of wins - 1) times it.
        let moved = |share: f64| if n > 0.0 { (2.0 * share - 1.0) * pairs / n } else { 0.0 };
        let mut report = GateReport {
            effect: (n > 0.0).then(|| Effect {
                what: "change of accuracy against the incumbent".into(),
                estimate: if pairs > 0.0 { moved(labels.wins / pairs) } else { 0.0 },
                low: moved(low),
                high: moved(high),
            }),
            observations: n,
            devices: labels.safe_devices().max(labels.losing_devices()),
            worst: labels.slices.worst(),
            examples: labels.examples(),
            ..found.report(Gate::Accuracy, settings, arms)
        };
        let ignored = match labels.ignored {
            0 => String::new(),
            ignored => format!(" {ignored} labels of sources that the plan does not name were ignored."),
        };
        report.sentence = format!(
            "Of {n:.0} labelled inputs {:.0} were right only with the candidate, {:.0} only with the incumbent.{ignored} {}",
            labels.wins,
            labels.losses,
            closing(&report, settings, arms)
        );
        report
    }
}

/// A ratio for people; saturated ones say so.
fn times(ratio: f64) -> String {
    if ratio >= 1e6 { "more than 1e6".to_owned() } else { format!("{ratio:.2}") }
}
