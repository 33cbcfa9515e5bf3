//! What the server and its models are, and how they have done; the numbers are the field numbers of the messages.

use crate::serving::{
    describe::{self, NAME, VERSION},
    error::ApiError,
    oip::protobuf::{Fields, Writer},
    slots::Active,
    state::{ServingState, version},
    stats::Timed,
};
use bytes::Bytes;
use edgefleet_shared::{bundle::TensorSpec, tensor::Datatype};
use std::sync::Arc;

/// `ServerLiveResponse` and its kind: one truth value.
pub(super) fn truth(value: bool) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.flag(1, value);
    writer.finish()
}

/// `{name, version}`, with which most questions begin.
struct Which {
    model: String,
    version: Option<u64>,
}

fn which(message: Bytes) -> Result<Which, ApiError> {
    let mut which = Which { model: String::new(), version: None };
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => which.model = value.text()?,
            2 => {
                which.version =
                    Some(value.text()?).filter(|v| !v.is_empty()).map(|v| version(&v)).transpose()?
            }
            _ => {}
        }
    }
    Ok(which)
}

fn found(state: &ServingState, message: Bytes) -> Result<(Arc<Active>, String), ApiError> {
    let which = which(message)?;
    Ok((state.find(&which.model, which.version)?, which.model))
}

/// `ModelReady`: a model that is not there is not ready.
pub(super) fn model_ready(state: &ServingState, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let which = which(message)?;
    Ok(truth(state.find(&which.model, which.version).is_ok()))
}

pub(super) fn server(state: &ServingState) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.text(1, NAME).text(2, VERSION);
    for extension in describe::extensions(state.0.config.shared_memory) {
        writer.element(3, extension);
    }
    writer.finish()
}

pub(super) fn model(state: &ServingState, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let (active, name) = found(state, message)?;
    let interface = &active.served.manifest.interface;
    let mut writer = Writer::new();
    writer
        .text(1, &name)
        .element(2, &active.served.bundle.counter.to_string())
        .text(3, &describe::platform(&active));
    for (field, specs) in [(4, &interface.inputs), (5, &interface.outputs)] {
        for spec in specs {
            writer.message(field, |tensor| {
                tensor.text(1, &spec.name).text(2, spec.datatype.as_str());
                tensor.numbers(3, spec.shape.iter().copied());
            });
        }
    }
    Ok(writer.finish())
}

/// `DataType` of the model configuration.
fn data_type(datatype: Datatype) -> u64 {
    match datatype {
        Datatype::Bool => 1,
        Datatype::Uint8 => 2,
        Datatype::Uint16 => 3,
        Datatype::Uint32 => 4,
        Datatype::Uint64 => 5,
        Datatype::Int8 => 6,
        Datatype::Int16 => 7,
        Datatype::Int32 => 8,
        Datatype::Int64 => 9,
        Datatype::Fp16 => 10,
        Datatype::Fp32 => 11,
        Datatype::Fp64 => 12,
        Datatype::Bytes => 13,
        Datatype::Bf16 => 14,
    }
}

pub(super) fn config(state: &ServingState, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let (active, name) = found(state, message)?;
    let served = &active.served;
    let batched = active.is_batched();
    let mut writer = Writer::new();
    writer.message(1, |config| {
        config.text(1, &name).text(2, &describe::platform(&active)).text(17, describe::backend(&active));
        config.message(3, |policy| {
            policy.message(3, |specific| {
                specific.numbers(1, std::iter::once(served.bundle.counter.cast_signed()));
            });
        });
        config.uint(4, describe::max_batch(&active) as u64);
        // Inputs have a format between type and dimensions, outputs do not.
        tensors(config, 5, (4, 5), &served.manifest.interface.inputs, batched);
        tensors(config, 6, (3, 5), &served.manifest.interface.outputs, batched);
        for (key, value) in [("bundle", active.bundle_text.clone()), ("digest", served.digest.to_string())] {
            config.entry(14, key, |parameter| {
                parameter.text(1, &value);
            });
        }
    });
    Ok(writer.finish())
}

fn tensors(
    config: &mut Writer,
    field: u32,
    (dims, reshape): (u32, u32),
    specs: &[TensorSpec],
    batched: bool,
) {
    for tensor in describe::config_tensors(specs, batched) {
        config.message(field, |message| {
            message.text(1, tensor.name).uint(2, data_type(tensor.datatype));
            message.numbers(dims, tensor.dims.iter().copied());
            if tensor.is_scalar {
                message.message(reshape, |_| {});
            }
        });
    }
}

fn timed(into: &mut Writer, first: u32, times: &[(&str, Timed)]) {
    for (field, (_, of)) in (first..).zip(times) {
        into.message(field, |duration| {
            duration.uint(1, of.count).uint(2, of.ns);
        });
    }
}

pub(super) fn statistics(state: &ServingState, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let which = which(message)?;
    let actives = match which.model.as_str() {
        "" => state.0.slots.actives(),
        model => vec![state.find(model, which.version)?],
    };
    let mut writer = Writer::new();
    for active in actives {
        let totals = active.stats.totals();
        writer.message(1, |model| {
            model.text(1, active.served.slot.as_str()).text(2, &active.served.bundle.counter.to_string());
            model.uint(3, totals.last_ms).uint(4, totals.rows).uint(5, totals.executions);
            model.message(6, |stats| timed(stats, 1, &totals.times()));
            for (size, batch) in &totals.batches {
                model.message(7, |stats| {
                    stats.uint(1, *size);
                    timed(stats, 2, &batch.times());
                });
            }
        });
    }
    Ok(writer.finish())
}

pub(super) fn index(state: &ServingState, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let mut only_ready = false;
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        if field == 2 {
            only_ready = value.flag()?;
        }
    }
    let mut writer = Writer::new();
    for active in state.0.slots.actives().iter().filter(|active| !only_ready || active.is_available()) {
        let (word, reason) = describe::state(active);
        writer.message(1, |model| {
            model.text(1, active.served.slot.as_str()).text(2, &active.served.bundle.counter.to_string());
            model.text(3, word).text(4, reason);
        });
    }
    Ok(writer.finish())
}
