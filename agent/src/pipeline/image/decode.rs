//! From the bytes of a file to an image. Which format it is, its first bytes say; how large it will be is
//! known and bounded before anything is allocated for it.

use super::{Image, Placement, exif, jpeg, png, recolor, within};
use crate::pipeline::{
    appearance::{Appearance, appearance},
    error::Fault,
    kind::Kind,
    step::{Around, Built, Compiled, Run},
    value::{Array, Data, Value},
};
use edgefleet_shared::{bundle::pipeline::Color, tensor::Datatype};

/// Bounds of one image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub pixels: u64,
}

impl Bounds {
    /// Refuses an image by what its header says.
    pub(super) fn admit(self, width: usize, height: usize) -> Result<(), Fault> {
        super::check_sides(height, width)?;
        let found = width as u64 * height as u64; // sides are small: cannot overflow
        if found > self.pixels {
            return Err(Fault::TooLarge { what: "pixels of an image", found, limit: self.pixels });
        }
        Ok(())
    }
}

/// What a decoder found: RGB or gray, not turned yet.
pub(super) struct Decoded {
    pub width: usize,
    pub height: usize,
    pub color: Color,
    pub pixels: Vec<u8>,
    /// TIFF structure with the EXIF tags.
    pub exif: Option<Vec<u8>>,
}

pub(super) fn compile(color: Color, orient: bool, max_pixels: u64, input: &Kind) -> Built {
    let (datatype, shape) = input.as_array()?;
    let batch = match (datatype, shape) {
        (Datatype::Bytes, [batch] | [batch, 1]) => *batch,
        _ => return Err(format!("decodes BYTES [batch] or [batch, 1], not {input}")),
    };
    let run = Decode { color, orient, bounds: Bounds { pixels: max_pixels } };
    Compiled::one(Kind::Images { batch, color, size: None }, run)
}

/// Width, height and brightness of a JPEG or PNG; `None` for anything else.
pub(crate) fn gray(file: &[u8], max_pixels: u64) -> Option<(usize, usize, Vec<u8>)> {
    let decode = Decode { color: Color::Gray, orient: false, bounds: Bounds { pixels: max_pixels } };
    let image = decode.one(file).ok()?;
    Some((image.width, image.height, image.pixels))
}

struct Decode {
    color: Color,
    orient: bool,
    bounds: Bounds,
}

impl Run for Decode {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let Some(Value::Array(Array { data: Data::Text(files), .. })) = inputs.into_iter().next() else {
            return Err(Fault::shape("decodes BYTES"));
        };
        let mut images = Vec::with_capacity(files.len());
        let mut bytes = 0usize;
        for (number, file) in files.iter().enumerate() {
            let image = self.one(file).map_err(|fault| match fault {
                Fault::Shape(reason) | Fault::Value(reason) => Fault::Image { image: number, reason },
                other => other,
            })?;
            bytes += image.pixels.len();
            within(bytes)?;
            images.push(image);
        }
        Ok(vec![Value::Images(images)])
    }

    fn appearances(&self, written: &Value) -> Option<Vec<Appearance>> {
        let Value::Images(images) = written else { return None };
        Some(images.iter().map(|image| seen(image, self.color)).collect())
    }
}

/// Of pixels from 0 to 1.
fn seen(image: &Image, color: Color) -> Appearance {
    let Image { height, width, channels, pixels, .. } = image;
    appearance([*height, *width], *channels, |y, x, channel| {
        let channel = match color {
            Color::Gray => 0,
            Color::Rgb => channel,
            Color::Bgr => 2 - channel,
        };
        pixels.get((y * width + x) * channels + channel).map_or(f64::NAN, |v| f64::from(*v) / 255.0)
    })
}

impl Decode {
    fn one(&self, file: &[u8]) -> Result<Image, Fault> {
        let decoded = match file {
            [0xff, 0xd8, ..] => jpeg::decode(file, self.bounds)?,
            [0x89, b'P', b'N', b'G', ..] => png::decode(file, self.bounds)?,
            _ => {
                let start = &file[..file.len().min(8)];
                return Err(Fault::value(format!("is neither JPEG nor PNG; it begins with {start:02x?}")));
            }
        };
        let Decoded { width, height, color, pixels, exif } = decoded;
        let channels = crate::pipeline::kind::channels(color);
        let image = Image { height, width, channels, pixels, placement: Placement::whole(width, height) };
        let orientation = exif.filter(|_| self.orient).and_then(|tiff| exif::orientation(&tiff));
        let image = exif::turn(image, orientation.unwrap_or(1));
        Ok(recolor(image, color, self.color))
    }
}
