//! Which channels a bundle has: a pure function of what its manifest says of tensors, steps and prediction.
//!
//! Small inputs have a channel for each number, large ones a few for what a row of them is like, pictures six for
//! how they look. Answers that are classes have confidence and entropy, answers that are numbers those numbers.

use crate::pipeline::appearance;
use edgefleet_shared::{
    bundle::{
        ChannelKind, Manifest, PipelineSpec, TensorSpec,
        pipeline::op::{Category, Op},
    },
    ids::ChannelId,
    telemetry::channel::{MAX_CATEGORY_BYTES, MAX_CHANNELS},
    tensor::Datatype,
};
use std::collections::{BTreeMap, BTreeSet};

/// Numbers of a row that are channels of their own; columns of a series that are told apart.
pub const MAX_COLUMNS: usize = 16;
/// Shortest side of a tensor that is taken for a picture.
const MIN_SIDE: i64 = 8;
/// What a row of many numbers is like, in this order.
pub(super) const SUMMARY: [&str; 5] = ["mean", "std", "min", "max", "zeros"];
pub const CONFIDENCE: &str = "confidence";
pub const ENTROPY: &str = "entropy";
/// Bins of numbers that lie between 0 and 1 and have no baseline.
const UNIT_BINS: u32 = 20;

/// One channel before it has any numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedChannel {
    pub id: ChannelId,
    pub kind: ChannelKind,
    /// Whether its values lie between 0 and 1 by their nature.
    pub(super) unit: bool,
    /// That the pipeline knows.
    pub(super) categories: Vec<String>,
}

impl PlannedChannel {
    /// Edges without a baseline; empty if nothing is known of the values.
    pub fn fixed_edges(&self) -> Vec<f64> {
        let edges = 0..=if self.unit { UNIT_BINS } else { 0 };
        if self.unit { edges.map(|n| f64::from(n) / f64::from(UNIT_BINS)).collect() } else { vec![] }
    }
    pub fn is_category(&self) -> bool {
        self.kind == ChannelKind::Category
    }
}

/// How a tensor becomes channels.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// Each number of a row.
    Features { columns: usize },
    /// Each text of a row.
    Categories { columns: usize },
    /// [`SUMMARY`], of each column of the last axis or of all.
    Summary { columns: usize },
    /// How the picture looks; `scale` makes its pixels 0 to 1 where their type says what white is.
    Picture { layout: Layout, scale: f64 },
    /// How the picture looks that this step of the pipeline decodes, counted from 1.
    Decoded { step: usize },
}

/// Where the pixels of a row's picture are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[channels, height, width]`.
    Planes,
    /// `[height, width, channels]`.
    Pixels,
    /// `[height, width]`.
    Grey,
    /// `[side * side]`.
    Square,
}

/// A tensor and what is taken from it: its channels follow each other, from `first` on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorPlan {
    pub tensor: String,
    pub what: What,
    pub first: usize,
    pub count: usize,
    /// Whether its first dimension counts rows.
    pub batched: bool,
    /// What the pipeline does not take as it is.
    pub rules: Vec<Rule>,
    /// Number of the fault if one of its numbers is infinite or none.
    pub not_finite: Option<usize>,
}

/// A step refuses, cuts or replaces values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    /// Number of its fault.
    pub fault: usize,
    pub test: Test,
}
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Test {
    Outside { min: f64, max: f64 },
    Missing { sentinel: Option<f64> },
    NoneOf { numbers: BTreeSet<i64> },
    NoneOfTexts { texts: BTreeSet<Vec<u8>> },
}

/// The channels of one bundle, inputs first.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelPlan {
    channels: Vec<PlannedChannel>,
    pub(super) inputs: Vec<TensorPlan>,
    pub(super) outputs: Vec<TensorPlan>,
    /// Channels that inputs fill.
    pub(super) of_inputs: usize,
    pub(super) confidence: Option<usize>,
    pub(super) entropy: Option<usize>,
    /// The output that holds the scores.
    pub(super) scores: Option<String>,
    /// Names of faults, by number.
    pub(super) faults: Vec<String>,
}

