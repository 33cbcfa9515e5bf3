use super::*;

#[test]
fn a_good_candidate_reaches_everybody() {
    for seed in 0..3 {
        let outcome = run(Settings { check: Check::EveryStep, ..Settings::new(600, seed, Scenario::Good) });
        assert!(outcome.broken.is_empty(), "{:#?}", outcome.broken);
        eprintln!(
            "{seed} {} {:.0} h {:?} {:?}",
            outcome.state,
            outcome.hours,
            outcome.ending(),
            outcome.tally
        );
        for stage in &outcome.stages {
            eprintln!("  {stage:?}");
        }
        for v in &outcome.verdicts {
            eprintln!("   {:?} {:?} {:?}", v.stage, v.decision, v.because);
        }
    }
}
