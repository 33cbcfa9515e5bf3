//! `[[bindings]]` of the settings: every key looked at, every mistake named with its line.

use super::{
    config::{After, Binding, BodyKind, Broker, Qos, Sink, Source, is_near},
    mqtt::{PLACEHOLDERS, fill},
    pace::Speed,
};
use crate::{
    config::{bytes_within, duration_within, number_within},
    serving::local::Form,
};
use edgefleet_shared::ids::SlotName;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Bindings of one agent.
const MAX_BINDINGS: usize = 32;
const MAX_NAME: usize = 40;
/// Bytes of a topic or filter.
const MAX_TOPIC: usize = 1_024;

/// Reads the value of `bindings`. `fail` takes where in the text a mistake is, and what.
pub(crate) fn read(value: &Spanned<DeValue<'_>>, fail: &mut dyn FnMut(usize, String)) -> Vec<Binding> {
    let at = value.span().start;
    let DeValue::Array(list) = value.get_ref() else {
        fail(at, "`bindings` is a list; begin each with `[[bindings]]`".into());
        return vec![];
    };
    let list: &[Spanned<DeValue<'_>>] = list;
    if list.len() > MAX_BINDINGS {
        fail(at, format!("there are {} bindings, at most {MAX_BINDINGS} are allowed", list.len()));
        return vec![];
    }
    let mut bindings: Vec<Binding> = Vec::new();
    for one in list {
        let at = one.span().start;
        let DeValue::Table(table) = one.get_ref() else {
            fail(at, "a binding is a table; begin it with `[[bindings]]`".into());
            continue;
        };
        let Some(binding) = binding(Section::new("bindings", table, at, fail)) else { continue };
        if bindings.iter().any(|other| other.name == binding.name) {
            fail(at, format!("`bindings.name` is `{}` twice", binding.name));
        }
        bindings.push(binding);
    }
    bindings
}

/// A table being read; what is left at the end is unknown.
struct Section<'a, 't> {
    prefix: String,
    table: &'a DeTable<'t>,
    at: usize,
    seen: Vec<&'static str>,
    fail: &'a mut dyn FnMut(usize, String),
    failed: bool,
    takes_any: bool,
}

impl<'a, 't> Section<'a, 't> {
    fn new(prefix: &str, table: &'a DeTable<'t>, at: usize, fail: &'a mut dyn FnMut(usize, String)) -> Self {
        Self { prefix: prefix.to_owned(), table, at, seen: vec![], fail, failed: false, takes_any: false }
    }

    fn complain(&mut self, at: usize, problem: String) {
        self.failed = true;
        (self.fail)(at, problem);
    }

    /// The value as written, with its place; numbers and truth values as text.
    fn written(&mut self, key: &'static str) -> Option<(String, usize)> {
        self.seen.push(key);
        let value = self.table.get(key)?;
        let at = value.span().start;
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            _ => {
                let problem = format!("`{}.{key}` must be text, a number or true/false", self.prefix);
                self.complain(at, problem);
                return None;
            }
        };
        Some((text, at))
    }

    fn optional<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, at) = self.written(key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(problem) => {
                let problem = format!("`{}.{key}` is `{text}`, {problem}", self.prefix);
                self.complain(at, problem);
                None
            }
        }
    }

    fn required<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if self.table.get(key).is_none() {
            self.seen.push(key);
            let problem = format!("`{}.{key}` is missing", self.prefix);
            self.complain(self.at, problem);
        }
        self.optional(key, parse)
    }

    /// Without it nobody knows which other keys belong here.
    fn kind(&mut self, of: &[(&str, Kind)]) -> Option<Kind> {
        let kind = self.required("kind", |text| choice(text, of));
        self.takes_any = kind.is_none();
        kind
    }

    fn is_given(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// A key that has no meaning here although it has one elsewhere.
    fn refuse(&mut self, key: &'static str, why: &str) {
        if let Some((_, at)) = self.written(key) {
            let problem = format!("`{}.{key}` has no meaning here: {why}", self.prefix);
            self.complain(at, problem);
        }
    }

    fn inner<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_, 't>) -> Option<T>,
    ) -> Option<T> {
        self.seen.push(key);
        let (table, at) = match self.table.get(key).map(|value| (value.get_ref(), value.span().start)) {
            Some((DeValue::Table(table), at)) => (table, at),
            Some((_, at)) => {
                let problem = format!("`{}.{key}` is a table, such as `{{ kind = \"mqtt\" }}`", self.prefix);
                self.complain(at, problem);
                return None;
            }
            None => {
                let problem = format!("`{}.{key}` is missing", self.prefix);
                self.complain(self.at, problem);
                return None;
            }
        };
        let prefix = format!("{}.{key}", self.prefix);
        let mut section = Section::new(&prefix, table, at, self.fail);
        let found = read(&mut section);
        let failed = section.finish();
        self.failed |= failed;
        found.filter(|_| !failed)
    }

    /// Names what nobody asked for. Whether anything was wrong.
    fn finish(&mut self) -> bool {
        for name in self.table.keys() {
            let key: &str = name.get_ref();
            if !self.takes_any && !self.seen.contains(&key) {
                let problem = format!("`{}.{}` is not a setting of it", self.prefix, name.get_ref());
                self.complain(name.span().start, problem);
            }
        }
        self.failed
    }
}