impl ChannelPlan {
    pub fn of(manifest: &Manifest) -> Self {
        let mut plan = Self {
            channels: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            of_inputs: 0,
            confidence: None,
            entropy: None,
            scores: manifest.prediction.as_ref().and_then(|p| p.scores.clone()),
            faults: Vec::new(),
        };
        let traced = manifest.pipeline.as_ref().map(trace).unwrap_or_default();
        let mut ids = BTreeSet::new();
        // Scores are on every bundle's page: they have their place whatever else there is.
        let reserved = 2 * usize::from(plan.scores.is_some());
        for spec in manifest.external_inputs() {
            let steps = traced.get(&spec.name).map(Vec::as_slice).unwrap_or_default();
            plan.add_input(spec, steps, MAX_CHANNELS - reserved, &mut ids);
        }
        plan.of_inputs = plan.channels.len();
        if plan.scores.is_some() {
            plan.confidence = plan.add_score(CONFIDENCE, &mut ids);
            plan.entropy = plan.add_score(ENTROPY, &mut ids);
        }
        let prediction = manifest.prediction.as_ref();
        let named = |name: &str| {
            prediction.is_some_and(|p| [&p.class, &p.scores].into_iter().flatten().any(|known| known == name))
        };
        for spec in manifest.external_outputs().iter().filter(|spec| !named(&spec.name)) {
            plan.add_output(spec, &mut ids);
        }
        plan
    }

    /// In the order in which they are filled.
    pub fn channels(&self) -> &[PlannedChannel] {
        &self.channels
    }

    fn add_score(&mut self, id: &str, ids: &mut BTreeSet<String>) -> Option<usize> {
        let channel = planned(id.to_owned(), ChannelKind::Score, true, ids)?;
        self.channels.push(channel);
        Some(self.channels.len() - 1)
    }

    fn add_input(&mut self, spec: &TensorSpec, steps: &[Traced], room: usize, ids: &mut BTreeSet<String>) {
        let (batched, row) = row_of(spec);
        let decoded = steps.iter().find_map(|step| match step {
            Traced::Decode { step } => Some(*step),
            _ => None,
        });
        let what = match (decoded, spec.datatype) {
            (Some(step), _) => Some(What::Decoded { step }),
            (None, Datatype::Bytes) => columns(row).map(|columns| What::Categories { columns }),
            (None, _) => numbers(spec, row),
        };
        let Some(what) = what else { return };
        let base = format!("input/{}", clean(&spec.name));
        let texts: Vec<String> = steps.iter().flat_map(Traced::texts).collect();
        let kind = match &what {
            What::Picture { .. } | What::Decoded { .. } => ChannelKind::Image,
            What::Categories { .. } => ChannelKind::Category,
            What::Features { .. } | What::Summary { .. } => ChannelKind::Input,
        };
        let Some((first, count)) = self.add_channels(&base, &what, kind, &texts, room, ids) else { return };
        let is_number = matches!(what, What::Features { .. } | What::Summary { .. });
        let rules = steps.iter().filter_map(|step| self.rule(step, spec)).collect();
        let not_finite = is_number.then(|| self.fault("not-finite", &spec.name));
        let tensor = spec.name.clone();
        self.inputs.push(TensorPlan { tensor, what, first, count, batched, rules, not_finite });
    }

    fn add_output(&mut self, spec: &TensorSpec, ids: &mut BTreeSet<String>) {
        let (batched, row) = row_of(spec);
        if spec.datatype == Datatype::Bytes {
            return;
        }
        let columns = columns(row);
        let what = columns.map_or(What::Summary { columns: 1 }, |columns| What::Features { columns });
        let base = format!("output/{}", clean(&spec.name));
        let added = self.add_channels(&base, &what, ChannelKind::Output, &[], MAX_CHANNELS, ids);
        let Some((first, count)) = added else { return };
        let tensor = spec.name.clone();
        let plan = TensorPlan { tensor, what, first, count, batched, rules: vec![], not_finite: None };
        self.outputs.push(plan);
    }

