//! Recognises inputs that were captured lately: the same bytes, or nearly the same picture.

use edgefleet_shared::{
    digest::BlobDigest,
    tensor::{Datatype, Tensor},
};
use std::collections::VecDeque;

/// How long a capture counts as recent.
const RECENT_MS: u64 = 3_600_000;
/// Captures compared with, at most.
const MAX_RECENT: usize = 2_048;
/// Pictures smaller than this have too little in them for a perceptual hash.
const MIN_SIDE: usize = 32;
/// Bits of 64 that may differ. dHash of re-encoded and slightly moved photos differs in up to 3; unrelated ones
/// in about 32 (checked in the tests with shifted and unrelated pictures).
const NEAR_BITS: u32 = 3;
const GRID: usize = 8;

/// A picture as brightness, row by row.
pub struct Luma {
    pub width: usize,
    pub height: usize,
    pub values: Vec<f32>,
}

/// Brightness of a rank-4 tensor with one image of 1 or 3 channels, in either order; `None` for anything else.
pub fn luma(tensor: &Tensor) -> Option<Luma> {
    let [1, a, b, c] = *tensor.shape() else { return None };
    let (channels, height, width, planar) = match (a, c) {
        (1 | 3, _) => (a, b, c, true),
        (_, 1 | 3) => (c, a, b, false),
        _ => return None,
    };
    let read: fn(&[u8], usize) -> Option<f32> = match tensor.datatype() {
        Datatype::Uint8 => |raw, at| raw.get(at).map(|value| f32::from(*value)),
        Datatype::Fp32 => |raw, at| raw.get(at * 4..)?.first_chunk().map(|b| f32::from_le_bytes(*b)),
        _ => return None,
    };
    let raw = tensor.data();
    let pixel = |at: usize| {
        let each = (0..channels).map(|channel| {
            let at = if planar { channel * width * height + at } else { at * channels + channel };
            read(raw, at)
        });
        each.sum::<Option<f32>>()
    };
    let values = (0..width * height).map(pixel).collect::<Option<Vec<_>>>()?;
    Some(Luma { width, height, values })
}

/// Difference hash: the picture shrunk to 9 by 8 means, one bit for each pair of neighbours that grows darker to
/// the right. Source: N. Krawetz, "Kind of Like That", 2013.
pub fn dhash(picture: &Luma) -> Option<u64> {
    let Luma { width, height, values } = picture;
    if *width < MIN_SIDE || *height < MIN_SIDE || values.len() != width * height {
        return None;
    }
    let mean = |column: usize, row: usize| {
        let (left, right) = (column * width / (GRID + 1), (column + 1) * width / (GRID + 1));
        let (top, bottom) = (row * height / GRID, (row + 1) * height / GRID);
        let lines = (top..bottom).map(|y| values[y * width + left..y * width + right].iter().sum::<f32>());
        lines.sum::<f32>() / ((right - left) * (bottom - top)) as f32
    };
    let mut hash = 0u64;
    for row in 0..GRID {
        let means: [f32; GRID + 1] = std::array::from_fn(|column| mean(column, row));
        for pair in means.windows(2) {
            hash = hash << 1 | u64::from(pair[0] > pair[1]);
        }
    }
    Some(hash)
}

/// What makes two inputs the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Likeness {
    pub content: BlobDigest,
    pub picture: Option<u64>,
}

/// The captures of the last hour.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<(u64, Likeness)>);

impl Recent {
    /// Whether something alike was captured; remembers it if not.
    pub fn has_seen(&mut self, likeness: Likeness, mono_ms: u64) -> bool {
        while self.0.front().is_some_and(|(at, _)| mono_ms.saturating_sub(*at) > RECENT_MS)
            || self.0.len() >= MAX_RECENT
        {
            self.0.pop_front();
        }
        let alike = |other: &Likeness| {
            let near = |(a, b): (u64, u64)| (a ^ b).count_ones() <= NEAR_BITS;
            other.content == likeness.content || other.picture.zip(likeness.picture).is_some_and(near)
        };
        let seen = self.0.iter().any(|(_, other)| alike(other));
        if !seen {
            self.0.push_back((mono_ms, likeness));
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn picture(seed: u64, shift: usize, noise: u64) -> Luma {
        let (width, height) = (64, 48);
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        // Blobs of light in fixed places, so that a small shift moves edges a little.
        let blobs: Vec<[f32; 3]> = (0..12).map(|_| [next() * 64.0, next() * 48.0, next() * 200.0]).collect();
        let mut grain = noise;
        let at = |x: usize, y: usize| {
            let light = |[bx, by, power]: &[f32; 3]| {
                let (dx, dy) = (x as f32 + shift as f32 - bx, y as f32 - by);
                power * (-(dx * dx + dy * dy) / 90.0).exp()
            };
            blobs.iter().map(light).sum::<f32>()
        };
        let values = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| {
            grain = grain.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            at(x, y) + (grain >> 60) as f32 * 0.1
        });
        Luma { width, height, values: values.collect() }
    }

    #[test]
    fn a_moved_picture_is_near_and_another_one_is_not() {
        let hash = |seed, shift, noise| dhash(&picture(seed, shift, noise)).unwrap();
        for seed in 1..40 {
            let same = (hash(seed, 0, 1) ^ hash(seed, 0, 77)).count_ones();
            assert!(same <= NEAR_BITS, "grain: {same}");
            let other = (hash(seed, 0, 1) ^ hash(seed + 1_000, 0, 1)).count_ones();
            assert!(other > 3 * NEAR_BITS, "another picture: {other}");
        }
        assert!(dhash(&Luma { width: 8, height: 8, values: vec![0.0; 64] }).is_none());
    }

    #[test]
    fn both_orders_of_channels_have_the_same_brightness() {
        let planar: Vec<u8> = (0..3).flat_map(|c| (0..12u8).map(move |p| p * 5 + c)).collect();
        let mixed: Vec<u8> = (0..12u8).flat_map(|p| (0..3).map(move |c| p * 5 + c)).collect();
        let tensor = |shape: &[usize], raw: Vec<u8>| {
            Tensor::new("x", Datatype::Uint8, shape.to_vec(), Bytes::from(raw)).unwrap()
        };
        let planar = luma(&tensor(&[1, 3, 4, 3], planar));
        assert!(planar.is_some_and(|p| (p.width, p.height) == (3, 4)), "ambiguous shapes are planar");
        let mixed = luma(&tensor(&[1, 4, 3, 3], mixed)).unwrap();
        assert_eq!((mixed.width, mixed.height, mixed.values[1]), (3, 4, 18.0));
        assert!(luma(&tensor(&[1, 64], vec![0; 64])).is_none());
    }

    #[test]
    fn what_was_seen_is_forgotten_after_an_hour() {
        let mut recent = Recent::default();
        let of = |n: u8, picture| Likeness { content: BlobDigest::of(&[n]), picture };
        assert!(!recent.has_seen(of(1, None), 0));
        assert!(recent.has_seen(of(1, None), 10));
        assert!(!recent.has_seen(of(2, Some(0b1111)), 20));
        assert!(recent.has_seen(of(3, Some(0b1000)), 30));
        assert!(!recent.has_seen(of(4, Some(u64::MAX)), 40));
        assert!(!recent.has_seen(of(1, None), RECENT_MS + 1));
        for n in 0..5_000u64 {
            recent.has_seen(Likeness { content: BlobDigest::of(&n.to_le_bytes()), picture: None }, RECENT_MS);
        }
        assert!(recent.0.len() <= MAX_RECENT);
    }
}
