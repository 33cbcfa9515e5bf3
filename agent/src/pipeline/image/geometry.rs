//! Cutting, resizing, letterboxes. Each keeps the placement.

use super::{Image, check_sides, cv, pil};
use crate::pipeline::error::Fault;
use edgefleet_shared::bundle::pipeline::{Anchor, Filter};

/// Left, top, right, bottom.
pub(super) fn crop(image: &Image, [left, top, right, bottom]: [usize; 4]) -> Result<Image, Fault> {
    if right > image.width || bottom > image.height || left >= right || top >= bottom {
        return Err(Fault::shape(format!(
            "is {} x {} pixels: the box [{left}, {top}, {right}, {bottom}] is not inside",
            image.height, image.width
        )));
    }
    let (height, width) = (bottom - top, right - left);
    let mut pixels = Vec::with_capacity(height * width * image.channels);
    for y in top..bottom {
        let at = (y * image.width + left) * image.channels;
        pixels.extend_from_slice(&image.pixels[at..at + width * image.channels]);
    }
    let placement = image.placement.then([1.0; 2], [-(left as f64), -(top as f64)]);
    Ok(Image { height, width, channels: image.channels, pixels, placement })
}

/// Height and width around the centre; half pixels are rounded to even, as torchvision does.
pub(super) fn crop_center(image: &Image, [height, width]: [usize; 2]) -> Result<Image, Fault> {
    if image.height < height || image.width < width {
        return Err(Fault::shape(format!(
            "is {} x {} pixels: {height} x {width} cannot be cut out",
            image.height, image.width
        )));
    }
    let half = |spare: usize| (spare as f64 / 2.0).round_ties_even() as usize;
    let (top, left) = (half(image.height - height), half(image.width - width));
    crop(image, [left, top, left + width, top + height])
}

/// Height and width with the shorter side `shortest`; the other is rounded down, as torchvision does.
pub(super) fn fit_shortest([height, width]: [usize; 2], shortest: usize) -> [usize; 2] {
    let longer = |long: usize, short: usize| (shortest * long / short.max(1)).max(1);
    if width <= height { [longer(height, width), shortest] } else { [shortest, longer(width, height)] }
}

/// To exactly this height and width.
pub(super) fn resize(image: Image, [height, width]: [usize; 2], filter: Filter) -> Result<Image, Fault> {
    check_sides(height, width)?;
    if [image.height, image.width] == [height, width] {
        return Ok(image);
    }
    let scale = [width as f64 / image.width as f64, height as f64 / image.height as f64];
    let placement = image.placement.then(scale, [0.0; 2]);
    let mut done = match filter {
        Filter::PilNearest => pil::nearest(&image, height, width),
        Filter::PilBox => pil::resample(&image, height, width, pil::BOX),
        Filter::PilBilinear => pil::resample(&image, height, width, pil::BILINEAR),
        Filter::PilHamming => pil::resample(&image, height, width, pil::HAMMING),
        Filter::PilBicubic => pil::resample(&image, height, width, pil::BICUBIC),
        Filter::PilLanczos => pil::resample(&image, height, width, pil::LANCZOS),
        Filter::CvNearest => cv::nearest(&image, height, width),
        Filter::CvLinear => cv::linear(&image, height, width),
        Filter::CvArea => cv::area(&image, height, width),
    }?;
    done.placement = placement;
    Ok(done)
}

/// Fits an image into a frame without changing its aspect ratio.
pub(super) struct Letterbox {
    pub size: [usize; 2],
    pub filter: Filter,
    pub fill: u8,
    pub enlarge: bool,
    pub anchor: Anchor,
}

impl Letterbox {
    /// Rounded as Ultralytics does: sides half to even, an odd border one pixel more at right and bottom.
    pub(super) fn apply(&self, image: Image) -> Result<Image, Fault> {
        let [height, width] = self.size;
        let fit = (height as f64 / image.height as f64).min(width as f64 / image.width as f64);
        let fit = if self.enlarge { fit } else { fit.min(1.0) };
        let side = |own: usize, most: usize| ((own as f64 * fit).round_ties_even() as usize).clamp(1, most);
        let inner = [side(image.height, height), side(image.width, width)];
        let image = resize(image, inner, self.filter)?;
        let (top, left) = match self.anchor {
            Anchor::TopLeft => (0, 0),
            Anchor::Center => ((height - inner[0]) / 2, (width - inner[1]) / 2),
        };
        let mut frame = Image::blank(height, width, image.channels, self.fill)?;
        let bytes = image.width * image.channels;
        for (y, row) in image.pixels.chunks_exact(bytes).enumerate() {
            let at = ((top + y) * width + left) * image.channels;
            frame.pixels[at..at + bytes].copy_from_slice(row);
        }
        frame.placement = image.placement.then([1.0; 2], [left as f64, top as f64]);
        Ok(frame)
    }
}
