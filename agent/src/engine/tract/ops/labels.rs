//! Class labels, and the operators that turn names into numbers: LabelEncoder, OneHotEncoder, ZipMap.

use super::{
    attributes::{MAX_WIDTH, float, floats, has, int, ints, strings, tensor as tensor_attribute, text},
    kernel::{Fact, FromNode, Kernel, slice, tensor},
};
use std::collections::HashMap;
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// What a classifier calls its classes.
#[derive(Debug)]
pub(super) enum Labels {
    Ints(Vec<i64>),
    Strings(Vec<String>),
}

impl Labels {
    /// Of a classifier's node. The numbers have two names: LinearClassifier writes them differently.
    pub(super) fn of_classes(node: &NodeProto) -> TractResult<Self> {
        let texts = strings(node, "classlabels_strings")?;
        let both = ["classlabels_int64s", "classlabels_ints"];
        let numbers = both.iter().map(|name| ints(node, name)).find(|list| !list.is_empty());
        match (texts.is_empty(), numbers) {
            (false, None) => Ok(Self::Strings(texts.into_iter().map(str::to_owned).collect())),
            (true, Some(numbers)) => Ok(Self::Ints(numbers.to_vec())),
            (true, None) => bail!("`classlabels` are missing"),
            (false, Some(_)) => bail!("`classlabels` are given both as strings and as numbers"),
        }
    }
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ints(labels) => labels.len(),
            Self::Strings(labels) => labels.len(),
        }
    }
    pub(super) fn kind(&self) -> DatumType {
        match self {
            Self::Ints(_) => i64::datum_type(),
            Self::Strings(_) => String::datum_type(),
        }
    }
    /// The labels of `classes`, each below [`Labels::len`].
    pub(super) fn pick(&self, classes: &[usize]) -> TractResult<Tensor> {
        match self {
            Self::Ints(labels) => tensor(&[classes.len()], classes.iter().map(|at| labels[*at]).collect()),
            Self::Strings(labels) => {
                tensor(&[classes.len()], classes.iter().map(|at| labels[*at].clone()).collect())
            }
        }
    }
}

/// A value as the key of a table. Floats by their bits, with one zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Text(String),
    Whole(i64),
    Bits(u64),
}

impl Key {
    const NAN: u64 = f64::NAN.to_bits();

    fn of_float(value: f64) -> Self {
        Self::Bits(if value.is_nan() { Self::NAN } else { (value + 0.0).to_bits() })
    }
    /// As in ONNX Runtime, no key of a table is like NaN.
    fn is_nan(&self) -> bool {
        *self == Self::Bits(Self::NAN)
    }
}

/// Keys of a whole tensor, if it is of a kind that can be one.
fn keys(tensor: &Tensor) -> TractResult<Vec<Key>> {
    Ok(match tensor.datum_type() {
        DatumType::String => slice::<String>(tensor)?.iter().cloned().map(Key::Text).collect(),
        DatumType::F32 | DatumType::F64 => {
            slice::<f64>(tensor.cast_to::<f64>()?.as_ref())?.iter().copied().map(Key::of_float).collect()
        }
        kind if kind.is_integer() || kind == DatumType::Bool => {
            slice::<i64>(tensor.cast_to::<i64>()?.as_ref())?.iter().copied().map(Key::Whole).collect()
        }
        kind => bail!("{kind:?} cannot be looked up"),
    })
}

fn texts(list: &[&str]) -> TractResult<Tensor> {
    tensor(&[list.len()], list.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>())
}

/// LabelEncoder: a table from one kind of value to another, and what stands for all others.
#[derive(Debug)]
pub(super) struct LabelEncoder {
    /// Row of `values` for each key.
    table: HashMap<Key, usize>,
    from: DatumType,
    /// The values, and last the one for keys that are not in the table.
    values: Tensor,
}

impl FromNode for LabelEncoder {
    fn from_node(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        if has(node, "classes_strings") {
            bail!(
                "`classes_strings` is of version 1 of LabelEncoder, which is not supported: export with ai.onnx.ml 2 or later"
            );
        }
        let side = |side: &str| -> TractResult<Tensor> {
            let lists = [
                (!ints(node, &format!("{side}_int64s")).is_empty())
                    .then(|| Ok(tensor1(ints(node, &format!("{side}_int64s"))))),
                (!floats(node, &format!("{side}_floats")).is_empty())
                    .then(|| Ok(tensor1(floats(node, &format!("{side}_floats"))))),
                match &strings(node, &format!("{side}_strings"))?[..] {
                    [] => None,
                    list => Some(texts(list)),
                },
                tensor_attribute(ctx, node, &format!("{side}_tensor"))?.map(Ok),
            ];
            let mut given = lists.into_iter().flatten();
            match (given.next(), given.next()) {
                (Some(one), None) => one,
                (None, _) => bail!("`{side}_*` is missing"),
                (Some(_), Some(_)) => bail!("`{side}_*` is given twice"),
            }
        };
        let (from, to) = (side("keys")?, side("values")?);
        ensure!(from.len() == to.len(), "`keys_*` has {} elements, but `values_*` {}", from.len(), to.len());
        let default = match tensor_attribute(ctx, node, "default_tensor")? {
            Some(default) => default,
            None => match to.datum_type() {
                DatumType::String => texts(&[text(node, "default_string", "_Unused")?])?,
                DatumType::F32 => tensor1(&[float(node, "default_float", -0.0)]),
                DatumType::I64 => tensor1(&[int(node, "default_int64", -1)]),
                DatumType::F64 => tensor1(&[0f64]),
                kind => Tensor::zero_dt(kind, &[1])?,
            },
        };
        ensure!(
            default.datum_type() == to.datum_type() && default.len() == 1,
            "`default_tensor` is not one element of the type of `values_tensor`"
        );
        let flat = |tensor: Tensor| {
            let len = tensor.len();
            tensor.into_shape(&[len])
        };
        let (to, default) = (flat(to)?, flat(default)?);
        let values = Tensor::stack_tensors(0, &[to, default])?;
        let mut table = HashMap::new();
        for (at, key) in keys(&from)?.into_iter().enumerate().filter(|(_, key)| !key.is_nan()) {
            // As in ONNX Runtime, the first of equal keys counts.
            table.entry(key).or_insert(at);
        }
        Ok(Self { table, from: from.datum_type(), values })
    }
}

