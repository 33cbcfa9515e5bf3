//! PNG by `png`. Palettes and bits are expanded, 16 bits keep their upper 8, transparency is dropped (as
//! PIL's `convert("RGB")` and OpenCV's `imread` do).

use super::decode::{Bounds, Decoded};
use crate::pipeline::error::Fault;
use ::png::{ColorType, Decoder, Limits, Transformations};
use edgefleet_shared::bundle::pipeline::Color;

pub(super) fn decode(file: &[u8], bounds: Bounds) -> Result<Decoded, Fault> {
    let broken = |e: ::png::DecodingError| Fault::value(format!("PNG: {e}"));
    // Of its own allocations: rows and chunks. The picture itself is ours.
    let mut decoder = Decoder::new_with_limits(std::io::Cursor::new(file), Limits { bytes: 8 << 20 });
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(broken)?;
    let (width, height) = (header.width as usize, header.height as usize);
    bounds.admit(width, height)?;
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader.output_buffer_size().ok_or_else(|| Fault::value("PNG: is too large"))?;
    let mut raw = vec![0; size]; // at most four bytes for each admitted pixel
    let frame = reader.next_frame(&mut raw).map_err(broken)?;
    if (frame.width as usize, frame.height as usize) != (width, height) {
        return Err(Fault::value("PNG: its first frame is smaller than the picture"));
    }
    raw.truncate(frame.buffer_size());
    let (color, pixels) = match frame.color_type {
        ColorType::Grayscale => (Color::Gray, raw),
        ColorType::Rgb => (Color::Rgb, raw),
        ColorType::GrayscaleAlpha => (Color::Gray, raw.as_chunks::<2>().0.iter().map(|[v, _]| *v).collect()),
        ColorType::Rgba => {
            let pixels = raw.as_chunks::<4>().0.iter();
            (Color::Rgb, pixels.flat_map(|[r, g, b, _]| [*r, *g, *b]).collect())
        }
        ColorType::Indexed => return Err(Fault::value("PNG: its palette is missing")),
    };
    // The chunk may also come after the pixels.
    let exif = reader.info().exif_metadata.as_ref().map(|exif| exif.to_vec());
    Ok(Decoded { width, height, color, pixels, exif })
}
