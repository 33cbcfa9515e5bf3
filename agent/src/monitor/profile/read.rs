//! From a request's tensors to one number per channel and row.
//!
//! At most [`MAX_LOOKS`] numbers of a request are read, at fixed distances, whatever its size: first fewer numbers of
//! a row, then fewer rows.

use super::{
    Categories,
    plan::{ChannelPlan, Layout, SUMMARY, TensorPlan, Test, What},
};
use crate::pipeline::appearance::{self, MAX_LOOKS, appearance};
use edgefleet_shared::tensor::{Datatype, Tensor};

/// The channels of a request's inputs.
#[derive(Debug, Default, PartialEq)]
pub struct Look {
    /// Rows of the request.
    pub rows: u64,
    /// Every how many rows one was looked at.
    pub(super) stride: usize,
    /// Row after row, each as long as the plan has channels of inputs. Categories by their number, NaN where there
    /// is nothing.
    pub(super) values: Vec<f64>,
    /// Rows with each fault, by its number in the plan.
    pub(super) faults: Vec<u64>,
}

pub(super) fn look(plan: &ChannelPlan, categories: &[Categories], inputs: &[Tensor]) -> Look {
    let width = plan.of_inputs;
    let mut faults = vec![0; plan.faults.len()];
    let found: Vec<_> = plan.inputs.iter().map(|of| (of, find(inputs, &of.tensor))).collect();
    let rows = found.iter().filter_map(|(of, tensor)| Some(rows_of(of, (*tensor)?))).min().unwrap_or(1);
    let cost: usize = found.iter().filter_map(|(of, tensor)| Some(cost(of, (*tensor)?))).sum();
    let stride = rows.saturating_mul(cost).div_ceil(MAX_LOOKS).clamp(1, rows.max(1));
    let looked = rows.div_ceil(stride);
    let mut values = vec![f64::NAN; looked * width];
    for (of, tensor) in found {
        let Some(tensor) = tensor else { continue };
        let cells = |row: usize| row * width + of.first..row * width + of.first + of.count;
        if let What::Categories { columns } = of.what {
            let known = &categories[of.first..of.first + of.count];
            texts(of, tensor, columns, stride, known, &mut faults, |row, column, value| {
                if let Some(cell) = values.get_mut(row * width + of.first + column) {
                    *cell = value;
                }
            });
            continue;
        }
        for (number, row) in (0..rows).step_by(stride).enumerate() {
            let Some(cells) = values.get_mut(cells(number)) else { break };
            read_row(of, tensor, row, cells, &mut faults);
        }
    }
    // Of the rows that were looked at; those between were as good on the average.
    Look { rows: rows as u64, stride, values, faults }
}

/// The numbers of an answer, row after row; empty if the outputs are not `rows`.
pub(super) fn outputs(plan: &ChannelPlan, outputs: &[Tensor], rows: usize, stride: usize) -> Vec<f64> {
    let width: usize = plan.outputs.iter().map(|of| of.count).sum();
    let mut values = vec![f64::NAN; rows.div_ceil(stride) * width];
    let mut first = 0;
    for of in &plan.outputs {
        let tensor = find(outputs, &of.tensor).filter(|tensor| rows_of(of, tensor) == rows);
        if let Some(tensor) = tensor {
            for (number, row) in (0..rows).step_by(stride).enumerate() {
                let at = number * width + first;
                read_row(of, tensor, row, &mut values[at..at + of.count], &mut []);
            }
        }
        first += of.count;
    }
    values
}

fn find<'a>(tensors: &'a [Tensor], name: &str) -> Option<&'a Tensor> {
    tensors.iter().find(|tensor| tensor.name() == name)
}

pub(super) fn rows_of(of: &TensorPlan, tensor: &Tensor) -> usize {
    if of.batched { tensor.shape().first().copied().unwrap_or(0) } else { 1 }
}

/// Numbers that are read for one row.
fn cost(of: &TensorPlan, tensor: &Tensor) -> usize {
    let inner = tensor.len() / rows_of(of, tensor).max(1);
    match of.what {
        What::Features { .. } | What::Categories { .. } | What::Summary { .. } => inner.min(MAX_LOOKS),
        What::Picture { .. } => (5 * inner).min(MAX_LOOKS),
        What::Decoded { .. } => 0,
    }
}

