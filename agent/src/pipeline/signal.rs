//! Signals along the last axis: window, fft, mel, log.
//!
//! Source of the formulas: librosa 0.11 (`util.frame`, `stft`, `filters.mel`, `power_to_db`); windows are
//! periodic, as SciPy's `get_window(..., fftbins=True)`.

use super::{
    error::Fault,
    kind::Kind,
    numeric::each,
    step::{Built, Compiled, OnArray},
    value::{Array, room},
};
use edgefleet_shared::{
    bundle::pipeline::{LogScale, MelNorm, Op, Pad, Spectrum, Taper},
    tensor::Datatype,
};
use rustfft::{Fft, FftPlanner, num_complex::Complex};
use std::sync::Arc;

pub(super) fn compile(op: &Op, input: &Kind) -> Built {
    let (_, shape) = input.as_numbers()?;
    let (last, rest) = shape.split_last().ok_or("needs at least one dimension")?;
    let kind = |tail: &[i64]| Kind::array(Datatype::Fp32, [rest, tail].concat());
    match op {
        Op::Window { length, hop, taper, pad } => {
            let frames = Frames::new(*length, *hop, *taper, *pad);
            let count = match usize::try_from(*last) {
                Ok(samples) => frames.count(samples).map_err(|fault| fault.to_string())? as i64,
                Err(_) => -1,
            };
            Compiled::one(kind(&[count, *length as i64]), OnArray(move |array| frames.cut(array)))
        }
        Op::Fft { output } => {
            let length = usize::try_from(*last).map_err(|_| "needs a last dimension of known length")?;
            if !(1..=1 << 16).contains(&length) {
                return Err(format!("of {length} samples; 1 to 65536 are possible"));
            }
            let fft = FftPlanner::<f32>::new().plan_fft_forward(length);
            let output = *output;
            let run = OnArray(move |array| spectrum(array, fft.as_ref(), length, output));
            Compiled::one(kind(&[(length / 2 + 1) as i64]), run)
        }
        Op::Mel { rate, bins, fmin, fmax, norm, htk } => {
            let spectrum = usize::try_from(*last).ok().filter(|n| (2..=32_769).contains(n));
            let spectrum =
                spectrum.ok_or("needs a spectrum of known length, 2 to 32769; put `fft` before it")?;
            let scale = MelScale { htk: *htk };
            let bank = Arc::new(scale.bank(*rate, spectrum, *bins, *fmin, fmax.unwrap_or(rate / 2.0), *norm));
            let bins = *bins;
            let run = OnArray(move |array| project(array, &bank, spectrum, bins));
            Compiled::one(kind(&[bins as i64]), run)
        }
        Op::Log { scale, floor, top_db } => {
            let (scale, floor, top_db) = (*scale, *floor as f32, top_db.map(|top| top as f32));
            let kind = Kind::array(Datatype::Fp32, shape.to_vec());
            Compiled::one(kind, OnArray(move |array| log(array, scale, floor, top_db)))
        }
        other => Err(format!("`{}` is no operation on signals", other.name())),
    }
}

/// Cuts a signal into weighted pieces.
struct Frames {
    hop: usize,
    weights: Vec<f32>,
    pad: Pad,
}

impl Frames {
    fn new(length: usize, hop: usize, taper: Taper, pad: Pad) -> Self {
        let cosine = |a0: f64| {
            let step = 2.0 * std::f64::consts::PI / length as f64;
            (0..length).map(|n| (a0 - (1.0 - a0) * (step * n as f64).cos()) as f32).collect()
        };
        let weights = match taper {
            Taper::None => vec![1.0; length],
            Taper::Hann => cosine(0.5),
            Taper::Hamming => cosine(0.54),
        };
        Self { hop: hop.max(1), weights, pad }
    }

    fn border(&self) -> usize {
        if self.pad == Pad::None { 0 } else { self.weights.len() / 2 }
    }

    fn count(&self, samples: usize) -> Result<usize, Fault> {
        let (length, border) = (self.weights.len(), self.border());
        let whole = samples.saturating_add(2 * border);
        if whole < length {
            return Err(Fault::shape(format!("{samples} samples are fewer than a window of {length}")));
        }
        if samples == 0 {
            return Err(Fault::shape("no samples"));
        }
        if self.pad == Pad::Reflect && samples <= border {
            return Err(Fault::shape(format!("{samples} samples cannot be reflected by {border}")));
        }
        Ok((whole - length) / self.hop + 1)
    }

    fn cut(&self, array: Array) -> Result<Array, Fault> {
        let (mut shape, data) = array.into_f32()?;
        let samples = shape.pop().unwrap_or(0);
        let (length, border, frames) = (self.weights.len(), self.border(), self.count(samples)?);
        shape.extend([frames, length]);
        let mut done = Vec::with_capacity(room(&shape, 4)?);
        for signal in data.chunks_exact(samples.max(1)) {
            let at = |position: usize| -> f32 {
                let Some(inside) = position.checked_sub(border) else {
                    return if self.pad == Pad::Reflect { signal[border - position] } else { 0.0 };
                };
                match signal.get(inside) {
                    Some(sample) => *sample,
                    None if self.pad == Pad::Reflect => signal[2 * (samples - 1) - inside],
                    None => 0.0,
                }
            };
            for frame in 0..frames {
                let start = frame * self.hop;
                done.extend(self.weights.iter().enumerate().map(|(n, weight)| at(start + n) * weight));
            }
        }
        Ok(Array::floats(shape, done))
    }
}

