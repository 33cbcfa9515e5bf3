//! How far each engine is from ONNX Runtime: writes `engine.json`, prints a table.
//!
//! `engine_floor --ort-lib LIB --out FILE [--openvino PYTHON] [--rounds N] [--most-mb N] MODEL|BUNDLE|FOLDER...`; of a
//! folder without a manifest, every `.onnx` file in it. `PYTHON` is one with the package `openvino`. The baseline is ONNX Runtime through its C interface in this
//! very process, with the same options; a second copy of it in the same rounds shows the noise.

mod openvino;

use anyhow::{Context, ensure};
use edgefleet_agent::engine::{
    Engines,
    bench::{Contest, Entry, Row, contest, first_setup, ratio},
    chooser::{Budget, TIE, best},
    setup::{EngineName, Setup},
    subject::Subject,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

const AGAIN: &str = "onnxruntime-again";
/// Where two threads are allowed, one may still be better: it is offered to the choice too.
const ONE: &str = "onnxruntime-one-thread";

struct Options {
    library: PathBuf,
    openvino: Option<PathBuf>,
    out: PathBuf,
    rounds: usize,
    most_bytes: u64,
    models: Vec<PathBuf>,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        library: PathBuf::new(),
        openvino: None,
        out: PathBuf::new(),
        rounds: 30,
        most_bytes: u64::MAX,
        models: Vec::new(),
    };
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument:?} needs a value"));
        match argument.to_str() {
            Some("--ort-lib") => options.library = value()?.into(),
            Some("--openvino") => options.openvino = Some(value()?.into()),
            Some("--out") => options.out = value()?.into(),
            Some("--rounds") => options.rounds = value()?.to_string_lossy().parse()?,
            Some("--most-mb") => {
                options.most_bytes = value()?.to_string_lossy().parse::<u64>()?.saturating_mul(1_000_000);
            }
            _ => options.models.push(argument.into()),
        }
    }
    ensure!(!options.library.as_os_str().is_empty(), "--ort-lib names the library to compare with");
    ensure!(!options.models.is_empty(), "name models, bundles or folders of models");
    Ok(options)
}

/// Files and bundles; folders of models become what is in them.
fn spread(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() || path.join("manifest.json").is_file() {
            all.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
        let mut found: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).collect();
        found.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
        found.sort();
        all.extend(found);
    }
    Ok(all)
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let engines = Engines::new(Some(&options.library));
    engines.tract().warm_up();
    let budget = Budget { warm_up: 3, most: options.rounds, time: Duration::MAX };
    let mut peer = options.openvino.as_deref().map(openvino::Peer::start).transpose()?;
    let (mut rows, mut absent) = (Vec::new(), Vec::new());
    for path in spread(&options.models)? {
        if std::fs::metadata(&path)?.len() > options.most_bytes {
            eprintln!("left out for its size: {}", path.display());
            continue;
        }
        let mut subject = Subject::open(&path).with_context(|| path.display().to_string())?;
        // `models/digits/v2/model.onnx` says little by its own name.
        if subject.name == "model" {
            let parents: Vec<_> = path.components().rev().skip(1).take(2).collect();
            let names = parents.iter().rev().map(|part| part.as_os_str().to_string_lossy());
            subject.name = names.collect::<Vec<_>>().join("-");
        }
        for threads in [1, 2] {
            for batch in [1, 8] {
                let done = measure(&subject, &engines, threads, batch, budget)?;
                absent.extend(done.absent.iter().map(|absent| json!(absent)));
                rows.extend(judged(&done, threads));
                let Some(peer) = &mut peer else { continue };
                let setup = Setup { engine: EngineName::Onnxruntime, threads, ..first_setup(&subject)? };
                match peer.duel(&subject, &engines, setup, batch, options.rounds)? {
                    Ok(row) => {
                        println!(
                            "{:<28} threads {threads} batch {batch} {:<22} {:>10.3} ms  ratio {:>7.3}",
                            subject.name,
                            "openvino",
                            row["median_ms"].as_f64().unwrap_or(f64::NAN),
                            row["ratio_vs_onnxruntime"].as_f64().unwrap_or(f64::NAN)
                        );
                        rows.push(row);
                    }
                    Err(reason) => absent.push(json!({
                        "model": subject.name, "threads": threads, "batch": batch, "engine": "openvino",
                        "reason": reason,
                    })),
                }
            }
        }
    }
    let document = json!({
        "engines": engines.identities(),
        "cpu": cpu(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "rounds": options.rounds,
        "rows": rows,
        "absent": absent,
    });
    if !options.out.as_os_str().is_empty() {
        std::fs::create_dir_all(options.out.parent().unwrap_or(Path::new(".")))?;
        std::fs::write(&options.out, serde_json::to_vec_pretty(&document)?)?;
    }
    Ok(())
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

/// tract (one thread is all it takes), ONNX Runtime and ONNX Runtime again.
fn measure(
    subject: &Subject,
    engines: &Engines,
    threads: usize,
    batch: usize,
    budget: Budget,
) -> anyhow::Result<Contest> {
    let tract = first_setup(subject)?;
    let ort = Setup { engine: EngineName::Onnxruntime, threads, ..tract };
    let mut entries = vec![Entry::new(ort), Entry::new(tract), Entry { label: AGAIN.into(), setup: ort }];
    if threads > 1 {
        entries.push(Entry { label: ONE.into(), setup: Setup { threads: 1, ..ort } });
    }
    Ok(contest(subject, engines, &entries, batch, budget)?)
}

/// The rows of one contest, with ratios, and the row of what the agent would choose.
fn judged(done: &Contest, threads: usize) -> Vec<Value> {
    let find = |label: &str| done.rows.iter().find(|row| row.engine == label);
    let Some(baseline) = find("onnxruntime") else { return Vec::new() };
    let mut ordered: Vec<&Row> = ["tract", ONE, "onnxruntime"].into_iter().filter_map(find).collect();
    let medians: Vec<f64> = ordered.iter().map(|row| row.median_ms).collect();
    let chosen = ordered.get(best(&medians, 0, TIE)).copied();
    ordered.extend(find(AGAIN));
    let mut named: Vec<(String, &Row)> = ordered.iter().map(|row| (row.engine.clone(), *row)).collect();
    named.extend(chosen.map(|row| (format!("chosen ({})", row.engine), row)));
    let judge = |(engine, row): (String, &Row)| {
        let ratio = ratio(&row.times_ms, &baseline.times_ms);
        println!(
            "{:<28} threads {threads} batch {} {:<22} {:>10.3} ms  ratio {:>7.3}  load {:>7.1} ms  {:>7.1} MiB  diff {:.1e}",
            row.model,
            row.batch,
            engine,
            row.median_ms,
            ratio,
            row.load_ms,
            row.memory_bytes as f64 / 1_048_576.0,
            row.max_abs_diff
        );
        json!({
            "model": row.model,
            "threads": threads,
            "engine_threads": row.threads,
            "batch": row.batch,
            "engine": engine,
            "variant": row.variant,
            "rounds": row.rounds,
            "median_ms": row.median_ms,
            "min_ms": row.min_ms,
            "p90_ms": row.p90_ms,
            "ratio_vs_onnxruntime": ratio,
            "max_abs_diff": row.max_abs_diff,
            "agrees": row.agrees,
            "load_ms": row.load_ms,
            "memory_bytes": row.memory_bytes,
        })
    };
    named.into_iter().map(judge).collect()
}