/// One number of a tensor as it lies in memory; NaN of a text.
pub fn number(tensor: &Tensor, index: usize) -> f64 {
    fn at<const N: usize>(raw: &[u8], index: usize) -> Option<[u8; N]> {
        raw.get(index * N..)?.first_chunk().copied()
    }
    let raw = tensor.data();
    let read = match tensor.datatype() {
        Datatype::Fp32 => at(raw, index).map(|b| f64::from(f32::from_le_bytes(b))),
        Datatype::Uint8 | Datatype::Bool => at(raw, index).map(|[b]| f64::from(b)),
        Datatype::Fp64 => at(raw, index).map(f64::from_le_bytes),
        Datatype::Int64 => at(raw, index).map(|b| i64::from_le_bytes(b) as f64),
        Datatype::Int32 => at(raw, index).map(|b| f64::from(i32::from_le_bytes(b))),
        Datatype::Fp16 => at(raw, index).map(|b| half::f16::from_le_bytes(b).to_f64()),
        Datatype::Bf16 => at(raw, index).map(|b| half::bf16::from_le_bytes(b).to_f64()),
        Datatype::Uint16 => at(raw, index).map(|b| f64::from(u16::from_le_bytes(b))),
        Datatype::Uint32 => at(raw, index).map(|b| f64::from(u32::from_le_bytes(b))),
        Datatype::Uint64 => at(raw, index).map(|b| u64::from_le_bytes(b) as f64),
        Datatype::Int8 => at(raw, index).map(|b| f64::from(i8::from_le_bytes(b))),
        Datatype::Int16 => at(raw, index).map(|b| f64::from(i16::from_le_bytes(b))),
        Datatype::Bytes => None,
    };
    read.unwrap_or(f64::NAN)
}

/// Fills the channels of one row. A tensor of another form than the plan's leaves them empty.
fn read_row(of: &TensorPlan, tensor: &Tensor, row: usize, cells: &mut [f64], faults: &mut [u64]) {
    let rows = rows_of(of, tensor);
    if rows == 0 || tensor.is_empty() || row >= rows {
        return;
    }
    let inner = tensor.len() / rows;
    let start = row * inner;
    let mut checks = Checks { of, broken: 0 };
    match of.what {
        What::Features { columns } if columns == inner => {
            for (column, cell) in cells.iter_mut().enumerate() {
                *cell = checks.check(number(tensor, start + column));
            }
        }
        What::Summary { columns } if inner.is_multiple_of(columns.max(1)) => {
            let along = inner / columns.max(1);
            let stride = stride_of(along, MAX_LOOKS / columns.max(1));
            for (column, cells) in cells.chunks_exact_mut(SUMMARY.len()).enumerate() {
                let numbers = (0..along).step_by(stride);
                let numbers = numbers.map(|n| checks.check(number(tensor, start + n * columns + column)));
                cells.copy_from_slice(&summary(numbers));
            }
        }
        What::Picture { layout, scale } => {
            if let Some(found) = picture(tensor, of.batched, start, layout) {
                cells.copy_from_slice(&found);
                for (cell, by) in cells.iter_mut().zip([scale, scale, scale * scale]) {
                    *cell *= by;
                }
            }
        }
        What::Features { .. } | What::Summary { .. } | What::Categories { .. } | What::Decoded { .. } => {}
    }
    checks.count(faults);
}

/// Which rules of a tensor one row breaks.
struct Checks<'a> {
    of: &'a TensorPlan,
    /// A bit for each rule, the highest for what is not finite.
    broken: u64,
}

impl Checks<'_> {
    /// The value as the channel is to have it: NaN if it stands for nothing.
    fn check(&mut self, x: f64) -> f64 {
        if !x.is_finite() && self.of.not_finite.is_some() {
            self.broken |= 1 << 63;
        }
        let mut value = x;
        for (number, rule) in self.of.rules.iter().enumerate().take(63) {
            let breaks = match &rule.test {
                Test::Outside { min, max } => x < *min || x > *max,
                Test::Missing { sentinel } => x.is_nan() || *sentinel == Some(x),
                Test::NoneOf { numbers } => x.fract() != 0.0 || !numbers.contains(&(x as i64)),
                Test::NoneOfTexts { .. } => false,
            };
            if breaks {
                self.broken |= 1 << number;
                if matches!(rule.test, Test::Missing { .. }) {
                    value = f64::NAN;
                }
            }
        }
        value
    }

    fn count(self, faults: &mut [u64]) {
        if self.broken == 0 {
            return;
        }
        // A missing value that the pipeline replaces is told once, as that.
        let imputed = self.of.rules.iter().any(|rule| matches!(rule.test, Test::Missing { .. }));
        let rules = self.of.rules.iter().enumerate().filter(|(number, _)| self.broken >> number & 1 == 1);
        let not_finite = self.of.not_finite.filter(|_| self.broken >> 63 == 1 && !imputed);
        for fault in rules.map(|(_, rule)| rule.fault).chain(not_finite) {
            if let Some(count) = faults.get_mut(fault) {
                *count += 1;
            }
        }
    }
}