    /// All of them or, where there is no room, none.
    fn add_channels(
        &mut self,
        base: &str,
        what: &What,
        kind: ChannelKind,
        texts: &[String],
        room: usize,
        ids: &mut BTreeSet<String>,
    ) -> Option<(usize, usize)> {
        let numbered = |columns: usize| -> Vec<String> {
            if columns == 1 {
                vec![base.to_owned()]
            } else {
                (0..columns).map(|n| format!("{base}/{n}")).collect()
            }
        };
        let each = |base: &String, names: &[&str]| -> Vec<String> {
            names.iter().map(|name| format!("{base}/{name}")).collect()
        };
        let base_text = base.to_owned();
        let names: Vec<(String, bool)> = match what {
            What::Features { columns } | What::Categories { columns } => {
                numbered(*columns).into_iter().map(|name| (name, false)).collect()
            }
            What::Summary { columns } => numbered(*columns)
                .iter()
                .flat_map(|base| each(base, &SUMMARY))
                .map(|name| (name.clone(), name.ends_with("/zeros")))
                .collect(),
            What::Picture { scale, .. } => {
                let unit = |n: usize| n == 3 || (n == 0 && *scale != 1.0);
                (0..).zip(each(&base_text, &appearance::NAMES)).map(|(n, name)| (name, unit(n))).collect()
            }
            What::Decoded { .. } => (0..)
                .zip(each(&base_text, &appearance::NAMES))
                .map(|(n, name)| (name, n == 0 || n == 3))
                .collect(),
        };
        if self.channels.len() + names.len() > room {
            return None;
        }
        let (first, count) = (self.channels.len(), names.len());
        for (name, unit) in names {
            let mut channel = planned(name, kind, unit, ids)?;
            channel.categories = texts.to_vec();
            self.channels.push(channel);
        }
        Some((first, count))
    }

    fn fault(&mut self, kind: &str, tensor: &str) -> usize {
        let name = format!("{kind}:{}", clean(tensor));
        self.faults.push(name);
        self.faults.len() - 1
    }

    fn rule(&mut self, step: &Traced, spec: &TensorSpec) -> Option<Rule> {
        let (kind, test) = match step {
            Traced::Decode { .. } => return None,
            Traced::Clip { min, max } => ("out-of-range", Test::Outside { min: *min, max: *max }),
            Traced::Impute { sentinel } => ("null", Test::Missing { sentinel: *sentinel }),
            Traced::Among(values) if spec.datatype == Datatype::Bytes => {
                let texts = values.iter().filter_map(|value| match value {
                    Category::Text(text) => Some(text.clone().into_bytes()),
                    Category::Number(_) => None,
                });
                ("unknown-category", Test::NoneOfTexts { texts: texts.collect() })
            }
            Traced::Among(values) => {
                let numbers = values.iter().filter_map(|value| match value {
                    Category::Number(number) => Some(*number),
                    Category::Text(_) => None,
                });
                ("unknown-category", Test::NoneOf { numbers: numbers.collect() })
            }
        };
        Some(Rule { fault: self.fault(kind, &spec.name), test })
    }
}

/// A channel whose id no other has.
fn planned(
    name: String,
    kind: ChannelKind,
    unit: bool,
    ids: &mut BTreeSet<String>,
) -> Option<PlannedChannel> {
    let mut id = name.clone();
    let mut number = 1;
    while !ids.insert(id.clone()) {
        number += 1;
        id = format!("{name}-{number}");
    }
    Some(PlannedChannel { id: id.parse().ok()?, kind, unit, categories: vec![] })
}

/// As part of a channel's id: short, and of its letters.
fn clean(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    name.chars().map(|c| if fits(c) { c } else { '_' }).take(64).collect()
}

/// Whether the first dimension counts rows, and the dimensions of one.
fn row_of(spec: &TensorSpec) -> (bool, &[i64]) {
    match spec.shape.as_slice() {
        [-1, row @ ..] => (true, row),
        row => (false, row),
    }
}

/// Numbers of a row, if there are few and their number is known.
fn columns(row: &[i64]) -> Option<usize> {
    let count = row.iter().try_fold(1i64, |n, dim| n.checked_mul(*dim))?;
    let known = row.iter().all(|dim| *dim > 0);
    usize::try_from(count).ok().filter(|count| known && (1..=MAX_COLUMNS).contains(count))
}

