//! What the author of a model should know before a device sees it. Pure: from what the agent found in the
//! file ([`ModelLook`]) and what the manifest says to sentences, the gravest first.
//!
//! What an engine lacks or gets wrong is the engine's own word, by way of the agent; nothing here keeps a list
//! of operators.

use super::fold::Done;
use edgefleet_shared::{
    bundle::{Interface, Precision},
    lint::{ModelLook, ModelTraits, Quantised},
};
use serde::Serialize;

/// Weights of one model that make updates over field links slow, and one tensor that a small device feels.
const HUGE_BYTES: u64 = 256 << 20;
const HUGE_WEIGHT_BYTES: u64 = 64 << 20;
/// Fewer golden samples say little about a model.
const FEW_GOLDEN: usize = 3;
const ORT: &str = "onnxruntime";
const TRACT: &str = "tract";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// No device can run it.
    Error,
    Warning,
    Note,
}

/// One thing to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub code: &'static str,
    pub message: String,
}

/// What is known of an artifact besides its file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around<'a> {
    /// What the manifest calls it; `None` for a file alone.
    pub precision: Option<Precision>,
    pub interface: Option<&'a Interface>,
    /// Golden samples of the bundle.
    pub golden: Option<usize>,
    /// The bundle has an f32 variant, too.
    pub has_f32: bool,
    /// What `model build` would fold.
    pub folds: &'a [Done],
}

/// Everything worth a word.
pub fn findings(look: &ModelLook, around: Around<'_>) -> Vec<Finding> {
    let mut all = Findings(Vec::new());
    if let Some(unusable) = &look.unusable {
        all.add(Level::Error, "unusable", format!("{}: {}", unusable.code.as_str(), unusable.message));
    }
    engines(look, &mut all);
    if let Some(traits) = &look.traits {
        opsets(look, traits, &mut all);
        tensors(traits, around.interface, &mut all);
        weights(traits, &mut all);
        variants(look, traits, around, &mut all);
    }
    if let Some(few) = around.golden.filter(|count| *count < FEW_GOLDEN) {
        let text =
            format!("golden samples: {few}; with {FEW_GOLDEN} to 20 of every kind, a wrong engine is found");
        all.add(Level::Warning, "golden-few", text);
    }
    for done in around.folds {
        all.add(Level::Note, "foldable", format!("`model build` can do this: {done}"));
    }
    all.0.sort_by_key(|finding| finding.level);
    all.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, code: &'static str, message: String) {
        self.0.push(Finding { level, code, message });
    }
}

fn engines(look: &ModelLook, all: &mut Findings) {
    let has = |name: &str| look.engines.iter().any(|engine| engine.name == name);
    let taken = look.engines.iter().any(|engine| engine.refusal.is_none());
    for engine in &look.engines {
        let Some(refusal) = &engine.refusal else { continue };
        let others =
            if engine.name == TRACT && taken { "; devices without ONNX Runtime refuse it" } else { "" };
        let text = format!("{} refuses it: {}{others}", engine.name, refusal.message);
        all.add(Level::Warning, "engine-refuses", text);
        // The first is in the refusal.
        let more = engine.problems.iter().filter(|(op, _)| refusal.op.as_deref() != Some(op.as_str()));
        for (op, how) in more {
            all.add(Level::Warning, "operator", format!("{}: operator `{op}` {how}", engine.name));
        }
    }
    if taken || look.engines.is_empty() {
        return;
    }
    if has(ORT) {
        all.add(Level::Error, "no-engine", "no engine takes it, so no device could run it".to_owned());
    } else {
        let text = "ONNX Runtime was not asked, so nobody knows whether devices that have it could run it; \
                    name its library with --ort-lib";
        all.add(Level::Warning, "engine-unasked", text.to_owned());
    }
}

fn opsets(look: &ModelLook, traits: &ModelTraits, all: &mut Findings) {
    let Some(&opset) = traits.opsets.get("") else { return };
    for engine in &look.engines {
        let Some((first, last)) = engine.opsets.filter(|(first, last)| !(*first..=*last).contains(&opset))
        else {
            continue;
        };
        let text = format!(
            "opset {opset}: {} {} is tested with {first} to {last}; others are tried, so the golden samples decide",
            engine.name, engine.version
        );
        all.add(Level::Warning, "opset", text);
    }
}