fn choice<T: Copy>(text: &str, of: &[(&str, T)]) -> Result<T, String> {
    let found = of.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = of.iter().map(|(name, _)| format!("`{name}`")).collect();
        format!("which is none of {}", known.join(", "))
    })
}

fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "which is neither `true` nor `false`".to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') && text.len() < 4_096 {
        true => Ok(PathBuf::from(text)),
        false => Err("which is no absolute path".into()),
    }
}

fn name(text: &str) -> Result<String, String> {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(ok) {
        true => Ok(text.to_owned()),
        false => Err(format!("which is not 1 to {MAX_NAME} lower-case letters, digits and `-`")),
    }
}

fn between(text: &str) -> Result<Duration, String> {
    let times: f64 = text.parse().map_err(|_| "which is no number".to_owned())?;
    match (0.001..=100_000.0).contains(&times) {
        true => Ok(Duration::from_secs_f64(1.0 / times)),
        false => Err("0.001 to 100000 inputs per second are allowed".into()),
    }
}

fn binding(mut section: Section<'_, '_>) -> Option<Binding> {
    let name = section.required("name", name);
    let slot = section.required("slot", |text| text.parse::<SlotName>().map_err(|e| format!("but {e}")));
    let body = section
        .optional("body", |text| choice(text, &[("json", BodyKind::Json), ("bytes", BodyKind::Bytes)]));
    let answer = section
        .optional("answer", |text| choice(text, &[("json", Form::Response), ("outputs", Form::Compact)]));
    let tells_errors =
        section.optional("on_error", |text| choice(text, &[("answer", true), ("drop", false)]));
    let between = section.optional("rate", between);
    let source = section.inner("source", source);
    let sink = section.inner("sink", |sink| sink_of(sink, source.as_ref()));
    let queue = match &source {
        Some(Source::Directory { .. }) => {
            section.refuse("queue", "files wait in their folder, none is dropped");
            None
        }
        _ => section.optional("queue", |text| number_within(text, 1, 10_000)),
    };
    let names = [slot.as_ref().map_or("x", SlotName::as_str), name.as_deref().unwrap_or("x")];
    if let (Some(source), Some(sink)) = (&source, &sink)
        && let Some(problem) = circle(source, sink, names)
    {
        section.complain(section.at, format!("`bindings` would answer itself: {problem}"));
    }
    let failed = section.finish();
    let binding = Binding {
        name: name?,
        slot: slot?,
        body: body.unwrap_or(BodyKind::Json),
        answer: answer.unwrap_or(Form::Response),
        tells_errors: tells_errors.unwrap_or(true),
        queue: queue.unwrap_or(8),
        between,
        source: source?,
        sink: sink?,
    };
    (!failed).then_some(binding)
}