/// How a tensor of numbers is read.
fn numbers(spec: &TensorSpec, row: &[i64]) -> Option<What> {
    if let Some(columns) = columns(row) {
        return Some(What::Features { columns });
    }
    let scale = if spec.datatype == Datatype::Uint8 { 1.0 / 255.0 } else { 1.0 };
    if let Some(layout) = picture(spec, row) {
        return Some(What::Picture { layout, scale });
    }
    let columns = match row {
        [_, columns] if (1..=MAX_COLUMNS as i64).contains(columns) => *columns as usize,
        _ => 1,
    };
    Some(What::Summary { columns })
}

/// Whether a row looks like a picture: it has channels before or after two sides, or two equal sides alone, or it
/// is called one and could be a square.
fn picture(spec: &TensorSpec, row: &[i64]) -> Option<Layout> {
    let side = |dim: i64| dim == -1 || dim >= MIN_SIDE;
    let channels = |dim: i64| matches!(dim, 1 | 3 | 4);
    let called = ["image", "img", "picture", "photo", "pixels"];
    let name = spec.name.to_ascii_lowercase();
    match *row {
        [c, h, w] if channels(c) && side(h) && side(w) => Some(Layout::Planes),
        [h, w, c] if channels(c) && side(h) && side(w) => Some(Layout::Pixels),
        [h, w] if h >= MIN_SIDE && (h == w || (spec.datatype == Datatype::Uint8 && w >= MIN_SIDE)) => {
            Some(Layout::Grey)
        }
        [n] if n >= MIN_SIDE * MIN_SIDE && called.iter().any(|called| name.contains(called)) => {
            ((n as f64).sqrt().round().powi(2) == n as f64).then_some(Layout::Square)
        }
        _ => None,
    }
}

/// What a step does to an input that reached it unchanged.
#[derive(Clone, Debug)]
enum Traced {
    Decode { step: usize },
    Clip { min: f64, max: f64 },
    Impute { sentinel: Option<f64> },
    Among(Vec<Category>),
}

impl Traced {
    fn texts(&self) -> Vec<String> {
        let Self::Among(values) = self else { return vec![] };
        let text = |value: &Category| match value {
            Category::Text(text) if text.len() <= MAX_CATEGORY_BYTES => Some(text.clone()),
            Category::Text(_) | Category::Number(_) => None,
        };
        values.iter().filter_map(text).collect()
    }
}

/// By input: the steps that look at its values as clients sent them.
fn trace(spec: &PipelineSpec) -> BTreeMap<String, Vec<Traced>> {
    let mut found: BTreeMap<String, Vec<Traced>> = BTreeMap::new();
    // Names of tensors that hold an input's values, element by element.
    let mut same: BTreeMap<String, String> =
        spec.inputs.iter().map(|input| (input.name.clone(), input.name.clone())).collect();
    let mut current = match spec.inputs.as_slice() {
        [only] => Some(only.name.clone()),
        _ => None,
    };
    for (index, step) in spec.pre.iter().enumerate() {
        let from = step.from.clone().or_else(|| current.clone());
        let to = step.to.clone().or_else(|| from.clone());
        let input = from.as_ref().and_then(|from| same.get(from)).cloned();
        let reads_many = matches!(step.op, Op::Concat { .. } | Op::Template { .. });
        let traced = match &step.op {
            Op::DecodeImage { .. } => Some(Traced::Decode { step: index + 1 }),
            Op::Clip { min, max } => Some(Traced::Clip { min: *min, max: *max }),
            Op::Impute { missing, .. } => Some(Traced::Impute { sentinel: *missing }),
            Op::CategoryMap { values, .. } => Some(Traced::Among(values.clone())),
            _ => None,
        };
        let kept = matches!(step.op, Op::Impute { .. } | Op::Cast { .. } | Op::Reshape { .. });
        if let (Some(traced), Some(input), false) = (traced, &input, reads_many) {
            found.entry(input.clone()).or_default().push(traced);
        }
        if let Some(to) = &to {
            match input.filter(|_| kept && !reads_many) {
                Some(input) => same.insert(to.clone(), input),
                None => same.remove(to),
            };
        }
        current = to;
    }
    found
}
