//! OpenCV's `resize` of 8-bit images: INTER_NEAREST, INTER_LINEAR (11-bit weights) and INTER_AREA.

use super::{Image, pil};
use crate::pipeline::error::Fault;

/// One in the weights of the linear filter.
const ONE: f32 = 2048.0;

/// Rounds half to even and keeps to a byte, as `saturate_cast<uchar>`.
fn byte(value: f32) -> u8 {
    value.round_ties_even().clamp(0.0, 255.0) as u8
}

pub(super) fn nearest(image: &Image, height: usize, width: usize) -> Result<Image, Fault> {
    let positions = |from: usize, to: usize| -> Vec<usize> {
        let step = 1.0 / (to as f64 / from as f64);
        (0..to).map(|at| ((at as f64 * step).floor() as usize).min(from - 1)).collect()
    };
    pil::pick(image, &positions(image.height, height), &positions(image.width, width))
}

/// The input positions around each output position, and their weights.
struct Pair {
    first: usize,
    second: usize,
    weights: [i32; 2],
}

/// `clamp`: at the edges the whole weight goes to one position. OpenCV does so with columns; of rows it takes
/// the same one twice, which rounds otherwise.
fn pairs(from: usize, to: usize, area: bool, clamp: bool) -> Vec<Pair> {
    let inverse = to as f64 / from as f64;
    let step = 1.0 / inverse;
    let pair = |at: usize| {
        let (first, part) = if area {
            let first = (at as f64 * step).floor() as i64;
            let part = ((at + 1) as f64 - (first + 1) as f64 * inverse) as f32;
            (first, if part <= 0.0 { 0.0 } else { part - part.floor() })
        } else {
            let exact = ((at as f64 + 0.5) * step - 0.5) as f32;
            let first = exact.floor();
            (first as i64, exact - first)
        };
        let end = from as i64 - 1;
        let part = if clamp && !(0..end).contains(&first) { 0.0 } else { part };
        let fixed = |weight: f32| (weight * ONE).round_ties_even() as i32;
        let inside = |position: i64| position.clamp(0, end) as usize;
        let second = if part == 0.0 { first } else { first + 1 };
        Pair { first: inside(first), second: inside(second), weights: [fixed(1.0 - part), fixed(part)] }
    };
    (0..to).map(pair).collect()
}

pub(super) fn linear(image: &Image, height: usize, width: usize) -> Result<Image, Fault> {
    if image.height == 2 * height && image.width == 2 * width {
        return area(image, height, width); // so does OpenCV
    }
    between(image, height, width, false)
}

fn between(image: &Image, height: usize, width: usize, area: bool) -> Result<Image, Fault> {
    let channels = image.channels;
    let (rows, columns) = (pairs(image.height, height, area, false), pairs(image.width, width, area, true));
    let mut done = Image::blank(height, width, channels, 0)?;
    let bytes = image.width * channels;
    // Two squeezed rows are kept: going down, most are used again.
    let mut kept: [(usize, Vec<i32>); 2] = std::array::from_fn(|_| (usize::MAX, vec![0; width * channels]));
    let squeeze = |y: usize, out: &mut [i32]| {
        let row = &image.pixels[y * bytes..(y + 1) * bytes];
        for (pair, out) in columns.iter().zip(out.chunks_exact_mut(channels)) {
            let (left, right) = (&row[pair.first * channels..], &row[pair.second * channels..]);
            for ((out, left), right) in out.iter_mut().zip(left).zip(right) {
                *out = i32::from(*left) * pair.weights[0] + i32::from(*right) * pair.weights[1];
            }
        }
    };
    for (pair, out) in rows.iter().zip(done.pixels.chunks_exact_mut(width * channels)) {
        if kept[1].0 == pair.first {
            kept.swap(0, 1);
        }
        for (slot, y) in kept.iter_mut().zip([pair.first, pair.second]) {
            if slot.0 != y {
                squeeze(y, &mut slot.1);
                slot.0 = y;
            }
        }
        let [top, bottom] = pair.weights;
        for ((out, above), below) in out.iter_mut().zip(&kept[0].1).zip(&kept[1].1) {
            let sum = ((top * (above >> 4)) >> 16) + ((bottom * (below >> 4)) >> 16) + 2;
            *out = (sum >> 2).clamp(0, 255) as u8;
        }
    }
    Ok(done)
}

