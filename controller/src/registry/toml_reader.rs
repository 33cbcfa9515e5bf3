//! Reads a TOML file key by key and goes on after a mistake, so that one run names them all.
//!
//! serde would stop at the first wrong value; here every accessor notes what is wrong, with the line,
//! and returns `None`. Keys nobody asked for are refused when a [`Table`] is finished.

use super::mistakes::SourceMistake;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::Display,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One file and the mistakes found in it so far.
pub(crate) struct Reader<'a> {
    file: PathBuf,
    text: &'a str,
    wrong: RefCell<Vec<SourceMistake>>,
}

impl<'a> Reader<'a> {
    /// `file`: how the file is called in messages.
    pub(crate) fn new(file: &Path, text: &'a str) -> Self {
        Self { file: file.to_owned(), text, wrong: RefCell::default() }
    }

    /// The document's top table; syntax errors are noted and the rest is still read.
    pub(crate) fn parse(&self) -> Spanned<DeTable<'a>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let line = error.span().map(|span| self.line(span.start));
            self.push(line, String::new(), error.message().replace('\n', ", "));
        }
        table
    }

    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    fn push(&self, line: Option<usize>, key: String, reason: String) {
        self.wrong.borrow_mut().push(SourceMistake { file: self.file.clone(), line, key, reason });
    }

    /// Notes a mistake at a place of the file.
    pub(crate) fn wrong(&self, at: &Range<usize>, key: impl Into<String>, reason: impl Into<String>) {
        self.push(Some(self.line(at.start)), key.into(), reason.into());
    }

    pub(crate) fn into_mistakes(self) -> Vec<SourceMistake> {
        let mut all = self.wrong.into_inner();
        all.sort_by_key(|mistake| mistake.line);
        all
    }
}

