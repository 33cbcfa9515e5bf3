//! Pillow's resampling of 8-bit images, bit for bit: `Resample.c` with its fixed-point coefficients, and the
//! nearest neighbour of `Geometry.c`.
//!
//! A filter widens with the reduction (antialiasing); rows first, then columns, rounded to 8 bits between.

use super::Image;
use crate::pipeline::{error::Fault, value::room};

/// Bits below the point of a coefficient.
const PRECISION: u32 = 32 - 8 - 2;

/// A kernel and the distance from the centre where it ends.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    weight: fn(f64) -> f64,
    support: f64,
}

pub(super) const BOX: Kernel = Kernel { weight: box_filter, support: 0.5 };
pub(super) const BILINEAR: Kernel = Kernel { weight: triangle, support: 1.0 };
pub(super) const HAMMING: Kernel = Kernel { weight: hamming, support: 1.0 };
pub(super) const BICUBIC: Kernel = Kernel { weight: bicubic, support: 2.0 };
pub(super) const LANCZOS: Kernel = Kernel { weight: lanczos, support: 3.0 };

fn box_filter(x: f64) -> f64 {
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}
fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}
fn hamming(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x * (0.54 + 0.46 * x.cos())
}
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        return ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    }
    if x < 2.0 {
        return (((x - 5.0) * x + 8.0) * x - 4.0) * A;
    }
    0.0
}
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 {
            return 1.0;
        }
        let x = x * std::f64::consts::PI;
        x.sin() / x
    };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// For each output position: the first input position and the weights from there.
struct Taps {
    first: Vec<usize>,
    len: Vec<usize>,
    /// `stride` for each output position.
    weights: Vec<i32>,
    stride: usize,
}

impl Taps {
    fn new(from: usize, to: usize, kernel: Kernel) -> Result<Self, Fault> {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = kernel.support * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut taps = Self {
            first: Vec::with_capacity(to),
            len: Vec::with_capacity(to),
            weights: vec![0; room(&[to, stride], 4)?],
            stride,
        };
        let mut exact = vec![0f64; stride];
        for out in 0..to {
            let center = (out as f64 + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as i64).clamp(0, from as i64) as usize;
            let len = end.saturating_sub(first).min(stride);
            let mut sum = 0.0;
            for (x, weight) in exact[..len].iter_mut().enumerate() {
                *weight = (kernel.weight)(((x + first) as f64 - center + 0.5) * (1.0 / filter_scale));
                sum += *weight;
            }
            let fixed = &mut taps.weights[out * stride..out * stride + len];
            for (fixed, weight) in fixed.iter_mut().zip(&exact) {
                let weight = if sum == 0.0 { *weight } else { *weight / sum } * f64::from(1 << PRECISION);
                *fixed = if weight < 0.0 { weight - 0.5 } else { weight + 0.5 } as i32;
            }
            taps.first.push(first);
            taps.len.push(len);
        }
        Ok(taps)
    }

    fn each(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let rows = self.weights.chunks_exact(self.stride);
        self.first.iter().zip(&self.len).zip(rows).map(|((first, len), row)| (*first, &row[..*len]))
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

pub(super) fn resample(image: &Image, height: usize, width: usize, kernel: Kernel) -> Result<Image, Fault> {
    let vertical = Taps::new(image.height, height, kernel)?;
    // Only the rows that are needed below.
    let top = vertical.first.first().copied().unwrap_or(0);
    let last = vertical.each().map(|(first, weights)| first + weights.len()).max().unwrap_or(image.height);
    let bytes = image.width * image.channels;
    let rows = &image.pixels[top * bytes..last * bytes];
    let squeezed = if width == image.width {
        rows.to_vec()
    } else {
        let horizontal = Taps::new(image.width, width, kernel)?;
        match image.channels {
            1 => across::<1>(rows, bytes, &horizontal, width),
            _ => across::<3>(rows, bytes, &horizontal, width),
        }?
    };
    let mut done = Image::blank(height, width, image.channels, 0)?;
    if height == image.height {
        done.pixels = squeezed;
        return Ok(done);
    }
    down(&squeezed, width * image.channels, top, &vertical, &mut done.pixels);
    Ok(done)
}

/// Each row of `bytes` to one of `width` pixels.
fn across<const C: usize>(rows: &[u8], bytes: usize, taps: &Taps, width: usize) -> Result<Vec<u8>, Fault> {
    let count = rows.len() / bytes.max(1);
    let mut done = vec![0; room(&[count, width, C], 1)?];
    for (row, out) in rows.chunks_exact(bytes).zip(done.chunks_exact_mut(width * C)) {
        let (row, out) = (row.as_chunks::<C>().0, out.as_chunks_mut::<C>().0);
        for ((first, weights), out) in taps.each().zip(out) {
            let mut sums = [1i32 << (PRECISION - 1); C];
            for (pixel, weight) in row[first..first + weights.len()].iter().zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            *out = sums.map(clip);
        }
    }
    Ok(done)
}

/// Columns: whole rows are added up, so that the inner loop runs over neighbours.
fn down(rows: &[u8], bytes: usize, top: usize, taps: &Taps, done: &mut [u8]) {
    let mut sums = vec![0i32; bytes];
    for ((first, weights), out) in taps.each().zip(done.chunks_exact_mut(bytes)) {
        sums.fill(1 << (PRECISION - 1));
        for (offset, weight) in weights.iter().enumerate() {
            let at = (first - top + offset) * bytes;
            for (sum, value) in sums.iter_mut().zip(&rows[at..at + bytes]) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = clip(*sum);
        }
    }
}

/// The input position of each output position; sums up as Pillow does.
fn positions(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut at = step * 0.5;
    (0..to)
        .map(|_| {
            let here = (at as usize).min(from - 1);
            at += step;
            here
        })
        .collect()
}

pub(super) fn nearest(image: &Image, height: usize, width: usize) -> Result<Image, Fault> {
    pick(image, &positions(image.height, height), &positions(image.width, width))
}

/// The pixels at these rows and columns.
pub(super) fn pick(image: &Image, rows: &[usize], columns: &[usize]) -> Result<Image, Fault> {
    let mut done = Image::blank(rows.len(), columns.len(), image.channels, 0)?;
    let mut out = done.pixels.chunks_exact_mut(image.channels);
    for y in rows {
        for x in columns {
            let at = (y * image.width + x) * image.channels;
            if let Some(out) = out.next() {
                out.copy_from_slice(&image.pixels[at..at + image.channels]);
            }
        }
    }
    Ok(done)
}
