//! Has a model file looked into and loaded by each engine, in a confined child of its own for each.

use super::{
    ProbeOptions,
    files::failure,
    judge::{Ended, death},
    messages::{Event, Input, Loaded, Look, Seen, Task},
    supervisor::{Needs, library, spawn},
};
use crate::engine::{
    chooser::is_sensible,
    setup::{EngineName, Setup},
    tract::{self, excerpt},
};
use edgefleet_shared::{
    bundle::{Interface, Precision, manifest::MAX_BLOB_BYTES},
    lint::{EngineLook, LINT_SCHEMA, ModelLook},
    probe::{Confinement, EngineFacts, ProbeFailure},
    reported::RefusalCode,
};
use std::{fs::File, os::fd::AsRawFd, path::Path};

/// What a child may allocate beyond four times the file: nobody has stated limits yet.
const ROOM_BYTES: u64 = 512 << 20;

/// Looks into the file at `model`, and has it loaded by tract and by ONNX Runtime if `options` name its library.
/// `interface`: of its manifest; without one, what the file declares. Blocks.
///
/// # Errors
/// One sentence if the file cannot be read or no child started.
pub fn look(
    model: &Path,
    interface: Option<&Interface>,
    options: &ProbeOptions,
) -> Result<ModelLook, ProbeFailure> {
    let unreadable = |e: std::io::Error| {
        let text = format!("could not read model {}: {e}", model.display());
        failure(RefusalCode::StorageFailed, text)
    };
    let meta = std::fs::metadata(model).map_err(unreadable)?;
    if !meta.is_file() || meta.len() > MAX_BLOB_BYTES {
        let text = format!("model {} is not a file of at most {MAX_BLOB_BYTES} bytes", model.display());
        return Err(failure(RefusalCode::ModelInvalid, text));
    }
    let mut whole: Option<ModelLook> = None;
    let library_too = options.library.is_some().then_some(EngineName::Onnxruntime);
    for engine in [EngineName::Tract].into_iter().chain(library_too) {
        let file = File::open(model).map_err(unreadable)?;
        let input = Input { fd: file.as_raw_fd(), size: meta.len() };
        let library_bytes = if engine == EngineName::Tract { 0 } else { ProbeOptions::LIBRARY_BYTES };
        let needs = Needs {
            data_bytes: meta.len().saturating_mul(4).saturating_add(ROOM_BYTES + library_bytes),
            library: library(&[engine], options)?,
            threaded: false,
        };
        let task = Task::Look(Look { engine, model: input, interface: interface.cloned() });
        let ended = spawn(task, needs, &[file], options)
            .map_err(|reason| failure(RefusalCode::ProbeUnavailable, reason))?;
        let heard = hear(&ended);
        let Some((facts, confinement)) = heard.ready else {
            let reason = heard.died.unwrap_or_else(|| {
                failure(RefusalCode::ProbeUnavailable, "the child ended without a word".into())
            });
            // tract is part of the program: without it there is nothing to say.
            if engine == EngineName::Tract {
                return Err(reason);
            }
            if let Some(whole) = &mut whole {
                whole.engines.push(engine_look(engine, "unknown", Some(reason), None));
            }
            continue;
        };
        let said = heard.seen.unwrap_or_default();
        let stopped = said.unusable.is_some();
        let refusal = match heard.loaded {
            Some(Loaded { refusal, .. }) => refusal,
            None if stopped => None,
            None => Some(heard.died.unwrap_or_else(|| {
                failure(RefusalCode::ProbeCrashed, "the child ended before it had loaded the model".into())
            })),
        };
        let load_ms = heard.load_ms.filter(|_| refusal.is_none());
        let mut one = engine_look(engine, &facts.version, refusal, load_ms);
        if engine == EngineName::Tract {
            one.problems = said.problems;
        }
        let whole = whole.get_or_insert_with(|| ModelLook {
            schema: LINT_SCHEMA,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            traits: said.traits,
            unusable: said.unusable,
            engines: vec![],
            confinement,
        });
        if stopped {
            break;
        }
        whole.engines.push(one);
    }
    whole.ok_or_else(|| failure(RefusalCode::ProbeUnavailable, "no engine was asked".into()))
}

fn engine_look(
    engine: EngineName,
    version: &str,
    refusal: Option<ProbeFailure>,
    load_ms: Option<f64>,
) -> EngineLook {
    let worth = |precision: &Precision| is_sensible(&Setup { engine, precision: *precision, threads: 1 });
    EngineLook {
        name: engine.to_string(),
        version: version.to_owned(),
        opsets: (engine == EngineName::Tract).then_some(tract::OPSETS),
        gains: [Precision::F32, Precision::F16, Precision::Int8Qdq].into_iter().filter(worth).collect(),
        problems: Default::default(),
        refusal,
        load_ms,
    }
}

/// What a child said, as far as it came.
#[derive(Default)]
struct Heard {
    ready: Option<(EngineFacts, Confinement)>,
    seen: Option<Seen>,
    loaded: Option<Loaded>,
    load_ms: Option<f64>,
    died: Option<ProbeFailure>,
}

fn hear(ended: &Ended) -> Heard {
    let (mut heard, mut doing) = (Heard::default(), "starting".to_owned());
    for line in ended.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Event::Ready { engine, confinement, .. }) => heard.ready = Some((engine, confinement)),
            Ok(Event::Doing(what)) => doing = excerpt(&what),
            Ok(Event::Seen(seen)) => heard.seen = Some(*seen),
            Ok(Event::Loaded(loaded)) => {
                heard.load_ms = Some(loaded.load_ms);
                heard.loaded = Some(loaded);
            }
            Ok(Event::Attempted(_) | Event::Compared(_) | Event::Done(_)) | Err(_) => {}
        }
    }
    heard.died = death(ended, &doing, heard.ready.is_some());
    heard
}