pub(super) fn area(image: &Image, height: usize, width: usize) -> Result<Image, Fault> {
    if height > image.height || width > image.width {
        return between(image, height, width, true);
    }
    if image.height.is_multiple_of(height) && image.width.is_multiple_of(width) {
        return blocks(image, height, width);
    }
    shares(image, height, width)
}

/// Whole blocks of pixels: their mean.
fn blocks(image: &Image, height: usize, width: usize) -> Result<Image, Fault> {
    let channels = image.channels;
    let (tall, wide) = (image.height / height, image.width / width);
    let share = 1.0 / (tall * wide) as f32;
    let mut done = Image::blank(height, width, channels, 0)?;
    let mut sums = vec![0u64; width * channels];
    let bytes = image.width * channels;
    let bands = image.pixels.chunks_exact(bytes * tall);
    for (band, out) in bands.zip(done.pixels.chunks_exact_mut(width * channels)) {
        sums.fill(0);
        for row in band.chunks_exact(bytes) {
            for (block, sums) in row.chunks_exact(wide * channels).zip(sums.chunks_exact_mut(channels)) {
                for pixel in block.chunks_exact(channels) {
                    sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u64::from(*value));
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = if (tall, wide) == (2, 2) { ((sum + 2) >> 2) as u8 } else { byte(*sum as f32 * share) };
        }
    }
    Ok(done)
}

/// One input position's share in one output position.
struct Share {
    to: usize,
    from: usize,
    weight: f32,
}

/// As `computeResizeAreaTab`: cells that are cut count by the part inside.
fn table(from: usize, to: usize) -> Vec<Share> {
    let scale = from as f64 / to as f64;
    let mut table = Vec::new();
    for out in 0..to {
        let (start, end) = (out as f64 * scale, out as f64 * scale + scale);
        let cell = scale.min(from as f64 - start);
        let last = (end.floor() as i64).min(from as i64 - 1);
        let first = (start.ceil() as i64).min(last);
        let mut add = |from: i64, weight: f64| {
            table.push(Share { to: out, from: from as usize, weight: weight as f32 });
        };
        if first as f64 - start > 1e-3 {
            add(first - 1, (first as f64 - start) / cell);
        }
        for whole in first..last {
            add(whole, 1.0 / cell);
        }
        if end - last as f64 > 1e-3 {
            add(last, (end - last as f64).min(1.0).min(cell) / cell);
        }
    }
    table
}

fn shares(image: &Image, height: usize, width: usize) -> Result<Image, Fault> {
    let channels = image.channels;
    let (rows, columns) = (table(image.height, height), table(image.width, width));
    let mut done = Image::blank(height, width, channels, 0)?;
    let bytes = image.width * channels;
    let (mut squeezed, mut sums) = (vec![0f32; width * channels], vec![0f32; width * channels]);
    let mut squeezed_row = usize::MAX;
    let mut shares = rows.iter().peekable();
    while let Some(share) = shares.next() {
        if squeezed_row != share.from {
            squeezed.fill(0.0);
            squeezed_row = share.from;
            let row = &image.pixels[share.from * bytes..(share.from + 1) * bytes];
            for column in &columns {
                let out = &mut squeezed[column.to * channels..(column.to + 1) * channels];
                let pixel = &row[column.from * channels..];
                out.iter_mut().zip(pixel).for_each(|(out, v)| *out += f32::from(*v) * column.weight);
            }
        }
        sums.iter_mut().zip(&squeezed).for_each(|(sum, value)| *sum += value * share.weight);
        if shares.peek().is_none_or(|next| next.to != share.to) {
            let out = &mut done.pixels[share.to * width * channels..(share.to + 1) * width * channels];
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = byte(*sum));
            sums.fill(0.0);
        }
    }
    Ok(done)
}