/// The smallest distance at which at most `most` of `count` numbers are met, and no pattern of rows or columns again
/// and again: it shares no divisor with their number.
fn stride_of(count: usize, most: usize) -> usize {
    fn gcd(a: usize, b: usize) -> usize {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let least = count.div_ceil(most.max(1)).max(1);
    (least..).find(|stride| *stride == 1 || gcd(*stride, count) == 1).unwrap_or(least)
}

/// [`SUMMARY`] of the finite numbers, the spread that of all of them (divides by n).
fn summary(numbers: impl Iterator<Item = f64>) -> [f64; SUMMARY.len()] {
    let (mut n, mut mean, mut m2, mut zeros) = (0.0, 0.0, 0.0, 0.0);
    let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
    for x in numbers.filter(|x| x.is_finite()) {
        n += 1.0;
        let before = x - mean;
        mean += before / n;
        m2 += before * (x - mean);
        min = min.min(x);
        max = max.max(x);
        zeros += if x == 0.0 { 1.0 } else { 0.0 };
    }
    if n == 0.0 { [f64::NAN; SUMMARY.len()] } else { [mean, (m2 / n).sqrt(), min, max, zeros / n] }
}

fn picture(tensor: &Tensor, batched: bool, start: usize, layout: Layout) -> Option<appearance::Appearance> {
    // Most pictures are of these; to look the type up for each of thousands of pixels costs more than the pixels.
    let raw = tensor.data();
    match tensor.datatype() {
        Datatype::Fp32 => {
            let floats = raw.as_chunks::<4>().0;
            let at = |index: usize| floats.get(index).map_or(f64::NAN, |b| f64::from(f32::from_le_bytes(*b)));
            pixels(tensor, batched, start, layout, at)
        }
        Datatype::Uint8 => {
            let at = |index: usize| raw.get(index).map_or(f64::NAN, |b| f64::from(*b));
            pixels(tensor, batched, start, layout, at)
        }
        _ => pixels(tensor, batched, start, layout, |index| number(tensor, index)),
    }
}

fn pixels(
    tensor: &Tensor,
    batched: bool,
    start: usize,
    layout: Layout,
    pixel: impl Fn(usize) -> f64,
) -> Option<appearance::Appearance> {
    let row = tensor.shape().get(usize::from(batched)..)?;
    // Channels, height, width, and how far apart they lie.
    let (channels, size, [c, y, x]) = match (layout, row) {
        (Layout::Planes, [channels, h, w]) => (*channels, [*h, *w], [h * w, *w, 1]),
        (Layout::Pixels, [h, w, channels]) => (*channels, [*h, *w], [1, w * channels, *channels]),
        (Layout::Grey, [h, w]) => (1, [*h, *w], [0, *w, 1]),
        (Layout::Square, [n]) => {
            let side = n.isqrt();
            (1, [side, side], [0, side, 1])
        }
        _ => return None,
    };
    let at = |row: usize, column: usize, channel: usize| pixel(start + row * y + column * x + channel * c);
    Some(match channels {
        0 => return None,
        1 | 2 => appearance(size, 1, at),
        _ => appearance(size, 3, at),
    })
}

/// Walks along the texts of a tensor and tells the number of each category.
fn texts(
    of: &TensorPlan,
    tensor: &Tensor,
    columns: usize,
    stride: usize,
    known: &[Categories],
    faults: &mut [u64],
    mut put: impl FnMut(usize, usize, f64),
) {
    if tensor.datatype() != Datatype::Bytes || tensor.len() != rows_of(of, tensor).saturating_mul(columns) {
        return;
    }
    let mut rest = &tensor.data()[..];
    let mut index = 0;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let Some((text, tail)) = tail.split_at_checked(u32::from_le_bytes(*length) as usize) else { return };
        rest = tail;
        let (row, column) = (index / columns, index % columns);
        index += 1;
        if !row.is_multiple_of(stride) {
            continue;
        }
        put(row / stride, column, known.get(column).map_or(f64::NAN, |known| known.number(text)));
        for rule in &of.rules {
            let unknown = matches!(&rule.test, Test::NoneOfTexts { texts } if !texts.contains(text));
            if let Some(count) = faults.get_mut(rule.fault).filter(|_| unknown) {
                *count += 1;
            }
        }
    }
}
