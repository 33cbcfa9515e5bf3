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

pub(super) fn decode(file: &[u8], bounds: Bounds) -> Result<Decoded, Fault> {
    let broken = |e: zune_jpeg::errors::DecodeErrors| Fault::value(format!("JPEG: {e:?}"));
    // In coded data 0xff is followed by 0 or a restart marker: what is left are scans, and a few in thumbnails.
    let scans = file.windows(2).filter(|pair| *pair == [0xff, 0xda]).count();
    if scans > MAX_SCANS {
        return Err(Fault::TooLarge { what: "JPEG scans", found: scans as u64, limit: MAX_SCANS as u64 });
    }
    // The decoder fills up what is missing of the last rows; a picture that ends early is refused instead.
    let marker = |code: u8| file.windows(2).rposition(|pair| pair == [0xff, code]);
    if marker(0xd9) <= marker(0xda) {
        return Err(Fault::value("JPEG: is cut off: its end marker is missing"));
    }
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
