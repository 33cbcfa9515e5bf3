//! Operations on images: 8-bit, interleaved, each with the placement that maps boxes back to the picture a
//! client sent.

mod cv;
mod decode;
mod exif;
mod geometry;
mod jpeg;
mod pil;
mod png;

pub(crate) use decode::gray;

use super::{
    error::Fault,
    kind::{Kind, channels},
    step::{Around, Built, Compiled, Run},
    value::{Array, Data, MAX_VALUE_BYTES, Value, room},
};
use edgefleet_shared::{
    bundle::pipeline::{Color, Layout, Op},
    tensor::Datatype,
};
use std::sync::Arc;

/// Longest side of an image in pixels.
pub(super) const MAX_SIDE: usize = 16_384;

/// Rows of `width * channels` bytes from the top.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub pixels: Vec<u8>,
    pub placement: Placement,
}

/// Where an image lies in the picture it came from: `here = scale * there + offset`, pixel edges, x and y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Placement {
    pub scale: [f64; 2],
    pub offset: [f64; 2],
    /// Width and height of the picture, as a viewer sees it (turned by EXIF).
    pub picture: [usize; 2],
}

impl Placement {
    pub(super) fn whole(width: usize, height: usize) -> Self {
        Self { scale: [1.0; 2], offset: [0.0; 2], picture: [width, height] }
    }
    /// After everything is stretched by `scale` and then moved by `offset`.
    pub(super) fn then(self, scale: [f64; 2], offset: [f64; 2]) -> Self {
        let axis = |i: usize| (self.scale[i] * scale[i], self.offset[i] * scale[i] + offset[i]);
        let ((sx, ox), (sy, oy)) = (axis(0), axis(1));
        Self { scale: [sx, sy], offset: [ox, oy], ..self }
    }
    /// A point of this image in the picture.
    pub(super) fn back(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [(x - self.offset[0]) / self.scale[0], (y - self.offset[1]) / self.scale[1]]
    }
}

impl Image {
    /// # Errors
    /// A side is 0 or beyond [`MAX_SIDE`].
    pub(super) fn blank(height: usize, width: usize, channels: usize, fill: u8) -> Result<Self, Fault> {
        check_sides(height, width)?;
        let pixels = vec![fill; room(&[height, width, channels], 1)?];
        Ok(Self { height, width, channels, pixels, placement: Placement::whole(width, height) })
    }
}

fn check_sides(height: usize, width: usize) -> Result<(), Fault> {
    let longest = height.max(width);
    if height == 0 || width == 0 {
        return Err(Fault::shape(format!("an image of {height} x {width} pixels is empty")));
    }
    if longest > MAX_SIDE {
        return Err(Fault::TooLarge {
            what: "pixels of a side",
            found: longest as u64,
            limit: MAX_SIDE as u64,
        });
    }
    Ok(())
}

/// Applies a function to each image, with its number in errors, while all of them stay within bounds.
struct EachImage<F>(F);
impl<F: Fn(Image) -> Result<Image, Fault> + Send + Sync> Run for EachImage<F> {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let mut bytes = 0usize;
        let mut done = Vec::new();
        for (number, image) in images(inputs)?.into_iter().enumerate() {
            let image = self.0(image).map_err(|fault| match fault {
                Fault::Shape(reason) | Fault::Value(reason) => Fault::Image { image: number, reason },
                other => other,
            })?;
            bytes += image.pixels.len();
            within(bytes)?;
            done.push(image);
        }
        Ok(vec![Value::Images(done)])
    }
}

/// Bytes of all images of a request together.
fn within(bytes: usize) -> Result<(), Fault> {
    if bytes > MAX_VALUE_BYTES {
        let limit = MAX_VALUE_BYTES as u64;
        return Err(Fault::TooLarge { what: "bytes of all images", found: bytes as u64, limit });
    }
    Ok(())
}

/// The one input as images; a UINT8 tensor `[batch, height, width, channels]` is cut into its rows.
fn images(inputs: Vec<Value>) -> Result<Vec<Image>, Fault> {
    let wrong = || Fault::shape("works on images or UINT8 [batch, height, width, 1 or 3]");
    match inputs.into_iter().next() {
        Some(Value::Images(images)) => Ok(images),
        Some(Value::Array(Array { data: Data::U8(data), shape, .. })) => {
            let [batch, height, width, channels @ (1 | 3)] = shape[..] else { return Err(wrong()) };
            if batch == 0 {
                return Ok(vec![]);
            }
            check_sides(height, width)?;
            let placement = Placement::whole(width, height);
            let rows = data.chunks_exact(height * width * channels);
            Ok(rows.map(|p| Image { height, width, channels, pixels: p.to_vec(), placement }).collect())
        }
        _ => Err(wrong()),
    }
}