#[derive(Clone, Copy)]
enum Kind {
    Mqtt,
    Directory,
    Stdin,
    Replay,
    File,
    Stdout,
    None,
}

fn source(section: &mut Section<'_, '_>) -> Option<Source> {
    let kinds = [
        ("mqtt", Kind::Mqtt),
        ("directory", Kind::Directory),
        ("stdin", Kind::Stdin),
        ("replay", Kind::Replay),
    ];
    match section.kind(&kinds)? {
        Kind::Mqtt => {
            let broker = broker(section);
            let filter = section.required("topic", |text| match text.len() <= MAX_TOPIC {
                true if rumqttc::valid_filter(text) && !text.contains('\0') => Ok(text.to_owned()),
                _ => Err("which is no topic filter".into()),
            });
            let qos = qos(section, Qos::AtMostOnce);
            Some(Source::Mqtt { broker: broker?, filter: filter?, qos: qos? })
        }
        Kind::Directory => {
            let path = section.required("path", path);
            let every = optional_or(section, "every", Duration::from_secs(1), |text| {
                duration_within(text, Duration::from_millis(20), Duration::from_secs(3600))
            });
            let after = optional_or(section, "after", After::Move, |text| {
                choice(text, &[("move", After::Move), ("delete", After::Delete)])
            });
            let keep = optional_or(section, "keep", 1_000, |text| number_within(text, 1, 1_000_000));
            Some(Source::Directory { path: path?, every: every?, after: after?, keep: keep? })
        }
        Kind::Stdin => Some(Source::Stdin),
        _ => {
            let file = section.required("file", path);
            let speed = optional_or(section, "speed", Speed::RECORDED, |text| {
                text.parse().map_err(|problem: String| format!("but {problem}"))
            });
            Some(Source::Replay { file: file?, speed: speed? })
        }
    }
}

/// `otherwise` if the key is not there, `None` if it is wrong.
fn optional_or<T>(
    section: &mut Section<'_, '_>,
    key: &'static str,
    otherwise: T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    match section.is_given(key) {
        true => section.optional(key, parse),
        false => {
            section.seen.push(key);
            Some(otherwise)
        }
    }
}

fn qos(section: &mut Section<'_, '_>, otherwise: Qos) -> Option<Qos> {
    let levels = [("0", Qos::AtMostOnce), ("1", Qos::AtLeastOnce)];
    optional_or(section, "qos", otherwise, |text| choice(text, &levels))
}

fn broker(section: &mut Section<'_, '_>) -> Option<Broker> {
    let allow_plaintext = optional_or(section, "allow_plaintext", false, flag);
    let host = optional_or(section, "host", "127.0.0.1".to_owned(), |text| {
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if text.is_empty() || text.len() > 253 || !text.chars().all(ok) {
            return Err("which is no host name or address; the port is a key of its own".into());
        }
        match text.parse::<IpAddr>() {
            Ok(address) if !is_near(address) && allow_plaintext != Some(true) => {
                Err("which is neither loopback nor private, and inputs would travel in clear text; write \
                 `allow_plaintext = true` if that is meant"
                    .into())
            }
            Err(_) if text.contains(':') => Err("which is no address; the port is a key of its own".into()),
            _ => Ok(text.to_owned()),
        }
    });
    let port = optional_or(section, "port", 1883, |text| number_within(text, 1, 65_535));
    let username = section.optional("username", |text| match text.len() {
        1..=256 => Ok(text.to_owned()),
        _ => Err("1 to 256 characters are allowed".into()),
    });
    let password_file = section.optional("password_file", path);
    if password_file.is_some() && username.is_none() && !section.is_given("username") {
        let problem = format!("`{0}.password_file` needs `{0}.username` too", section.prefix);
        section.complain(section.at, problem);
    }
    let port = u16::try_from(port?).ok()?;
    Some(Broker { host: host?, port, username, password_file, allow_plaintext: allow_plaintext? })
}

