//! The child's side of a comparison: loads, runs and unloads as [`Duels`] says.

use super::{
    Comparison,
    files::failure,
    messages::{Compare, Contestant},
    worker::{Opened, doing, read, refused, sample},
};
use crate::engine::{
    LoadedModel, RunError,
    chooser::{Budget, Duels, Step, Turn},
    golden, piped,
    pool::batch,
};
use edgefleet_shared::{bundle::GoldenSample, probe::ProbeFailure, reported::RefusalCode, tensor::Tensor};
use std::time::{Duration, Instant};

/// What a turn is about.
struct Inputs {
    small: Vec<Tensor>,
    batch: Option<(usize, Vec<Tensor>)>,
    rtol: f64,
    atol: f64,
}

impl Inputs {
    /// The sample as it is, or one row of it and that row `rows` times.
    fn of(
        sample: GoldenSample,
        rows: usize,
        (rtol, atol): (f64, f64),
        name: &str,
    ) -> Result<Self, ProbeFailure> {
        let whole = |small| Self { small, batch: None, rtol, atol };
        let Some(had) = batch::rows(&sample.inputs).filter(|_| rows > 1) else {
            return Ok(whole(sample.inputs));
        };
        let torn = || {
            let text = format!("golden sample `{name}` cannot be taken apart by rows");
            failure(RefusalCode::ManifestInvalid, text)
        };
        let small = match had {
            1 => sample.inputs,
            _ => {
                let parts = batch::split(&sample.inputs, &[1, had - 1]);
                parts.and_then(|parts| parts.into_iter().next()).ok_or_else(torn)?
            }
        };
        let many = batch::join(&vec![small.as_slice(); rows]).ok_or_else(torn)?;
        Ok(Self { batch: Some((rows, many)), ..whole(small) })
    }
}

/// A model in memory.
struct Loaded {
    model: Box<dyn LoadedModel>,
    /// Takes rows together; otherwise they are served one by one.
    together: bool,
}

impl Loaded {
    fn new(model: Box<dyn LoadedModel>, inputs: &Inputs) -> Result<Self, ProbeFailure> {
        let Some((rows, many)) = &inputs.batch else { return Ok(Self { model, together: false }) };
        let one = model.run(&inputs.small).map_err(broke)?;
        let wanted = batch::join(&vec![one.as_slice(); *rows]);
        let (Some(wanted), Ok(found)) = (wanted, model.run(many)) else {
            return Ok(Self { model, together: false });
        };
        if batch::split(&found, &vec![1; *rows]).is_none() {
            return Ok(Self { model, together: false });
        }
        let result = golden::compare("batch", &wanted, &found, inputs.rtol, inputs.atol);
        match result.passed {
            true => Ok(Self { model, together: true }),
            false => {
                let why = result.mismatch.unwrap_or_default();
                let text = format!("{rows} equal rows together are answered unlike one alone: {why}");
                Err(failure(RefusalCode::GoldenMismatch, text))
            }
        }
    }

    fn turn(&self, inputs: &Inputs) -> Result<Turn, ProbeFailure> {
        let timed = |tensors: &[Tensor]| {
            let started = Instant::now();
            self.model.run(tensors).map(|_| started.elapsed()).map_err(broke)
        };
        let small = timed(&inputs.small)?;
        let batch = match &inputs.batch {
            None => None,
            Some((_, many)) if self.together => Some(timed(many)?),
            Some((rows, _)) => Some(small.saturating_mul(u32::try_from(*rows).unwrap_or(u32::MAX))),
        };
        Ok(Turn { small, batch })
    }
}

