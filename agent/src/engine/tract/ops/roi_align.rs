//! RoiAlign (He et al., Mask R-CNN, 2017): a fixed grid out of each box of a feature map, by bilinear samples.

use super::{
    attributes::{MAX_WIDTH, float, index, int, text, width},
    kernel::{Fact, FromNode, Kernel, is_whole, slice, tensor},
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// Samples along one side of a cell. Boxes come with the request: one of a million pixels must not take hours.
const MAX_SAMPLES: f32 = 256.0;

#[derive(Debug)]
pub(super) struct RoiAlign {
    max: bool,
    /// Boxes are shifted by half a pixel and keep their size.
    half_pixel: bool,
    height: usize,
    width: usize,
    /// Samples along each side of a cell; 0: as many as it has pixels.
    samples: usize,
    scale: f32,
}

impl FromNode for RoiAlign {
    fn from_node(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let max = match text(node, "mode", "avg")? {
            "avg" => false,
            "max" => true,
            other => bail!("`mode` is `{other}`, not avg or max"),
        };
        let before_16 = ctx.onnx_operator_set_version < 16;
        let usual = if before_16 { "output_half_pixel" } else { "half_pixel" };
        let half_pixel = match text(node, "coordinate_transformation_mode", usual)? {
            "half_pixel" => true,
            "output_half_pixel" => false,
            other => bail!("`coordinate_transformation_mode` is `{other}`"),
        };
        let samples = index("sampling_ratio", int(node, "sampling_ratio", 0), MAX_SAMPLES as usize)?;
        let scale = float(node, "spatial_scale", 1.0);
        ensure!(scale.is_finite() && scale > 0.0, "`spatial_scale` is {scale}");
        let side = |name: &str| width(name, int(node, name, 1));
        let (height, width) = (side("output_height")?, side("output_width")?);
        ensure!(height * width <= MAX_WIDTH, "a grid of {height} x {width} cells");
        Ok(Self { max, half_pixel, height, width, samples, scale })
    }
}

impl Kernel for RoiAlign {
    fn name(&self) -> &'static str {
        "RoiAlign"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, map), (boxes, list), (batch, of)] = inputs else {
            bail!("RoiAlign takes three inputs, not {}", inputs.len())
        };
        ensure!(
            *kind == f32::datum_type() && boxes == kind,
            "RoiAlign of {kind:?} is not supported, only of F32"
        );
        ensure!(map.len() == 4, "a feature map has four dimensions, not {}", map.len());
        ensure!(is_whole(*batch), "`batch_indices` are integers, not {batch:?}");
        ensure!(list.len() == 2 && list[1] == 4.to_dim(), "boxes are four numbers each, not {list:?}");
        ensure!(**of == list[..1], "{of:?} batch indices for {} boxes", list[0]);
        Ok(tvec!((*kind, tvec!(list[0].clone(), map[1].clone(), self.height.to_dim(), self.width.to_dim()))))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let [images, channels, rows, columns] = *inputs[0].shape() else { bail!("needs four dimensions") };
        let of = inputs[2].cast_to::<i64>()?;
        let (map, boxes, of) = (slice::<f32>(&inputs[0])?, slice::<f32>(&inputs[1])?, slice::<i64>(&of)?);
        let plane = rows * columns;
        let cells = self.height * self.width;
        let mut out = Vec::with_capacity(of.len() * channels * cells);
        for (place, image) in boxes.chunks_exact(4).zip(of) {
            let image = index("batch_indices", *image, images)?;
            let x = self.axis(place[0], place[2], self.width, columns)?;
            let y = self.axis(place[1], place[3], self.height, rows)?;
            for channel in 0..channels {
                let pixels = &map[(image * channels + channel) * plane..][..plane];
                for cell in 0..cells {
                    let (row, column) = (y.of(cell / self.width), x.of(cell % self.width));
                    out.push(self.cell(row, column, pixels, columns));
                }
            }
        }
        Ok(tvec!(tensor(&[of.len(), channels, self.height, self.width], out)?))
    }
}

/// A point on one axis between two pixels, and how far from the first; `None`: more than a pixel outside.
type Between = Option<(usize, usize, f32)>;

/// The samples of one box along one axis, as many for each cell.
struct Axis {
    samples: Vec<Between>,
    for_cell: usize,
}

impl Axis {
    fn of(&self, cell: usize) -> &[Between] {
        &self.samples[cell * self.for_cell..(cell + 1) * self.for_cell]
    }
}

impl RoiAlign {
    fn axis(&self, from: f32, to: f32, cells: usize, size: usize) -> TractResult<Axis> {
        let offset = if self.half_pixel { 0.5 } else { 0.0 };
        let start = from * self.scale - offset;
        let mut length = to * self.scale - offset - start;
        if !self.half_pixel {
            length = length.max(1.0);
        }
        ensure!(start.is_finite() && length.is_finite(), "a box from {from} to {to}");
        let cell = length / cells as f32;
        let count = if self.samples > 0 { self.samples as f32 } else { cell.ceil().max(0.0) };
        ensure!(count <= MAX_SAMPLES, "a box from {from} to {to} takes {count} samples for a cell");
        let for_cell = count as usize;
        let at = |place: usize| {
            let (of, sample) = (place / for_cell, place % for_cell);
            between(start + of as f32 * cell + (sample as f32 + 0.5) * cell / count, size)
        };
        Ok(Axis { samples: (0..cells * for_cell).map(at).collect(), for_cell })
    }

    fn cell(&self, rows: &[Between], columns: &[Between], pixels: &[f32], width: usize) -> f32 {
        let (mut sum, mut most) = (0f32, f32::NEG_INFINITY);
        for row in rows {
            for column in columns {
                let parts = match (row, column) {
                    (Some((top, bottom, ly)), Some((left, right, lx))) => [
                        (1.0 - ly) * (1.0 - lx) * pixels[top * width + left],
                        (1.0 - ly) * lx * pixels[top * width + right],
                        ly * (1.0 - lx) * pixels[bottom * width + left],
                        ly * lx * pixels[bottom * width + right],
                    ],
                    _ => [0.0; 4],
                };
                sum += parts.iter().sum::<f32>();
                // As ONNX Runtime and the reference have it: the largest weighed pixel, not the largest sample.
                most = parts.iter().copied().fold(most, f32::max);
            }
        }
        let count = rows.len() * columns.len();
        match (count, self.max) {
            // A box without an inside.
            (0, _) => 0.0,
            (_, true) => most,
            (_, false) => sum / count as f32,
        }
    }
}

/// Between which pixels of `size` a point lies.
fn between(at: f32, size: usize) -> Between {
    if !(at >= -1.0 && at <= size as f32) || size == 0 {
        return None;
    }
    let at = at.max(0.0);
    let low = at as usize;
    Some(if low + 1 >= size { (size - 1, size - 1, 0.0) } else { (low, low + 1, at - low as f32) })
}