fn sink_of(section: &mut Section<'_, '_>, source: Option<&Source>) -> Option<Sink> {
    let kinds = [
        ("mqtt", Kind::Mqtt),
        ("file", Kind::File),
        ("directory", Kind::Directory),
        ("stdout", Kind::Stdout),
        ("none", Kind::None),
    ];
    match section.kind(&kinds)? {
        Kind::Mqtt => {
            let elsewhere = ["host", "port", "username", "password_file", "allow_plaintext"];
            let broker = match source {
                // Where the inputs come from, unless it says something of its own.
                Some(Source::Mqtt { broker, .. }) if !elsewhere.iter().any(|key| section.is_given(key)) => {
                    section.seen.extend(elsewhere);
                    Some(broker.clone())
                }
                _ => broker(section),
            };
            let topic = section.required("topic", topic);
            let qos = qos(section, Qos::AtLeastOnce);
            let retain = optional_or(section, "retain", false, flag);
            Some(Sink::Mqtt { broker: broker?, topic: topic?, qos: qos?, retain: retain? })
        }
        Kind::File => {
            let path = section.required("path", path);
            let rotate_bytes =
                optional_or(section, "rotate", 16 << 20, |text| bytes_within(text, 1 << 10, 1 << 40));
            let keep = optional_or(section, "keep", 4, |text| number_within(text, 0, 100));
            Some(Sink::File { path: path?, rotate_bytes: rotate_bytes?, keep: keep? })
        }
        Kind::Directory => {
            let path = section.required("path", path);
            let keep = optional_or(section, "keep", 10_000, |text| number_within(text, 1, 100_000));
            let keep_bytes =
                optional_or(section, "keep_bytes", 1 << 30, |text| bytes_within(text, 1 << 10, 1 << 40));
            Some(Sink::Directory { path: path?, keep: keep?, keep_bytes: keep_bytes? })
        }
        Kind::Stdout => Some(Sink::Stdout),
        _ => Some(Sink::None),
    }
}

fn topic(text: &str) -> Result<String, String> {
    let plain = fill(text, ["x"; 3]);
    if plain.contains(['{', '}']) {
        return Err(format!("which has another placeholder than {}", PLACEHOLDERS.join(", ")));
    }
    match !plain.is_empty() && text.len() <= MAX_TOPIC && !plain.contains(['+', '#', '\0']) {
        true => Ok(text.to_owned()),
        false => Err("which is no topic".into()),
    }
}

/// Why answers would come back as inputs.
fn circle(source: &Source, sink: &Sink, [slot, binding]: [&str; 2]) -> Option<String> {
    match (source, sink) {
        (Source::Mqtt { broker: from, filter, .. }, Sink::Mqtt { broker: to, topic, .. }) => {
            let plain = fill(topic, ["x", slot, binding]);
            let same = (&from.host, from.port) == (&to.host, to.port) && matches(&plain, filter);
            same.then(|| format!("`{topic}` is a topic of its source, `{filter}`"))
        }
        (Source::Directory { path: from, .. }, Sink::Directory { path: to, .. }) => {
            same_folder(from, to).then(|| format!("`{}` is the folder of its source", to.display()))
        }
        (Source::Directory { path: from, .. }, Sink::File { path: to, .. }) => {
            let inside = to.parent().is_some_and(|folder| same_folder(from, folder));
            inside.then(|| format!("`{}` lies in the folder of its source", to.display()))
        }
        _ => None,
    }
}

/// Whether a subscription to `filter` gets messages on `topic`.
fn matches(topic: &str, filter: &str) -> bool {
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

fn same_folder(one: &Path, other: &Path) -> bool {
    one.components().eq(other.components())
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
