//! Column by column: Scaler, Normalizer, Imputer and Binarizer.

use super::{
    attributes::{float, floats, int, ints, text},
    kernel::{Fact, FromNode, Kernel, rows_and_columns, slice, tensor},
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

fn only<'a>(op: &str, inputs: &'a [Fact]) -> TractResult<&'a Fact> {
    let [input] = inputs else { bail!("{op} takes one input, not {}", inputs.len()) };
    let (kind, _) = input;
    ensure!(kind.is_number() && *kind != TDim::datum_type(), "{op} takes numbers, not {kind:?}");
    Ok(input)
}

/// A per-column list must be one number for all columns, or one for each.
fn fits(name: &str, list: usize, shape: &[TDim]) -> TractResult<()> {
    let columns = shape.last().and_then(|dim| dim.to_usize().ok());
    match columns {
        Some(columns) => {
            ensure!(list == 1 || list == columns, "`{name}` has {list} elements for {columns} columns");
        }
        None => ensure!(list == 1, "`{name}` has {list} elements for an open number of columns"),
    }
    Ok(())
}

/// Scaler: `(x - offset) * scale`.
#[derive(Debug)]
pub(super) struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

impl FromNode for Scaler {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let (offset, scale) = (floats(node, "offset").to_vec(), floats(node, "scale").to_vec());
        ensure!(!offset.is_empty() && !scale.is_empty(), "`offset` or `scale` is missing");
        ensure!(
            offset.len() == scale.len(),
            "`offset` has {} elements, but `scale` {}",
            offset.len(),
            scale.len()
        );
        Ok(Self { offset, scale })
    }
}

impl Kernel for Scaler {
    fn name(&self) -> &'static str {
        "Scaler"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (_, shape) = only(self.name(), inputs)?;
        fits("scale", self.scale.len(), shape)?;
        Ok(tvec!((f32::datum_type(), shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let shape = inputs[0].shape();
        // In double precision: f32 would lose what little a large integer leaves after the offset.
        let input = inputs[0].cast_to::<f64>()?;
        let columns = self.scale.len();
        let each = slice::<f64>(&input)?.iter().enumerate().map(|(at, x)| {
            let column = at % columns;
            ((x - f64::from(self.offset[column])) * f64::from(self.scale[column])) as f32
        });
        Ok(tvec!(tensor(shape, each.collect())?))
    }
}

/// Normalizer: divides each row by its largest element, its sum or its length.
#[derive(Debug)]
pub(super) struct Normalizer(Norm);

#[derive(Clone, Copy, Debug)]
enum Norm {
    Max,
    L1,
    L2,
}

impl FromNode for Normalizer {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        Ok(Self(match text(node, "norm", "MAX")? {
            "MAX" => Norm::Max,
            "L1" => Norm::L1,
            "L2" => Norm::L2,
            other => bail!("`norm` is `{other}`, which ONNX does not know"),
        }))
    }
}

impl Kernel for Normalizer {
    fn name(&self) -> &'static str {
        "Normalizer"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (_, shape) = only(self.name(), inputs)?;
        ensure!(shape.len() <= 2, "Normalizer takes rows, not {} dimensions", shape.len());
        Ok(tvec!((f32::datum_type(), shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let (_, columns) = rows_and_columns(inputs[0].shape())?;
        let input = inputs[0].cast_to::<f32>()?;
        let mut out = slice::<f32>(&input)?.to_vec();
        for row in out.chunks_exact_mut(columns.max(1)) {
            let by = match self.0 {
                // The largest with its sign, not the largest size: as ONNX Runtime and the reference do.
                Norm::Max => row.iter().copied().fold(f32::MIN, f32::max),
                Norm::L1 => row.iter().map(|x| x.abs()).sum(),
                Norm::L2 => row.iter().map(|x| x * x).sum::<f32>().sqrt(),
            };
            // A row of zeros stays one.
            if by != 0.0 {
                row.iter_mut().for_each(|x| *x /= by);
            }
        }
        Ok(tvec!(tensor(inputs[0].shape(), out)?))
    }
}

/// Binarizer: 1 above the threshold, else 0.
#[derive(Debug)]
pub(super) struct Binarizer(f32);

impl FromNode for Binarizer {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        Ok(Self(float(node, "threshold", 0.0)))
    }
}

impl Kernel for Binarizer {
    fn name(&self) -> &'static str {
        "Binarizer"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (kind, shape) = only(self.name(), inputs)?;
        Ok(tvec!((*kind, shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let kind = inputs[0].datum_type();
        let input = inputs[0].cast_to::<f64>()?;
        let above = |x: &f64| if *x > f64::from(self.0) { 1f32 } else { 0.0 };
        let out: Vec<f32> = slice::<f64>(&input)?.iter().map(above).collect();
        Ok(tvec!(tensor(inputs[0].shape(), out)?.cast_to_dt(kind)?.into_owned()))
    }
}

/// Imputer: puts a column's value in the place of what is missing.
#[derive(Debug)]
pub(super) enum Imputer {
    Floats { put: Vec<f32>, replaced: f32 },
    Ints { put: Vec<i64>, replaced: i64 },
}

impl FromNode for Imputer {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let (f, i) = (floats(node, "imputed_value_floats"), ints(node, "imputed_value_int64s"));
        match (f.is_empty(), i.is_empty()) {
            (false, true) => {
                Ok(Self::Floats { put: f.to_vec(), replaced: float(node, "replaced_value_float", 0.0) })
            }
            (true, false) => {
                Ok(Self::Ints { put: i.to_vec(), replaced: int(node, "replaced_value_int64", 0) })
            }
            _ => bail!("exactly one of `imputed_value_floats` and `imputed_value_int64s` must be there"),
        }
    }
}

impl Kernel for Imputer {
    fn name(&self) -> &'static str {
        "Imputer"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (kind, shape) = only(self.name(), inputs)?;
        let (count, fitting) = match self {
            Self::Floats { put, .. } => (put.len(), kind.is_float()),
            Self::Ints { put, .. } => (put.len(), *kind == i64::datum_type()),
        };
        ensure!(fitting, "the imputed values and the input ({kind:?}) are not of one kind");
        fits("imputed_value", count, shape)?;
        Ok(tvec!((*kind, shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let kind = inputs[0].datum_type();
        let out = match self {
            Self::Floats { put, replaced } => {
                let input = inputs[0].cast_to::<f64>()?;
                let missing = |x: f64| (x.is_nan() && replaced.is_nan()) || x == f64::from(*replaced);
                let each = slice::<f64>(&input)?.iter().enumerate();
                let each = each.map(|(at, x)| if missing(*x) { f64::from(put[at % put.len()]) } else { *x });
                tensor(inputs[0].shape(), each.collect::<Vec<f64>>())?
            }
            Self::Ints { put, replaced } => {
                let each = slice::<i64>(&inputs[0])?.iter().enumerate();
                let each = each.map(|(at, x)| if x == replaced { put[at % put.len()] } else { *x });
                tensor(inputs[0].shape(), each.collect::<Vec<i64>>())?
            }
        };
        Ok(tvec!(out.cast_to_dt(kind)?.into_owned()))
    }
}