pub(super) fn compare(engines: &Opened, task: &Compare) -> Result<Comparison, ProbeFailure> {
    let (started, golden) = (Instant::now(), &task.golden);
    let inputs = Inputs::of(sample(golden)?, task.rows, (golden.rtol, golden.atol), &golden.name)?;
    let rows = inputs.batch.as_ref().map(|(rows, _)| *rows);
    let time = Duration::from_millis(task.budget_ms);
    let budget = Budget { warm_up: task.warm_up, most: task.most, time };
    // A turn is one run of each input.
    let turns = u32::try_from(rows.unwrap_or(0)).unwrap_or(u32::MAX).saturating_add(1);
    let alone = task.contestants.iter();
    let alone = alone.map(|one| Duration::from_micros(one.alone_us).saturating_mul(turns)).collect();
    let mut duels = Duels::new(alone, budget, Duration::from_millis(task.wall_ms));
    let mut models: Vec<Option<Loaded>> = task.contestants.iter().map(|_| None).collect();
    let mut failed: Vec<Option<ProbeFailure>> = vec![None; models.len()];
    while let Some(step) = duels.step(started.elapsed()) {
        match step {
            Step::Load(who) => {
                let contestant = &task.contestants[who];
                doing(format!("loading the model with {}", contestant.engine.name))?;
                match load(engines, task, contestant, &inputs) {
                    Ok(loaded) => {
                        models[who] = Some(loaded);
                        duels.loaded(who);
                        doing("taking the time in turns")?;
                    }
                    Err(reason) => {
                        failed[who] = Some(reason);
                        duels.failed(who);
                    }
                }
            }
            Step::Unload(who) => models[who] = None,
            Step::Run(who) => {
                // What runs was loaded: see `Step`.
                let turn = models[who].as_ref().map(|model| model.turn(&inputs));
                match turn {
                    Some(Ok(turn)) => duels.ran(who, turn),
                    None => duels.failed(who),
                    Some(Err(reason)) => {
                        failed[who] = Some(reason);
                        duels.failed(who);
                    }
                }
            }
        }
    }
    let times = duels.times().iter().zip(failed).map(|(times, failed)| failed.map_or(Ok(*times), Err));
    let small_rows = batch::rows(&inputs.small).unwrap_or(1);
    Ok(Comparison { times: times.collect(), rows: small_rows, batch: rows })
}

fn load(
    engines: &Opened,
    task: &Compare,
    contestant: &Contestant,
    inputs: &Inputs,
) -> Result<Loaded, ProbeFailure> {
    let whole = || {
        let bytes = read(&contestant.model, "the model")?;
        let (model, _) = engines.load(contestant.engine, bytes, &task.interface)?;
        piped::around(model, task.pipeline.as_ref(), &task.interface, &task.labels).map_err(refused)
    };
    Loaded::new(whole()?, inputs)
}

fn broke(error: RunError) -> ProbeFailure {
    failure(RefusalCode::ProbeCrashed, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::tensor::Datatype;

    /// Doubles; what it does with several rows is its own affair.
    struct Doubles(fn(Vec<u8>) -> Result<Vec<u8>, RunError>);
    impl LoadedModel for Doubles {
        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            let doubled: Vec<u8> = inputs[0].data().iter().map(|byte| byte * 2).collect();
            let doubled = if doubled.len() > 1 { (self.0)(doubled)? } else { doubled };
            let shape = vec![doubled.len(), 1];
            Ok(vec![Tensor::new("y", Datatype::Uint8, shape, doubled.into()).unwrap()])
        }
    }

    fn inputs(rows: usize, data: &[u8]) -> Inputs {
        let tensor = Tensor::new("x", Datatype::Uint8, vec![data.len(), 1], data.to_vec().into()).unwrap();
        let sample = GoldenSample { inputs: vec![tensor], outputs: vec![] };
        Inputs::of(sample, rows, (0.0, 0.0), "one").unwrap()
    }

    #[test]
    fn one_row_is_repeated_and_without_batches_the_sample_stays_as_it_is() {
        let whole = inputs(1, &[1, 2]);
        assert!(whole.batch.is_none() && whole.small[0].data()[..] == [1, 2]);
        for data in [&[7][..], &[7, 8, 9]] {
            let cut = inputs(3, data);
            assert_eq!(cut.small[0].data()[..], [7]);
            let (rows, many) = cut.batch.unwrap();
            assert_eq!((rows, many[0].shape(), &many[0].data()[..]), (3, &[3, 1][..], &[7, 7, 7][..]));
        }
    }

    #[test]
    fn a_setup_whose_answers_depend_on_the_batch_is_refused_and_one_without_batches_is_not() {
        let inputs = inputs(2, &[7]);
        let together = |model: Doubles| Loaded::new(Box::new(model), &inputs).map(|loaded| loaded.together);
        assert!(together(Doubles(Ok)).unwrap());
        assert!(!together(Doubles(|_| Err(RunError::Engine("one at a time".into())))).unwrap());
        assert!(!together(Doubles(|all| Ok(all[..1].to_vec()))).unwrap());
        let refused = together(Doubles(|all| Ok(vec![all[0], all[1] + 1]))).unwrap_err();
        assert_eq!(refused.code, RefusalCode::GoldenMismatch);
        assert!(refused.message.contains("2 equal rows together"), "{}", refused.message);
        let alone = Loaded::new(Box::new(Doubles(|_| Err(RunError::Engine("no".into())))), &inputs).unwrap();
        let turn = alone.turn(&inputs).unwrap();
        assert_eq!(turn.batch, Some(turn.small * 2));
    }
}
