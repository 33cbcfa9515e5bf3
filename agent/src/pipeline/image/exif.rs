//! The one EXIF tag that changes what is seen: orientation.

use super::{Image, Placement};

const ORIENTATION: u16 = 0x0112;
const SHORT: u16 = 3;
/// Tags of a directory that are looked at.
const MAX_TAGS: usize = 512;

/// The orientation, 1 to 8, in the first directory of a TIFF structure.
pub(super) fn orientation(tiff: &[u8]) -> Option<u8> {
    let tiff = tiff.strip_prefix(b"Exif\0\0").unwrap_or(tiff);
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let raw: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(raw) } else { u16::from_be_bytes(raw) })
    };
    let raw: [u8; 4] = tiff.get(4..8)?.try_into().ok()?;
    let directory = if little { u32::from_le_bytes(raw) } else { u32::from_be_bytes(raw) } as usize;
    let count = usize::from(short(directory)?).min(MAX_TAGS);
    for index in 0..count {
        let entry = directory.checked_add(2 + 12 * index)?;
        if short(entry)? == ORIENTATION && short(entry + 2)? == SHORT {
            let value = short(entry + 8)?;
            return u8::try_from(value).ok().filter(|value| (1..=8).contains(value));
        }
    }
    None
}

/// Turns and mirrors so that the first row is at the top, as PIL's `exif_transpose`.
pub(super) fn turn(image: Image, orientation: u8) -> Image {
    let Image { height, width, channels, .. } = image;
    if orientation <= 1 || orientation > 8 {
        return image;
    }
    let (out_height, out_width) = if orientation >= 5 { (width, height) } else { (height, width) };
    let mut pixels = Vec::with_capacity(image.pixels.len());
    for y in 0..out_height {
        for x in 0..out_width {
            let (from_y, from_x) = match orientation {
                2 => (y, width - 1 - x),
                3 => (height - 1 - y, width - 1 - x),
                4 => (height - 1 - y, x),
                5 => (x, y),
                6 => (height - 1 - x, y),
                7 => (height - 1 - x, width - 1 - y),
                _ => (x, width - 1 - y),
            };
            let at = (from_y * width + from_x) * channels;
            pixels.extend_from_slice(&image.pixels[at..at + channels]);
        }
    }
    let placement = Placement::whole(out_width, out_height);
    Image { height: out_height, width: out_width, channels, pixels, placement }
}
