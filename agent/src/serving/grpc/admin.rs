//! Loading and unloading, shared memory, trace and log settings.

use super::Call;
use crate::serving::{
    error::ApiError,
    http::{
        access::check_token,
        repository,
        settings::{check_unchanged, log_settings, trace_settings},
    },
    oip::protobuf::{Fields, Value, Writer},
};
use bytes::Bytes;
use serde_json::{Map, Value as Json};

/// Entries of a map that are read.
const MAX_ENTRIES: usize = 64;

fn room(taken: usize) -> Result<(), ApiError> {
    if taken == MAX_ENTRIES {
        return Err(ApiError::bad(format!("at most {MAX_ENTRIES} entries are taken")));
    }
    Ok(())
}

/// Key and value of a map's entry.
fn entry(entry: Value) -> Result<(String, Option<Value>), ApiError> {
    let mut found = (String::new(), None);
    let mut fields = entry.message()?;
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => found.0 = value.text()?,
            2 => found.1 = Some(value),
            _ => {}
        }
    }
    Ok(found)
}

/// `RepositoryModelLoad` and `Unload`.
pub(super) fn set_available(call: &Call, message: Bytes, available: bool) -> Result<Vec<u8>, ApiError> {
    check_token(&call.head.headers, call.state.0.config.local_token.as_deref())?;
    let (mut model, mut parameters) = (String::new(), Vec::new());
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            2 => model = value.text()?,
            3 => {
                room(parameters.len())?;
                parameters.push(entry(value)?.0);
            }
            _ => {}
        }
    }
    repository::set_available(&call.state, &model, parameters.iter().map(String::as_str), available)?;
    Ok(Vec::new())
}

/// `{name}`, where none means all.
fn name(message: Bytes) -> Result<Option<String>, ApiError> {
    let mut name = None;
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        if field == 1 {
            name = Some(value.text()?).filter(|name| !name.is_empty());
        }
    }
    Ok(name)
}

pub(super) fn memory_status(call: &Call, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let regions = &call.state.0.regions;
    regions.allow(&call.came)?;
    let mut writer = Writer::new();
    for region in regions.status(name(message)?.as_deref())? {
        writer.entry(1, &region.name, |status| {
            status.text(1, &region.name).text(2, &region.key).uint(3, region.offset).uint(4, region.size);
        });
    }
    Ok(writer.finish())
}

pub(super) fn register_memory(call: &Call, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let regions = &call.state.0.regions;
    regions.allow(&call.came)?;
    let (mut name, mut key, mut offset, mut size) = (String::new(), String::new(), 0, 0);
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => name = value.text()?,
            2 => key = value.text()?,
            3 => offset = value.number()?,
            4 => size = value.number()?,
            _ => {}
        }
    }
    regions.register(&name, &key, offset, size, call.came.user())?;
    Ok(Vec::new())
}

pub(super) fn unregister_memory(call: &Call, message: Bytes) -> Result<Vec<u8>, ApiError> {
    let regions = &call.state.0.regions;
    regions.allow(&call.came)?;
    regions.unregister(name(message)?.as_deref());
    Ok(Vec::new())
}

/// The settings of a request: `value` reads one, `None` where nothing is said about it.
fn settings(
    message: Bytes,
    read: impl Fn(Fields) -> Result<Option<Json>, ApiError>,
) -> Result<Map<String, Json>, ApiError> {
    let mut wanted = Map::new();
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        if field == 1 {
            room(wanted.len())?;
            let (name, value) = entry(value)?;
            let value = value.map(|value| read(value.message()?)).transpose()?.flatten();
            wanted.insert(name, value.unwrap_or(Json::Null));
        }
    }
    Ok(wanted)
}

/// `TraceSetting`: every value is a list of texts; an empty one asks for the default.
pub(super) fn trace(message: Bytes) -> Result<Vec<u8>, ApiError> {
    let current = trace_settings();
    let wanted = settings(message, |mut fields| {
        let mut texts = Vec::new();
        while let Some((field, value)) = fields.next()? {
            if field == 1 {
                room(texts.len())?;
                texts.push(Json::String(value.text()?));
            }
        }
        Ok((!texts.is_empty()).then_some(Json::Array(texts)))
    })?;
    let as_list = |value: &Json| match value {
        Json::Array(_) => value.clone(),
        single => Json::Array(vec![single.clone()]),
    };
    let lists: Map<_, _> = current
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), as_list(value)))
        .collect();
    check_unchanged(wanted.iter(), &Json::Object(lists.clone()))?;
    let mut writer = Writer::new();
    for (name, list) in &lists {
        writer.entry(1, name, |value| {
            let texts = list.as_array().into_iter().flatten().filter_map(Json::as_str);
            texts.for_each(|text| {
                value.element(1, text);
            });
        });
    }
    Ok(writer.finish())
}

/// `LogSettings`: truth values, numbers and texts.
pub(super) fn logging(message: Bytes) -> Result<Vec<u8>, ApiError> {
    let current = log_settings();
    let wanted = settings(message, |mut fields| {
        let mut found = None;
        while let Some((field, value)) = fields.next()? {
            found = match field {
                1 => Some(Json::Bool(value.flag()?)),
                2 => Some(Json::from(value.number()?)),
                3 => Some(Json::String(value.text()?)),
                _ => found,
            };
        }
        Ok(found)
    })?;
    check_unchanged(wanted.iter(), &current)?;
    let mut writer = Writer::new();
    for (name, value) in current.as_object().into_iter().flatten() {
        writer.entry(1, name, |choice| {
            match value {
                Json::Bool(value) => choice.choice(1, u64::from(*value)),
                Json::Number(value) => choice.choice(2, value.as_u64().unwrap_or(0)),
                other => choice.element(3, other.as_str().unwrap_or_default()),
            };
        });
    }
    Ok(writer.finish())
}