/// One table of the file; remembers which keys were asked for.
pub(crate) struct Table<'a> {
    reader: &'a Reader<'a>,
    path: String,
    entries: &'a DeTable<'a>,
    span: Range<usize>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Table<'a> {
    pub(crate) fn top(reader: &'a Reader<'a>, table: &'a Spanned<DeTable<'a>>) -> Self {
        Self::at(reader, String::new(), table.get_ref(), 0..0)
    }

    fn at(reader: &'a Reader<'a>, path: String, entries: &'a DeTable<'a>, span: Range<usize>) -> Self {
        Self { reader, path, entries, span, asked: RefCell::default() }
    }

    /// Dotted path of a key of this table.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where a key's value stands, or the table if it is absent.
    pub(crate) fn place(&self, key: &str) -> Range<usize> {
        self.find(key).map_or_else(|| self.span.clone(), |value| value.span())
    }

    /// Notes a mistake about a key of this table.
    pub(crate) fn wrong(&self, key: &str, reason: impl Into<String>) {
        self.reader.wrong(&self.place(key), self.key(key), reason);
    }

    fn find(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.entries.iter().find(|(name, _)| name.get_ref().as_ref() == key).map(|(_, value)| value)
    }

    fn value(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.borrow_mut().insert(key);
        self.find(key)
    }

    /// `value`, or the mistake that it is missing.
    fn need(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        let found = self.value(key);
        if found.is_none() {
            self.wrong(key, "is missing");
        }
        found
    }

    fn mistyped(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let found = value.get_ref().type_str();
        self.reader.wrong(&value.span(), self.key(key), format!("is a TOML {found}, not {wanted}"));
    }

    pub(crate) fn string(&self, key: &'static str) -> Option<&'a str> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.mistyped(key, value, "a string");
        }
        text
    }

    pub(crate) fn need_string(&self, key: &'static str) -> Option<&'a str> {
        self.need(key)?;
        self.string(key)
    }

    /// A string that must parse as `T`.
    pub(crate) fn need_parsed<T: FromStr<Err: Display>>(&self, key: &'static str) -> Option<T> {
        let text = self.need_string(key)?;
        text.parse().map_err(|e| self.wrong(key, format!("is {text:?}: {e}"))).ok()
    }

    /// An integer of `range`.
    pub(crate) fn integer(&self, key: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let value = self.need(key)?;
        let Some(number) = integer(value.get_ref()) else {
            self.mistyped(key, value, "an integer of 64 bits");
            return None;
        };
        if range.contains(&number) {
            return Some(number);
        }
        self.wrong(key, format!("is {number}, not {} to {}", range.start(), range.end()));
        None
    }

    /// A finite number; TOML integers count as numbers.
    pub(crate) fn number(&self, key: &'static str) -> Option<f64> {
        let value = self.need(key)?;
        let number = match value.get_ref() {
            DeValue::Float(text) => text.as_str().parse::<f64>().ok(),
            other => integer(other).map(|n| n as f64),
        };
        match number {
            Some(number) if number.is_finite() => Some(number),
            Some(number) => {
                self.wrong(key, format!("is {number}, not a finite number"));
                None
            }
            None => {
                self.mistyped(key, value, "a number");
                None
            }
        }
    }

    /// An optional array of strings; absent is empty.
    pub(crate) fn strings(&self, key: &'static str) -> Vec<String> {
        let all = self.array(key, "an array of strings", |value| value.as_str().map(str::to_owned));
        all.unwrap_or_default()
    }

    pub(crate) fn integers(&self, key: &'static str) -> Option<Vec<i64>> {
        self.need(key)?;
        self.array(key, "an array of integers", integer)
    }

    fn array<T>(
        &self,
        key: &'static str,
        wanted: &str,
        read: impl Fn(&DeValue<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let all = value
            .get_ref()
            .as_array()
            .and_then(|items| items.iter().map(|item| read(item.get_ref())).collect::<Option<Vec<_>>>());
        if all.is_none() {
            self.mistyped(key, value, wanted);
        }
        all
    }

    pub(crate) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let value = self.value(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Table::at(self.reader, self.key(key), table, value.span())),
            None => {
                self.mistyped(key, value, "a table");
                None
            }
        }
    }

    pub(crate) fn need_table(&self, key: &'static str) -> Option<Table<'a>> {
        self.need(key)?;
        self.table(key)
    }

    /// `[[key]]` entries, if there are any.
    pub(crate) fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        if self.value(key).is_none() { vec![] } else { self.need_tables(key) }
    }

    /// `[[key]]` entries; at least one.
    pub(crate) fn need_tables(&self, key: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.need(key) else { return vec![] };
        let Some(items) = value.get_ref().as_array() else {
            self.mistyped(key, value, &format!("`[[{key}]]`"));
            return vec![];
        };
        if items.iter().next().is_none() {
            self.wrong(key, "needs at least one entry");
        }
        let mut tables = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match item.get_ref().as_table() {
                Some(table) => {
                    let path = format!("{}[{index}]", self.key(key));
                    tables.push(Table::at(self.reader, path, table, item.span()));
                }
                None => self.mistyped(key, item, "a table"),
            }
        }
        tables
    }

    /// All entries as strings, whatever their keys.
    pub(crate) fn all_strings(self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (key, value) in self.entries.iter() {
            match value.get_ref().as_str() {
                Some(text) => all.push((key.get_ref().to_string(), text.to_owned())),
                None => self.mistyped(key.get_ref(), value, "a string"),
            }
        }
        all
    }

    /// Refuses keys that nobody asked for.
    pub(crate) fn finish(self) {
        let asked = self.asked.borrow();
        for (key, _) in self.entries.iter() {
            if !asked.contains(key.get_ref().as_ref()) {
                let known: Vec<_> = asked.iter().copied().collect();
                let reason = format!("is not known here; known are {}", known.join(", "));
                self.reader.wrong(&key.span(), self.key(key.get_ref()), reason);
            }
        }
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}
