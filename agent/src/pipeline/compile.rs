//! From the manifest's steps to functions: names become places, shapes and types are followed from the
//! clients' tensors to the model's and from the model's to the clients'.

use super::{
    classify, debounce, detect,
    error::CompileError,
    image,
    kind::Kind,
    numeric, signal,
    step::{Built, Run},
    table,
    template::Template,
};
use edgefleet_shared::bundle::{
    TensorSpec,
    pipeline::{Op, Side, Step},
};
use std::collections::{BTreeMap, BTreeSet};

/// One side of the model, ready to run.
pub(super) struct Program {
    pub side: Side,
    /// What it starts with, in places 0, 1, ...
    pub inputs: Vec<TensorSpec>,
    pub steps: Vec<Planned>,
    /// What it ends with, and in which places.
    pub outputs: Vec<(usize, TensorSpec)>,
    /// Number of places.
    pub places: usize,
    /// Inputs of the next side that carry placements of images.
    pub placed: Vec<String>,
}

pub(super) struct Planned {
    pub op: &'static str,
    pub run: Box<dyn Run>,
    /// Place, and whether nobody reads it later.
    pub reads: Vec<(usize, bool)>,
    pub writes: Vec<usize>,
}

/// Names of tensors at some point, with place and kind.
struct Scope {
    known: BTreeMap<String, (usize, Kind)>,
    /// What the last step wrote.
    current: Option<String>,
    places: usize,
}

impl Scope {
    fn get(&self, name: &str) -> Result<(usize, Kind), String> {
        self.known.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.known.keys().map(String::as_str).collect();
            format!("there is no tensor `{name}` here, only {}", known.join(", "))
        })
    }
    fn write(&mut self, name: String, kind: Kind) -> usize {
        let place = self.places;
        self.places += 1;
        self.known.insert(name, (place, kind));
        place
    }
}

/// Follows the steps from `inputs` to `outputs`.
///
/// # Errors
/// The first step that does not fit, or an output that is missing or of another kind.
pub(super) fn program(
    side: Side,
    inputs: &[TensorSpec],
    steps: &[Step],
    outputs: &[TensorSpec],
    labels: &[String],
    placed: &[String],
) -> Result<Program, CompileError> {
    let mut scope = Scope { known: BTreeMap::new(), current: None, places: 0 };
    for spec in inputs {
        scope.write(spec.name.clone(), Kind::of(spec));
    }
    if let [only] = inputs {
        scope.current = Some(only.name.clone());
    }
    let mut planned = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let (number, op) = (index + 1, step.op.name());
        let next = plan(&mut scope, step, number, labels, placed);
        planned.push(next.map_err(|reason| CompileError::Step { side, step: number, op, reason })?);
    }
    let mut ends = Vec::new();
    let mut carried = Vec::new();
    for spec in outputs {
        let ended = scope.get(&spec.name).and_then(|(place, kind)| kind.fits(spec).map(|()| (place, kind)));
        let (place, kind) = ended.map_err(|reason| {
            let reason = match side {
                Side::Pre => format!("does not end with the model's input: {reason}"),
                Side::Post => format!("does not end with the declared output: {reason}"),
            };
            CompileError::Ends { side, reason }
        })?;
        if kind.placed() {
            carried.push(spec.name.clone());
        }
        ends.push((place, spec.clone()));
    }
    mark_last_reads(&mut planned, &ends);
    let inputs = inputs.to_vec();
    Ok(Program { side, inputs, steps: planned, outputs: ends, places: scope.places, placed: carried })
}

