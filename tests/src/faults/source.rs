//! Bundle sources made from the sample models.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// What to write.
pub struct Source {
    toml: String,
    model: Vec<u8>,
    /// Everything else of the source folder: labels, baseline, golden samples.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Source {
    /// `models/digits/vN` as it is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digits(version: u32) -> Result<Self> {
        let folder = models().join(format!("digits/v{version}"));
        Ok(Self {
            toml: fs::read_to_string(folder.join("bundle.toml"))?,
            model: fs::read(folder.join("model.onnx"))?,
            files: files(&folder)?,
        })
    }

    /// `slow` or `slow-b` of the fixtures, behind the interface of digits.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn slow(name: &str) -> Result<Self> {
        let mut source = Self::digits(1)?;
        let fixtures = models().join("fixtures");
        source.model = fs::read(fixtures.join(format!("{name}.onnx")))?;
        source.files.retain(|(path, _)| !path.starts_with("golden"));
        for entry in fs::read_dir(fixtures.join("golden").join(name))? {
            let entry = entry?;
            source.files.push((Path::new("golden").join(entry.file_name()), fs::read(entry.path())?));
        }
        // A debug build on a busy machine takes seconds; how fast it is, is not the question here.
        source.set("p95_latency_ms", "60000.0");
        Ok(source)
    }

    /// Sets the value of a key of bundle.toml, which must be there once.
    pub fn set(&mut self, key: &str, value: &str) {
        let lines = self.toml.lines().map(|line| match line.split_once('=') {
            Some((found, _)) if found.trim() == key => format!("{key} = {value}"),
            _ => line.to_owned(),
        });
        self.toml = lines.collect::<Vec<_>>().join("\n");
    }

    /// Grows the model to exactly `bytes` without changing its answers: a protobuf `doc_string` of
    /// letters from a seeded generator is appended (`models/fixtures/README.md`).
    ///
    /// # Errors
    /// If the model is larger already.
    pub fn pad(&mut self, bytes: usize, seed: u64) -> Result<()> {
        // Field 6, wire type 2; lengths of 2^14 to 2^28 take a varint of 3 or 4 bytes.
        let room = bytes.checked_sub(self.model.len() + 1).context("the model is larger than that")?;
        let (text, width) = if room - 3 < 1 << 21 { (room - 3, 3) } else { (room - 4, 4) };
        ensure!((1 << 14..1 << 28).contains(&text), "{text} bytes of padding are out of range");
        self.model.push(0x32);
        for n in 0..width {
            let more = if n + 1 < width { 0x80 } else { 0 };
            self.model.push((text >> (7 * n)) as u8 & 0x7f | more);
        }
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        self.model.extend((0..text).map(|_| {
            // Source: Steele, Lea, Flood 2014, SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            b' ' + ((z ^ (z >> 31)) % 95) as u8
        }));
        ensure!(self.model.len() == bytes, "{} bytes were made, {bytes} wanted", self.model.len());
        Ok(())
    }

    /// Writes it as release `counter`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(mut self, folder: &Path, counter: u64) -> Result<PathBuf> {
        self.set("counter", &counter.to_string());
        fs::create_dir_all(folder.join("golden"))?;
        for (path, bytes) in &self.files {
            fs::write(folder.join(path), bytes)?;
        }
        fs::write(folder.join("model.onnx"), &self.model)?;
        fs::write(folder.join("bundle.toml"), &self.toml)?;
        Ok(folder.to_owned())
    }
}

fn files(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for below in ["", "golden"] {
        for entry in fs::read_dir(folder.join(below))? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_file() && name != "model.onnx" && name != "bundle.toml" {
                found.push((Path::new(below).join(name), fs::read(entry.path())?));
            }
        }
    }
    Ok(found)
}