fn tensors(traits: &ModelTraits, interface: Option<&Interface>, all: &mut Findings) {
    for input in &traits.inputs {
        let name = &input.name;
        if input.datatype == "DOUBLE" {
            let text =
                format!("input `{name}` is float64: twice the bytes to send, and no engine is faster for it");
            all.add(Level::Warning, "float64-input", text);
        }
        let wanted = interface.and_then(|all| all.inputs.iter().find(|spec| spec.name == *name));
        // What the manifest fixes is fixed for every engine.
        let shape = wanted.map(|spec| &spec.shape).or(input.shape.as_ref());
        let open: Vec<_> = shape
            .iter()
            .flat_map(|shape| shape.iter().enumerate().skip(1))
            .filter(|(_, size)| **size < 0)
            .map(|(index, _)| index.to_string())
            .collect();
        if !open.is_empty() {
            let text = format!(
                "input `{name}` leaves dimension {} open besides the batch: every new size is planned anew; \
                 give sizes in bundle.toml if they are always the same",
                open.join(" and ")
            );
            all.add(Level::Warning, "open-shape", text);
        }
    }
}

fn weights(traits: &ModelTraits, all: &mut Findings) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if traits.weight_bytes > HUGE_BYTES {
        let text = format!("{:.0} MiB of weights in memory on every device", mib(traits.weight_bytes));
        all.add(Level::Warning, "huge", text);
    }
    if let Some((name, bytes)) =
        traits.largest_weight.as_ref().filter(|(_, bytes)| *bytes > HUGE_WEIGHT_BYTES)
    {
        let text = format!("the weights `{name}` alone have {:.0} MiB", mib(*bytes));
        all.add(Level::Warning, "huge-weight", text);
    }
}

/// Whether a quantised variant is one that engines gain from.
fn variants(look: &ModelLook, traits: &ModelTraits, around: Around<'_>, all: &mut Findings) {
    let int8 = around.precision == Some(Precision::Int8Qdq);
    match &traits.quantised {
        None if int8 => {
            let text = "the manifest says int8-qdq, but nothing in the file is quantised".to_owned();
            all.add(Level::Warning, "not-quantised", text);
        }
        None => {}
        Some(quantised) => {
            if around.precision.is_some_and(|precision| precision != Precision::Int8Qdq) {
                let text = "the file is quantised, the manifest says otherwise: precision = \"int8-qdq\" lets \
                            devices choose by engine";
                all.add(Level::Warning, "precision", text.to_owned());
            }
            recipe(quantised, all);
            gains(look, around, all);
        }
    }
}

fn recipe(quantised: &Quantised, all: &mut Findings) {
    let count =
        |kinds: &std::collections::BTreeMap<String, u32>, kind: &str| kinds.get(kind).copied().unwrap_or(0);
    let s8 = count(&quantised.activations, "INT8");
    if s8 > 0 {
        let text = format!(
            "activations are quantised to s8 ({s8} times): with u8, x86 processors gain several times as much"
        );
        all.add(Level::Warning, "int8-activations", text);
    }
    let u8 = count(&quantised.weights, "UINT8");
    if u8 > 0 {
        let text = format!("weights are u8 ({u8} times): engines are fast with s8 weights");
        all.add(Level::Warning, "int8-weights", text);
    }
    if quantised.integer_operators > 0 {
        let text = format!(
            "operators compute on integers themselves ({} times, QOperator or dynamic): the form that all engines read \
             is QDQ",
            quantised.integer_operators
        );
        all.add(Level::Warning, "int8-form", text);
    }
    if quantised.softmax > 0 {
        let text = format!(
            "Softmax stands between quantisation steps ({} times): leave Softmax in f32",
            quantised.softmax
        );
        all.add(Level::Warning, "softmax-quantised", text);
    }
}

/// Which of the engines asked is faster with it, as they say.
fn gains(look: &ModelLook, around: Around<'_>, all: &mut Findings) {
    let with = |gain: bool| {
        let names = look.engines.iter().filter(move |e| e.gains.contains(&Precision::Int8Qdq) == gain);
        names.map(|engine| engine.name.as_str()).collect::<Vec<_>>().join(" and ")
    };
    let (gaining, losing) = (with(true), with(false));
    if !gaining.is_empty() {
        all.add(Level::Note, "int8-gains", format!("{gaining} gains from int8 here"));
    }
    if !losing.is_empty() && around.precision.is_some() {
        match around.has_f32 {
            true => all.add(Level::Note, "int8-falls-back", format!("{losing} gains nothing: it takes f32")),
            false => {
                let text =
                    format!("{losing} is slower with int8 than with f32, and the bundle has no f32 variant");
                all.add(Level::Warning, "int8-alone", text);
            }
        }
    }
}

#[cfg(test)]
#[path = "lint_tests.rs"]
mod tests;