/// Compiles the operations of this folder.
pub(super) fn compile(op: &Op, input: &Kind) -> Built {
    if let Op::DecodeImage { color, orient, max_pixels } = op {
        return decode::compile(*color, *orient, *max_pixels, input);
    }
    let (batch, color, size) = input.as_images()?;
    let kind = |size| Kind::Images { batch, color, size };
    match op {
        Op::Crop { center: Some(center), .. } => {
            let wanted = center.map(|n| n as usize);
            if size.is_some_and(|have| have[0] < wanted[0] || have[1] < wanted[1]) {
                return Err(format!("cannot cut {wanted:?} out of {input}"));
            }
            let run = EachImage(move |image| geometry::crop_center(&image, wanted));
            Compiled::one(kind(Some(wanted)), run)
        }
        Op::Crop { area, .. } => {
            let area = area.ok_or("needs `center` or `box`")?.map(|n| n as usize);
            let [left, top, right, bottom] = area;
            let run = EachImage(move |image| geometry::crop(&image, area));
            Compiled::one(kind(Some([bottom.saturating_sub(top), right.saturating_sub(left)])), run)
        }
        Op::Resize { size: Some(size), filter, .. } => {
            let (size, filter) = (size.map(|n| n as usize), *filter);
            let run = EachImage(move |image| geometry::resize(image, size, filter));
            Compiled::one(kind(Some(size)), run)
        }
        Op::Resize { shortest, filter, .. } => {
            let (shortest, filter) = (shortest.ok_or("needs `size` or `shortest`")? as usize, *filter);
            let fitted = size.map(|size| geometry::fit_shortest(size, shortest));
            let run = EachImage(move |image: Image| {
                let size = geometry::fit_shortest([image.height, image.width], shortest);
                geometry::resize(image, size, filter)
            });
            Compiled::one(kind(fitted), run)
        }
        Op::Letterbox { size, filter, fill, enlarge, anchor } => {
            let frame = geometry::Letterbox {
                size: size.map(|n| n as usize),
                filter: *filter,
                fill: *fill,
                enlarge: *enlarge,
                anchor: *anchor,
            };
            let size = Some(frame.size);
            Compiled::one(kind(size), EachImage(move |image| frame.apply(image)))
        }
        Op::Color { order } => {
            let to = *order;
            let run = EachImage(move |image| Ok(recolor(image, color, to)));
            Compiled::one(Kind::Images { batch, color: to, size }, run)
        }
        Op::Layout { order } => {
            let side = |i: usize| size.map_or(-1, |size| size[i] as i64);
            let c = channels(color) as i64;
            let shape = match order {
                Layout::Nchw => vec![batch, c, side(0), side(1)],
                Layout::Nhwc => vec![batch, side(0), side(1), c],
            };
            let kind = Kind::Array { datatype: Datatype::Uint8, shape, placed: true };
            Compiled::one(
                kind,
                Stack { layout: *order, channels: channels(color), size: size.unwrap_or([0; 2]) },
            )
        }
        other => Err(format!("`{}` is no operation on images", other.name())),
    }
}

/// One tensor of images that have one size.
struct Stack {
    layout: Layout,
    channels: usize,
    /// Of a batch of none.
    size: [usize; 2],
}
impl Run for Stack {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let images = images(inputs)?;
        let [height, width] = images.first().map_or(self.size, |first| [first.height, first.width]);
        let other = images.iter().position(|i| (i.height, i.width) != (height, width));
        if let Some(number) = other {
            let reason = format!(
                "is {} x {}, the first is {height} x {width}; put `resize` before `layout`",
                images[number].height, images[number].width
            );
            return Err(Fault::Image { image: number, reason });
        }
        let (batch, channels) = (images.len(), self.channels);
        let mut data = Vec::with_capacity(room(&[batch, channels, height, width], 1)?);
        for image in &images {
            match self.layout {
                Layout::Nhwc => data.extend_from_slice(&image.pixels),
                Layout::Nchw => {
                    for channel in 0..channels {
                        data.extend(image.pixels.iter().skip(channel).step_by(channels));
                    }
                }
            }
        }
        let shape = match self.layout {
            Layout::Nchw => vec![batch, channels, height, width],
            Layout::Nhwc => vec![batch, height, width, channels],
        };
        let placements: Arc<[Placement]> = images.iter().map(|image| image.placement).collect();
        let (datatype, data) = (Datatype::Uint8, Data::U8(data));
        Ok(vec![Value::Array(Array { datatype, shape, data, placements: Some(placements) })])
    }
}

/// PIL's `L` of a pixel: ITU-R 601 in 16-bit fixed point.
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

fn recolor(mut image: Image, from: Color, to: Color) -> Image {
    match (from, to) {
        (Color::Rgb, Color::Bgr) | (Color::Bgr, Color::Rgb) => {
            image.pixels.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| pixel.swap(0, 2));
        }
        (Color::Rgb, Color::Gray) => {
            let pixels = image.pixels.as_chunks::<3>().0.iter();
            image.pixels = pixels.map(|[r, g, b]| luma(*r, *g, *b)).collect();
            image.channels = 1;
        }
        (Color::Bgr, Color::Gray) => {
            let pixels = image.pixels.as_chunks::<3>().0.iter();
            image.pixels = pixels.map(|[b, g, r]| luma(*r, *g, *b)).collect();
            image.channels = 1;
        }
        (Color::Gray, Color::Rgb | Color::Bgr) => {
            image.pixels = image.pixels.iter().flat_map(|v| [*v; 3]).collect();
            image.channels = 3;
        }
        (Color::Rgb, Color::Rgb) | (Color::Bgr, Color::Bgr) | (Color::Gray, Color::Gray) => {}
    }
    image
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