fn spectrum(array: Array, fft: &dyn Fft<f32>, length: usize, output: Spectrum) -> Result<Array, Fault> {
    let (mut shape, data) = array.into_f32()?;
    let found = shape.pop().unwrap_or(0);
    if found != length {
        return Err(Fault::shape(format!("has frames of {found} samples, not {length}")));
    }
    let half = length / 2 + 1;
    shape.push(half);
    let mut done = Vec::with_capacity(room(&shape, 4)?);
    let mut scratch = vec![Complex::default(); fft.get_inplace_scratch_len()];
    let mut buffer = vec![Complex::default(); length];
    for frame in data.chunks_exact(length) {
        for (complex, sample) in buffer.iter_mut().zip(frame) {
            *complex = Complex::new(*sample, 0.0);
        }
        fft.process_with_scratch(&mut buffer, &mut scratch);
        done.extend(buffer[..half].iter().map(|c| match output {
            Spectrum::Magnitude => c.norm(),
            Spectrum::Power => c.norm_sqr(),
        }));
    }
    Ok(Array::floats(shape, done))
}

/// Slaney's scale, linear below 1 kHz and logarithmic above; or HTK's.
struct MelScale {
    htk: bool,
}

impl MelScale {
    /// Hz of one mel in the linear part.
    const LINEAR: f64 = 200.0 / 3.0;
    const KNEE_HZ: f64 = 1000.0;
    const KNEE_MEL: f64 = Self::KNEE_HZ / Self::LINEAR;

    fn log_step() -> f64 {
        6.4f64.ln() / 27.0
    }
    fn of(&self, hz: f64) -> f64 {
        if self.htk {
            return 2595.0 * (1.0 + hz / 700.0).log10();
        }
        if hz >= Self::KNEE_HZ {
            return Self::KNEE_MEL + (hz / Self::KNEE_HZ).ln() / Self::log_step();
        }
        hz / Self::LINEAR
    }
    fn hz(&self, mel: f64) -> f64 {
        if self.htk {
            return 700.0 * (10f64.powf(mel / 2595.0) - 1.0);
        }
        if mel >= Self::KNEE_MEL {
            return Self::KNEE_HZ * (Self::log_step() * (mel - Self::KNEE_MEL)).exp();
        }
        mel * Self::LINEAR
    }

    /// Triangles over the spectrum: for each bin the first line and the weights from there.
    fn bank(
        &self,
        rate: f64,
        spectrum: usize,
        bins: usize,
        fmin: f64,
        fmax: f64,
        norm: MelNorm,
    ) -> Vec<(usize, Vec<f32>)> {
        let (low, high) = (self.of(fmin), self.of(fmax));
        let edge = |i: usize| self.hz(low + (high - low) * i as f64 / (bins + 1) as f64);
        let line = |i: usize| i as f64 * rate / (2 * (spectrum - 1)) as f64;
        let triangle = |bin: usize| {
            let (left, middle, right) = (edge(bin), edge(bin + 1), edge(bin + 2));
            let gain = if norm == MelNorm::Slaney { 2.0 / (right - left) } else { 1.0 };
            let weight = |i: usize| {
                let up = (line(i) - left) / (middle - left);
                let down = (right - line(i)) / (right - middle);
                (up.min(down).max(0.0) * gain) as f32
            };
            let inside: Vec<usize> = (0..spectrum).filter(|i| weight(*i) > 0.0).collect();
            let first = inside.first().copied().unwrap_or(0);
            let end = inside.last().map_or(0, |last| last + 1);
            (first, (first..end).map(weight).collect())
        };
        (0..bins).map(triangle).collect()
    }
}

fn project(array: Array, bank: &[(usize, Vec<f32>)], spectrum: usize, bins: usize) -> Result<Array, Fault> {
    let (mut shape, data) = array.into_f32()?;
    let found = shape.pop().unwrap_or(0);
    if found != spectrum {
        return Err(Fault::shape(format!("has spectra of {found} lines, not {spectrum}")));
    }
    shape.push(bins);
    let mut done = Vec::with_capacity(room(&shape, 4)?);
    for row in data.chunks_exact(spectrum) {
        for (first, weights) in bank {
            let lines = &row[*first..*first + weights.len()];
            done.push(lines.iter().zip(weights).map(|(line, weight)| line * weight).sum());
        }
    }
    Ok(Array::floats(shape, done))
}

fn log(array: Array, scale: LogScale, floor: f32, top_db: Option<f32>) -> Result<Array, Fault> {
    let mut array = each(array, |v| {
        let v = if v < floor { floor } else { v };
        match scale {
            LogScale::Ln => v.ln(),
            LogScale::Log10 => v.log10(),
            LogScale::Log1p => v.ln_1p(),
            LogScale::Db => 10.0 * v.log10(),
        }
    })?;
    if let (Some(top), super::value::Data::F32(data)) = (top_db, &mut array.data) {
        let rows = array.shape.first().copied().unwrap_or(1).max(1);
        let row = (data.len() / rows).max(1);
        for row in data.chunks_mut(row) {
            let least = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) - top;
            row.iter_mut().filter(|v| **v < least).for_each(|v| *v = least);
        }
    }
    Ok(array)
}
