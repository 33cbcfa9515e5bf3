//! `edgefleet-agent infer MODEL|BUNDLE --input FILE`.

use super::{ConfigArgs, Failure, absolute, npy};
use crate::{
    engine::{
        Engines, LoadedModel,
        bench::first_setup,
        chooser::offered,
        setup::{Pattern, Setup},
        subject::Subject,
    },
    serving::oip::{InferRequest, NoMemory, json::write_data},
};
use bytes::Bytes;
use clap::Args;
use edgefleet_shared::{bundle::Artifact, tensor::Tensor};
use serde_json::{json, value::RawValue};
use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// As much as a request over HTTP may have.
const MAX_INPUT: u64 = 1 << 30;

#[derive(Args, Debug)]
pub(super) struct InferArgs {
    /// Bundle folder, or an ONNX file that declares its inputs and outputs; with `--lines` also a slot of the agent
    /// that runs here
    pub(super) model: PathBuf,
    /// A request of the Open Inference Protocol in JSON, `-` for stdin; or an array of NumPy, as `FILE.npy`
    /// or `NAME=FILE.npy`, once for each input
    #[arg(long, value_name = "FILE", required_unless_present = "lines", conflicts_with = "lines")]
    input: Vec<String>,
    /// Answer requests in JSON from stdin, one a line, in order, each with one line on stdout
    #[arg(long)]
    pub(super) lines: bool,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// A libonnxruntime.so [default: of the settings, of the engine pack in force, or the system's]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// How to run it: `engine`, `engine/precision` or `engine/precision/threads` [default: tract in f32]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<Pattern>,
}

/// A model of the command line, in this process.
pub(super) struct Opened {
    pub(super) subject: Subject,
    pub(super) model: Box<dyn LoadedModel>,
    pub(super) setup: Setup,
    load_ms: f64,
    /// What the model was loaded by lives as long.
    _engines: Engines,
}

pub(super) fn open(args: &InferArgs) -> Result<Opened, Failure> {
    let library = args.ort_lib.as_deref().map(absolute);
    let config = args.config.load(library.into_iter().map(|path| ("engine.onnxruntime", path)).collect())?;
    let subject = Subject::open(&args.model)
        .map_err(|e| Failure::new(&format!("could not open {}", args.model.display()), e.into()))?;
    let engines = super::engines(&config);
    let setup = setup(&subject, &engines, args.engine.as_ref())?;
    let file = subject.file(setup.precision).ok_or_else(|| no_such_engine(&engines))?.to_owned();
    let loaded = Instant::now();
    let model = engines
        .engine(setup)
        .and_then(|engine| subject.load(&*engine, &file))
        .map_err(|e| Failure::new(&format!("could not load the model with {setup}"), e.into()))?;
    let load_ms = loaded.elapsed().as_secs_f64() * 1e3;
    Ok(Opened { subject, model, setup, load_ms, _engines: engines })
}

pub(super) fn infer(args: InferArgs) -> Result<ExitCode, Failure> {
    let Opened { subject, model, setup, load_ms, _engines } = open(&args)?;
    let (inputs, wanted) = inputs(&args.input, &subject)?;
    let started = Instant::now();
    let answer = model.run(&inputs).map_err(|e| Failure::new("the inference failed", e.into()))?;
    let infer_ms = started.elapsed().as_secs_f64() * 1e3;
    let outputs = answer
        .iter()
        .filter(|tensor| wanted.as_ref().is_none_or(|wanted| wanted.iter().any(|w| w == tensor.name())))
        .map(output)
        .collect::<anyhow::Result<Vec<_>>>()
        .map_err(|e| Failure::new("the answer has no form in JSON", e))?;
    let document = json!({
        "model_name": subject.name,
        "parameters": {"engine": setup.to_string(), "load_ms": load_ms, "infer_ms": infer_ms},
        "outputs": outputs,
    });
    println!("{document}");
    Ok(ExitCode::SUCCESS)
}

/// The tensors, and which outputs are wanted if not all are.
fn inputs(given: &[String], subject: &Subject) -> Result<(Vec<Tensor>, Option<Vec<String>>), Failure> {
    let arrays = given.iter().filter(|path| path.ends_with(".npy")).count();
    let load = |path: &str| {
        read(Path::new(path)).map_err(|e| Failure::new(&format!("could not read {path}"), e.into()))
    };
    if arrays == 0 && given.len() == 1 {
        let request =
            InferRequest::parse(load(&given[0])?, None, &subject.interface, subject.batch_max, &mut NoMemory)
                .map_err(|e| Failure::new("the input does not fit the model", e.into()))?;
        let wanted = request.outputs.into_iter().map(|output| output.name).collect();
        return Ok((request.inputs, Some(wanted)));
    }
    if arrays < given.len() {
        let error = anyhow::anyhow!("`--input` is either one request in JSON or arrays in `.npy` files");
        return Err(Failure::usage(error, "`edgefleet-agent infer --help` shows both"));
    }
    let mut tensors = Vec::new();
    for one in given {
        let (name, path) = match (one.split_once('='), subject.interface.inputs.as_slice()) {
            (Some((name, path)), _) => (name, path),
            (None, [only]) => (only.name.as_str(), one.as_str()),
            (None, _) => {
                let error = anyhow::anyhow!("the model has several inputs, and `{one}` does not say which");
                return Err(Failure::usage(error, "write `--input NAME=FILE.npy`"));
            }
        };
        let tensor = npy::tensor(name, &load(path)?)
            .map_err(|e| Failure::new(&format!("could not read {path}"), anyhow::anyhow!(e)))?;
        tensors.push(tensor);
    }
    Ok((tensors, None))
}

fn setup(subject: &Subject, engines: &Engines, wanted: Option<&Pattern>) -> Result<Setup, Failure> {
    let Some(pattern) = wanted else {
        return first_setup(subject).map_err(|e| Failure::new("could not choose an engine", e.into()));
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = pattern.threads().unwrap_or(1);
    let policy = crate::engine::chooser::Policy { threads, pin: vec![pattern.clone()], ..Default::default() };
    let artifacts: Vec<&Artifact> = subject.artifacts.iter().collect();
    let of = |engine| Engines::threads_of(engine, cores.max(threads));
    let (setups, _) = offered(&artifacts, &engines.names(), &policy, of);
    setups.first().copied().ok_or_else(|| no_such_engine(engines))
}

fn no_such_engine(engines: &Engines) -> Failure {
    let error = anyhow::anyhow!("this device has no engine and variant of that name for the model");
    let here = engines.identities().join(", ");
    Failure::hinted(error, format!("engines here: {here}; name a library with `--ort-lib`"))
}

fn read(path: &Path) -> std::io::Result<Bytes> {
    let mut bytes = Vec::new();
    match path.as_os_str() == "-" {
        true => std::io::stdin().take(MAX_INPUT + 1).read_to_end(&mut bytes)?,
        false => std::fs::File::open(path)?.take(MAX_INPUT + 1).read_to_end(&mut bytes)?,
    };
    if bytes.len() as u64 > MAX_INPUT {
        return Err(std::io::Error::other(format!("more than {MAX_INPUT} bytes")));
    }
    Ok(Bytes::from(bytes))
}

pub(super) fn output(tensor: &Tensor) -> anyhow::Result<serde_json::Value> {
    let mut data = Vec::new();
    write_data(tensor, &mut data)?;
    let data = RawValue::from_string(String::from_utf8(data)?)?;
    Ok(json!({
        "name": tensor.name(),
        "datatype": tensor.datatype(),
        "shape": tensor.shape(),
        "data": data,
    }))
}
