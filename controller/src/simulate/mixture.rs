//! Random settings from a seed: any plan, any faults, any people, any store. What must hold, holds for all of them.

use super::{
    rng::{Rng, mix},
    scenario::{Behaviour, Faults, Scenario},
    settings::{Check, People, Settings, StoreKind, with_labels},
};
use crate::{
    evidence::Gate,
    rollout::{Mode, OnFail, Plan, Share, Span, window::Window},
};

/// The same seed, the same mixture.
pub fn mixture(devices: u32, seed: u64) -> Settings {
    let mut rng = Rng::new(mix(seed ^ 0x0001_f1b7));
    let scenario = Scenario::ALL[rng.below(Scenario::ALL.len() as u64) as usize];
    let mut settings = Settings::new(devices, seed, scenario);
    settings.plan = plan(&mut rng, settings.plan);
    settings.faults = match rng.below(4) {
        0 => Faults::none(),
        1 => Faults::harsh(),
        _ => Faults::usual(),
    };
    if rng.chance(0.3) {
        // Several things are wrong at once.
        let other = Scenario::ALL[rng.below(Scenario::ALL.len() as u64) as usize].behaviour();
        settings.behaviour = worst(&settings.behaviour, &other);
    }
    settings.per_site = 3 + rng.below(60) as u32;
    settings.window_secs = [1_800, 3_600, 7_200][rng.below(3) as usize];
    settings.all_windows = rng.chance(0.5);
    settings.terse = rng.chance(0.3);
    settings.people = [People::Agreeing, People::Absent, People::Busy, People::Busy][rng.below(4) as usize];
    settings.troubles = rng.below(8) as u32;
    settings.tail = rng.chance(0.3);
    settings.twice = rng.chance(0.2);
    settings.check = Check::EveryStep;
    settings.store = match rng.below(4) {
        0 => StoreKind::Documents { drivers: 1, crashes: 0.1 },
        1 => StoreKind::Documents { drivers: 2, crashes: 0.0 },
        2 => StoreKind::Documents { drivers: 3, crashes: 0.05 },
        _ => StoreKind::Memory,
    };
    settings
}

fn worst(a: &Behaviour, b: &Behaviour) -> Behaviour {
    Behaviour {
        errors: a.errors.max(b.errors),
        slower: a.slower.max(b.slower),
        confuses: a.confuses.max(b.confuses),
        crashes: a.crashes.max(b.crashes),
        silences: a.silences.max(b.silences),
        darkens: a.darkens.max(b.darkens),
        bad_signature: a.bad_signature.max(b.bad_signature),
        unfit: a.unfit.max(b.unfit),
        loses: a.loses.max(b.loses),
    }
}

fn plan(rng: &mut Rng, mut plan: Plan) -> Plan {
    if rng.chance(0.15) {
        let size = Some(Share::Percent(100.0));
        plan.stages = vec![crate::rollout::Stage { size, ..crate::rollout::Stage::named("all") }];
    }
    if rng.chance(0.3) {
        plan = with_labels(plan);
    }
    if rng.chance(0.3) {
        plan.stages.retain(|stage| stage.mode == Mode::Active);
    }
    let faster = 1 + rng.below(6);
    for stage in &mut plan.stages {
        stage.soak = Span::secs(stage.soak.as_secs() / faster);
        if rng.chance(0.1) {
            stage.approval = true;
        }
        if rng.chance(0.1) {
            stage.spread = Some(Span::hours(1 + rng.below(12)));
        }
        if rng.chance(0.1) {
            stage.gates.retain(|gate| *gate == Gate::Hard);
        }
        if rng.chance(0.1) {
            stage.coverage = Some(Share::Percent(50.0));
        }
    }
    if rng.chance(0.3) {
        let groups = ["site", "region"][rng.below(2) as usize].to_owned();
        plan.assign.max_in_flight_per = [(groups, Share::Percent(10.0))].into();
    }
    if rng.chance(0.2)
        && let Ok(cron) = "0 2 * * *".parse()
    {
        plan.window = Some(Window {
            cron,
            length: Span::hours(2),
            zone: Default::default(),
            download: Default::default(),
        });
    }
    if rng.chance(0.2) {
        plan.limits.bytes_per_day = Some(super::device::DOWNLOAD * (20 + rng.below(200)));
    }
    if rng.chance(0.5) {
        plan.limits.concurrency = Share::Percent(20.0);
    }
    plan.probation = Span::minutes(1 + rng.below(120));
    plan.on_fail = [OnFail::Revert, OnFail::Revert, OnFail::Halt, OnFail::Freeze][rng.below(4) as usize];
    plan.on_inconclusive.then = [OnFail::Revert, OnFail::Halt, OnFail::Freeze][rng.below(3) as usize];
    plan.approval = rng.chance(0.2);
    // A month of waiting for devices that never come shows no more than some days of it.
    plan.timeouts.rest = Span::days(1 + rng.below(6));
    plan
}