fn plan(
    scope: &mut Scope,
    step: &Step,
    number: usize,
    labels: &[String],
    placed: &[String],
) -> Result<Planned, String> {
    let reads_many = matches!(step.op, Op::Concat { .. } | Op::Template { .. });
    let from = match (&step.from, reads_many) {
        (Some(_), true) => return Err("names what it reads itself; leave `from` out".into()),
        (None, true) => None,
        (Some(from), false) => Some(from.clone()),
        (None, false) => {
            let known: Vec<&str> = scope.known.keys().map(String::as_str).collect();
            let choice = || format!("needs `from`: one of {}", known.join(", "));
            Some(scope.current.clone().ok_or_else(choice)?)
        }
    };
    let to = step.to.clone().or_else(|| from.clone()).ok_or("needs `to`, the name of its result")?;
    let template = match &step.op {
        Op::Template { text } => Some(Template::parse(text)?),
        _ => None,
    };
    let names: Vec<String> = match (&step.op, &template, from) {
        (Op::Concat { parts }, _, _) => parts.clone(),
        (_, Some(template), _) => template.names.clone(),
        (Op::Abstain { scores, .. } | Op::DecodeSsd { scores, .. }, _, Some(from)) => {
            vec![from, scores.clone()]
        }
        (_, _, from) => from.into_iter().collect(),
    };
    let found: Vec<(usize, Kind)> = names.iter().map(|name| scope.get(name)).collect::<Result<_, _>>()?;
    let (places, kinds): (Vec<usize>, Vec<Kind>) = found.into_iter().unzip();
    let compiled = match (template, &step.op) {
        (Some(template), _) => template.compile(&kinds)?,
        (None, op) => build(op, &kinds, number, labels, placed)?,
    };
    let second = match &step.op {
        Op::TopK { indices, .. } => Some(indices.clone()),
        _ => None,
    };
    if second.as_ref() == Some(&to) {
        return Err(format!("writes values and indexes to `{to}`"));
    }
    scope.current = Some(to.clone());
    let names = [Some(to), second].into_iter().flatten();
    let writes = names.zip(compiled.writes).map(|(name, kind)| scope.write(name, kind)).collect();
    let reads = places.into_iter().map(|place| (place, false)).collect();
    Ok(Planned { op: step.op.name(), run: compiled.run, reads, writes })
}

fn build(op: &Op, inputs: &[Kind], number: usize, labels: &[String], placed: &[String]) -> Built {
    let first = || inputs.first().ok_or("reads nothing");
    match op {
        Op::DecodeImage { .. }
        | Op::Crop { .. }
        | Op::Resize { .. }
        | Op::Letterbox { .. }
        | Op::Color { .. }
        | Op::Layout { .. } => image::compile(op, first()?),
        Op::Scale { .. }
        | Op::Normalize { .. }
        | Op::Standardize { .. }
        | Op::Clip { .. }
        | Op::Cast { .. }
        | Op::Dequantize { .. }
        | Op::Sigmoid {}
        | Op::Transpose { .. }
        | Op::Reshape { .. } => numeric::compile(op, first()?),
        Op::Concat { .. } => table::concat(inputs),
        Op::Select { .. } | Op::Impute { .. } | Op::CategoryMap { .. } | Op::OneHot { .. } => {
            table::compile(op, first()?)
        }
        Op::Window { .. } | Op::Fft { .. } | Op::Mel { .. } | Op::Log { .. } => signal::compile(op, first()?),
        Op::Softmax { .. }
        | Op::Argmax { .. }
        | Op::TopK { .. }
        | Op::Threshold { .. }
        | Op::Label { .. } => classify::compile(op, first()?, labels),
        Op::Abstain { min, margin, .. } => match inputs {
            [class, scores] => classify::abstain(*min, *margin, class, scores),
            _ => Err("reads classes and scores".into()),
        },
        Op::Debounce { k, n } => debounce::compile(number, *k, *n, first()?),
        Op::DecodeYolo { .. } | Op::DecodeSsd { .. } | Op::Nms { .. } | Op::ScaleBoxes { .. } => {
            detect::compile(op, inputs, placed)
        }
        Op::Template { .. } => Err("is built from its text".into()),
    }
}

/// What nobody reads later is handed over instead of copied.
fn mark_last_reads(steps: &mut [Planned], outputs: &[(usize, TensorSpec)]) {
    let mut needed: BTreeSet<usize> = outputs.iter().map(|(place, _)| *place).collect();
    for step in steps.iter_mut().rev() {
        for (place, last) in step.reads.iter_mut().rev() {
            *last = needed.insert(*place);
        }
    }
}
