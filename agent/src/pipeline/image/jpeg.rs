//! JPEG by `zune-jpeg`. Its pixels differ from libjpeg's by small rounding (see docs/pipelines.md).

use super::decode::{Bounds, Decoded};
use crate::pipeline::error::Fault;
use edgefleet_shared::bundle::pipeline::Color;
use zune_jpeg::{
    JpegDecoder,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

/// Most scans of a progressive file; encoders write about ten. Each costs a pass over all coefficients.
const MAX_SCANS: usize = 64;

/// The file up to its end marker: phones put films behind it, cameras a second picture, and some writers anything.
/// The decoder would fill up what is missing of the last rows; a picture that ends early is refused instead.
fn picture(file: &[u8]) -> Result<&[u8], Fault> {
    let mut at = 2; // behind the start marker
    let mut scans = 0;
    loop {
        // In coded data 0xff is followed by 0 or a restart marker; before a marker it may stand several times.
        let rest = file.get(at..).unwrap_or_default();
        let found =
            rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff));
        let Some(marker) = found.map(|found| at + found) else {
            return Err(Fault::value("JPEG: is cut off: its end marker is missing"));
        };
        match file[marker + 1] {
            0xd9 => return Ok(&file[..marker + 2]),
            0xda if scans == MAX_SCANS => {
                let found = scans as u64 + 1;
                return Err(Fault::TooLarge { what: "JPEG scans", found, limit: MAX_SCANS as u64 });
            }
            0xda => scans += 1,
            _ => {}
        }
        at = match (file[marker + 1], file.get(marker + 2..marker + 4)) {
            (0x01 | 0xd8, _) => marker + 2, // without a length
            (_, Some(length)) => marker + 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
            (_, None) => file.len(),
        };
    }
}

pub(super) fn decode(file: &[u8], bounds: Bounds) -> Result<Decoded, Fault> {
    let broken = |e: zune_jpeg::errors::DecodeErrors| Fault::value(format!("JPEG: {e:?}"));
    let file = picture(file)?;
    let options = DecoderOptions::new_safe()
        .set_max_width(super::MAX_SIDE)
        .set_max_height(super::MAX_SIDE)
        .set_strict_mode(true)
        .jpeg_set_max_scans(MAX_SCANS);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(broken)?;
    let info = decoder.info().ok_or_else(|| Fault::value("JPEG: has no header"))?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    bounds.admit(width, height)?;
    let (color, wanted) = match info.components {
        1 => (Color::Gray, ColorSpace::Luma),
        3 => (Color::Rgb, ColorSpace::RGB),
        other => {
            return Err(Fault::value(format!(
                "JPEG: has {other} components; gray and colour are understood"
            )));
        }
    };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted));
    let pixels = decoder.decode().map_err(broken)?;
    let channels = crate::pipeline::kind::channels(color);
    if pixels.len() != width * height * channels {
        let reason = format!("JPEG: gave {} bytes for {width} x {height} x {channels}", pixels.len());
        return Err(Fault::value(reason));
    }
    Ok(Decoded { width, height, color, pixels, exif: decoder.exif().cloned() })
}
