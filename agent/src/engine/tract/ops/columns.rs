//! Takes columns together and apart: FeatureVectorizer and ArrayFeatureExtractor.

use super::{
    attributes::{has, index, ints},
    kernel::{Fact, FromNode, Kernel, is_whole, matrix, rows_and_columns, slice, tensor},
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// FeatureVectorizer: joins the columns of its inputs; each gives as many as `inputdimensions` says.
#[derive(Debug)]
pub(super) struct FeatureVectorizer(Vec<i64>);

impl FromNode for FeatureVectorizer {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let widths = ints(node, "inputdimensions");
        ensure!(has(node, "inputdimensions"), "`inputdimensions` is missing");
        Ok(Self(widths.to_vec()))
    }
}

impl Kernel for FeatureVectorizer {
    fn name(&self) -> &'static str {
        "FeatureVectorizer"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        ensure!(inputs.len() == self.0.len(), "{} inputs for {} dimensions", inputs.len(), self.0.len());
        let (mut rows, mut total) = (1.to_dim(), 0.to_dim());
        for ((kind, shape), width) in inputs.iter().zip(&self.0) {
            ensure!(kind.is_number(), "FeatureVectorizer takes numbers, not {kind:?}");
            let (own_rows, columns) = matrix(shape)?;
            // ONNX Runtime cuts or pads a column block that differs; nobody exports that.
            ensure!(columns == width.to_dim(), "`inputdimensions` says {width}, the input has {columns}");
            (rows, total) = (own_rows, total + columns);
        }
        Ok(tvec!((f32::datum_type(), tvec!(rows, total))))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let floats: Vec<_> = inputs.iter().map(|input| input.cast_to::<f32>()).collect::<TractResult<_>>()?;
        let mut blocks = Vec::with_capacity(inputs.len());
        let mut all_rows = None;
        for input in &floats {
            let (rows, columns) = rows_and_columns(input.shape())?;
            ensure!(*all_rows.get_or_insert(rows) == rows, "inputs of {rows} and of other numbers of rows");
            blocks.push((slice::<f32>(input)?, columns));
        }
        let rows = all_rows.unwrap_or(0);
        let total: usize = blocks.iter().map(|(_, columns)| columns).sum();
        let mut out = Vec::with_capacity(rows * total);
        for row in 0..rows {
            for (values, columns) in &blocks {
                out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
        Ok(tvec!(tensor(&[rows, total], out)?))
    }
}

/// ArrayFeatureExtractor: the columns that the second input lists. tract's own gives another rank where there
/// is one column or one row.
#[derive(Debug)]
pub(super) struct ArrayFeatureExtractor;

impl FromNode for ArrayFeatureExtractor {
    fn from_node(_ctx: &ParsingContext, _node: &NodeProto) -> TractResult<Self> {
        Ok(Self)
    }
}

impl Kernel for ArrayFeatureExtractor {
    fn name(&self) -> &'static str {
        "ArrayFeatureExtractor"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape), (asked, list)] = inputs else {
            bail!("ArrayFeatureExtractor takes two inputs, not {}", inputs.len())
        };
        ensure!(is_whole(*asked), "columns are listed as {asked:?}");
        let count: TDim = list.iter().product();
        let mut made = match shape.split_last() {
            None => bail!("needs an input with a dimension, not a scalar"),
            Some((_, [])) => tvec!(1.to_dim()),
            Some((_, rest)) => rest.iter().cloned().collect(),
        };
        made.push(count);
        Ok(tvec!((*kind, made)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let columns = inputs[0].shape().last().copied().unwrap_or(0);
        let list = inputs[1].cast_to::<i64>()?;
        let list: Vec<usize> = slice::<i64>(&list)?
            .iter()
            .map(|at| index("columns", *at, columns))
            .collect::<TractResult<_>>()?;
        let extract = match inputs[0].datum_type() {
            DatumType::F32 => extract::<f32>,
            DatumType::F64 => extract::<f64>,
            DatumType::I64 => extract::<i64>,
            DatumType::I32 => extract::<i32>,
            DatumType::TDim => extract::<TDim>,
            DatumType::String => extract::<String>,
            other => bail!("ArrayFeatureExtractor of {other:?} is not supported"),
        };
        Ok(tvec!(extract(&inputs[0], &list)?))
    }
}

fn extract<T: Datum + Clone>(input: &Tensor, list: &[usize]) -> TractResult<Tensor> {
    let mut shape = input.shape().to_vec();
    let columns = shape.pop().unwrap_or(0);
    if shape.is_empty() {
        shape.push(1);
    }
    shape.push(list.len());
    let rows = slice::<T>(input)?.chunks_exact(columns.max(1));
    let picked = rows.flat_map(|row| list.iter().map(|at| row[*at].clone()));
    tensor(&shape, picked.collect())
}