impl Kernel for LabelEncoder {
    fn name(&self) -> &'static str {
        "LabelEncoder"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("LabelEncoder takes one input, not {}", inputs.len()) };
        ensure!(*kind == self.from, "the keys are {:?}, but the input is {kind:?}", self.from);
        Ok(tvec!((self.values.datum_type(), shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let other = self.values.len() - 1;
        let rows: Vec<usize> =
            keys(&inputs[0])?.iter().map(|key| self.table.get(key).copied().unwrap_or(other)).collect();
        let shape = inputs[0].shape();
        Ok(tvec!(match self.values.datum_type() {
            DatumType::String => pick::<String>(&self.values, &rows, shape)?,
            DatumType::F32 => pick::<f32>(&self.values, &rows, shape)?,
            DatumType::F64 => pick::<f64>(&self.values, &rows, shape)?,
            DatumType::I16 => pick::<i16>(&self.values, &rows, shape)?,
            DatumType::I32 => pick::<i32>(&self.values, &rows, shape)?,
            DatumType::I64 => pick::<i64>(&self.values, &rows, shape)?,
            kind => bail!("LabelEncoder to {kind:?} is not supported"),
        }))
    }
}

fn pick<T: Datum + Clone>(values: &Tensor, rows: &[usize], shape: &[usize]) -> TractResult<Tensor> {
    let values = slice::<T>(values)?;
    tensor(shape, rows.iter().map(|row| values[*row].clone()).collect())
}

/// OneHotEncoder: a new last dimension with a 1 at the category of each element.
#[derive(Debug)]
pub(super) struct OneHotEncoder {
    table: HashMap<Key, usize>,
    width: usize,
    strings: bool,
    /// Unknown categories become all zeros; otherwise they are an error.
    zeros: bool,
}

impl FromNode for OneHotEncoder {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let (whole, names) = (ints(node, "cats_int64s"), strings(node, "cats_strings")?);
        ensure!(
            whole.is_empty() != names.is_empty(),
            "exactly one of `cats_int64s` and `cats_strings` must be there"
        );
        let strings = whole.is_empty();
        let keys: Vec<Key> = match strings {
            true => names.into_iter().map(|name| Key::Text(name.to_owned())).collect(),
            false => whole.iter().copied().map(Key::Whole).collect(),
        };
        let width = keys.len();
        ensure!(width <= MAX_WIDTH, "{width} categories, more than {MAX_WIDTH}");
        let table = keys.into_iter().enumerate().map(|(at, key)| (key, at)).collect();
        Ok(Self { table, width, strings, zeros: int(node, "zeros", 1) != 0 })
    }
}

impl Kernel for OneHotEncoder {
    fn name(&self) -> &'static str {
        "OneHotEncoder"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("OneHotEncoder takes one input, not {}", inputs.len()) };
        let text = *kind == String::datum_type();
        ensure!(text == self.strings, "the categories and the input ({kind:?}) are not of one kind");
        let mut shape = shape.clone();
        shape.push(self.width.to_dim());
        Ok(tvec!((f32::datum_type(), shape)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let mut shape = inputs[0].shape().to_vec();
        let count = inputs[0].len();
        let mut hot = vec![0f32; count * self.width];
        // Floats are cut to whole numbers, as the categories are whole.
        let found = match inputs[0].datum_type() {
            DatumType::String => keys(&inputs[0])?,
            _ => keys(inputs[0].cast_to::<i64>()?.as_ref())?,
        };
        for (element, key) in found.iter().enumerate() {
            match self.table.get(key) {
                Some(at) => hot[element * self.width + at] = 1.0,
                None if self.zeros => {}
                None => bail!("element {element} is of no known category ({key:?}), and `zeros` is 0"),
            }
        }
        shape.push(self.width);
        Ok(tvec!(tensor(&shape, hot)?))
    }
}

/// ZipMap: makes a dictionary per row out of scores. A tensor protocol has no dictionaries, so the scores
/// stay what they are: a matrix whose columns are the labels, in their order.
#[derive(Debug)]
pub(super) struct ZipMap {
    classes: usize,
}

impl FromNode for ZipMap {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        Ok(Self { classes: Labels::of_classes(node)?.len() })
    }
}

impl Kernel for ZipMap {
    fn name(&self) -> &'static str {
        "ZipMap"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("ZipMap takes one input, not {}", inputs.len()) };
        let columns = shape.last().and_then(|dim| dim.to_usize().ok());
        if let Some(columns) = columns {
            ensure!(columns == self.classes, "ZipMap has {} labels for {columns} columns", self.classes);
        }
        Ok(tvec!((*kind, shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        Ok(tvec!(inputs[0].clone().into_tensor()))
    }
}
