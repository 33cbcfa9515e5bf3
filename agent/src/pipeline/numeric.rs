//! Arithmetic and arrangement: scale, normalize, standardize, clip, cast, dequantize, transpose, reshape.

use super::{
    error::Fault,
    kind::{Kind, per_element, product},
    step::{Built, Compiled, OnArray},
    value::{Array, Data, Held, axis_of, held, room},
};
use edgefleet_shared::{
    bundle::pipeline::{Op, op::Numbers},
    tensor::Datatype,
};

pub(super) fn compile(op: &Op, input: &Kind) -> Built {
    let (_, shape) = input.as_numbers()?;
    let floats = || Kind::Array { datatype: Datatype::Fp32, shape: shape.to_vec(), placed: input.placed() };
    match op {
        Op::Scale { mul, add } => {
            let affine = Affine { terms: vec![[*mul, *add]], axis: -1 };
            Compiled::one(floats(), OnArray(move |array| affine.apply(array)))
        }
        Op::Normalize { mean, std, scale, axis } => {
            let affine = normalize(shape, mean, std, *scale, *axis)?;
            Compiled::one(floats(), OnArray(move |array| affine.apply(array)))
        }
        Op::Standardize { mean, std } => {
            let affine = normalize(shape, mean, std, 1.0, -1)?;
            Compiled::one(floats(), OnArray(move |array| affine.apply(array)))
        }
        Op::Dequantize { scale, zero_point, axis } => {
            let pairs = paired(shape, ("scale", scale), ("zero_point", zero_point), *axis)?;
            let terms = pairs.into_iter().map(|[scale, zero]| [scale, -zero * scale]).collect();
            let affine = Affine { terms, axis: *axis };
            Compiled::one(floats(), OnArray(move |array| affine.apply(array)))
        }
        Op::Clip { min, max } => {
            let (min, max) = (*min as f32, *max as f32);
            Compiled::one(floats(), OnArray(move |array| each(array, |v| clip(v, min, max))))
        }
        Op::Sigmoid {} => Compiled::one(floats(), OnArray(|array| each(array, |v| 1.0 / (1.0 + (-v).exp())))),
        Op::Cast { datatype } => {
            let datatype = *datatype;
            if datatype == Datatype::Bytes {
                return Err("numbers do not become BYTES; `template` writes them as text".into());
            }
            let kind = Kind::Array { datatype, shape: shape.to_vec(), placed: input.placed() };
            Compiled::one(kind, OnArray(move |array| cast(array, datatype)))
        }
        Op::Transpose { axes } => {
            if axes.len() != shape.len() {
                return Err(format!("orders {} dimensions, {input} has {}", axes.len(), shape.len()));
            }
            let datatype = input.as_numbers()?.0;
            let turned = axes.iter().map(|axis| shape[*axis]).collect();
            let axes = axes.clone();
            Compiled::one(Kind::array(datatype, turned), OnArray(move |array| transpose(array, &axes)))
        }
        Op::Reshape { shape: wanted } => {
            let datatype = input.as_numbers()?.0;
            let kind = Kind::array(datatype, reshaped_kind(shape, wanted)?);
            let wanted = wanted.clone();
            Compiled::one(kind, OnArray(move |array| reshape(array, &wanted)))
        }
        other => Err(format!("`{}` is no arithmetic", other.name())),
    }
}

/// NaN stays NaN.
fn clip(value: f32, min: f32, max: f32) -> f32 {
    if value < min {
        min
    } else if value > max {
        max
    } else {
        value
    }
}

/// Two parameters, element by element along an axis.
fn paired(
    shape: &[i64],
    (first_name, first): (&str, &Numbers),
    (second_name, second): (&str, &Numbers),
    axis: i64,
) -> Result<Vec<[f64; 2]>, String> {
    let (first, second) = (first.as_slice(), second.as_slice());
    if first.len() > 1 || second.len() > 1 {
        let axis = axis_of(axis, shape.len())?;
        per_element(first_name, first.len(), shape, axis)?;
        per_element(second_name, second.len(), shape, axis)?;
        if first.len() > 1 && second.len() > 1 && first.len() != second.len() {
            let (a, b) = (first.len(), second.len());
            return Err(format!("`{first_name}` has {a} numbers, `{second_name}` has {b}"));
        }
    }
    let count = first.len().max(second.len());
    let at = |numbers: &[f64], i: usize| if numbers.len() == 1 { numbers[0] } else { numbers[i] };
    Ok((0..count).map(|i| [at(first, i), at(second, i)]).collect())
}

fn normalize(shape: &[i64], mean: &Numbers, std: &Numbers, scale: f64, axis: i64) -> Result<Affine, String> {
    let pairs = paired(shape, ("mean", mean), ("std", std), axis)?;
    let terms = pairs.into_iter().map(|[mean, std]| [scale / std, -mean / std]).collect();
    Ok(Affine { terms, axis })
}

/// `y = x * mul + add`, with one pair for all or one for each element along an axis. In f64, then rounded.
struct Affine {
    terms: Vec<[f64; 2]>,
    axis: i64,
}

impl Affine {
    fn apply(&self, array: Array) -> Result<Array, Fault> {
        let (_, along, inner) = match self.terms.len() {
            1 => (1, 1, array.len()),
            count => {
                let around = array.around(self.axis)?;
                if around.1 != count {
                    let (shape, axis) = (&array.shape, self.axis);
                    return Err(Fault::shape(format!(
                        "axis {axis} of {shape:?} does not have {count} elements"
                    )));
                }
                around
            }
        };
        let count = room(&array.shape, 4)?;
        let mut done = Vec::with_capacity(count);
        let block = (along * inner).max(1);
        let linear = |x: f64, [mul, add]: [f64; 2]| (x * mul + add) as f32;
        match array.data {
            // 256 answers for each channel are cheaper than arithmetic on every pixel.
            Data::U8(data) if inner >= 256 => {
                for block in data.chunks_exact(block) {
                    for (plane, terms) in block.chunks_exact(inner).zip(&self.terms) {
                        let table: [f32; 256] = std::array::from_fn(|x| linear(x as f64, *terms));
                        done.extend(plane.iter().map(|x| table[usize::from(*x)]));
                    }
                }
            }
            Data::U8(data) => self.fill(&data, inner, &mut done, |x, t| linear(f64::from(x), t)),
            Data::I64(data) => self.fill(&data, inner, &mut done, |x, t| linear(x as f64, t)),
            Data::F32(data) => self.fill(&data, inner, &mut done, |x, t| linear(f64::from(x), t)),
            Data::F64(data) => self.fill(&data, inner, &mut done, linear),
            Data::Text(_) => return Err(Fault::value("holds text, not numbers")),
        }
        Ok(Array { placements: array.placements, ..Array::floats(array.shape, done) })
    }

    fn fill<T: Copy>(&self, data: &[T], inner: usize, done: &mut Vec<f32>, of: impl Fn(T, [f64; 2]) -> f32) {
        if inner == 1 {
            let rows = data.chunks_exact(self.terms.len());
            rows.for_each(|row| done.extend(row.iter().zip(&self.terms).map(|(x, terms)| of(*x, *terms))));
            return;
        }
        for (plane, terms) in data.chunks_exact(inner.max(1)).zip(self.terms.iter().cycle()) {
            done.extend(plane.iter().map(|x| of(*x, *terms)));
        }
    }
}

/// A function of every element, in FP32.
pub(super) fn each(array: Array, of: impl Fn(f32) -> f32) -> Result<Array, Fault> {
    let placements = array.placements.clone();
    let (shape, mut data) = array.into_f32()?;
    data.iter_mut().for_each(|v| *v = of(*v));
    Ok(Array { placements, ..Array::floats(shape, data) })
}

/// Lowest and highest value of an integer type.
fn range(datatype: Datatype) -> (i64, i64) {
    match datatype {
        Datatype::Bool => (0, 1),
        Datatype::Uint8 => (0, 255),
        Datatype::Uint16 => (0, 65_535),
        Datatype::Uint32 => (0, u32::MAX.into()),
        Datatype::Uint64 => (0, i64::MAX),
        Datatype::Int8 => (-128, 127),
        Datatype::Int16 => (i16::MIN.into(), i16::MAX.into()),
        Datatype::Int32 => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN, i64::MAX),
    }
}

/// Towards zero, and to the nearest value the type has; NaN becomes 0. BOOL is "not 0".
fn cast(array: Array, datatype: Datatype) -> Result<Array, Fault> {
    let Array { shape, data, placements, .. } = array;
    let (min, max) = range(datatype);
    let whole =
        |v: f64| if datatype == Datatype::Bool { i64::from(v != 0.0) } else { (v as i64).clamp(min, max) };
    let exact = |v: i64| if datatype == Datatype::Bool { i64::from(v != 0) } else { v.clamp(min, max) };
    let integers: Box<dyn Iterator<Item = i64>>;
    let data = match held(datatype) {
        Held::F32 => {
            let (_, mut data) =
                Array { datatype, shape: shape.clone(), data, placements: None }.into_f32()?;
            match datatype {
                Datatype::Fp16 => data.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
                Datatype::Bf16 => data.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
                _ => {}
            }
            Data::F32(data)
        }
        Held::F64 => {
            room(&shape, 8)?;
            Data::F64(match data {
                Data::U8(data) => data.into_iter().map(f64::from).collect(),
                Data::I64(data) => data.into_iter().map(|v| v as f64).collect(),
                Data::F32(data) => data.into_iter().map(f64::from).collect(),
                Data::F64(data) => data,
                Data::Text(_) => return Err(Fault::value("holds text, not numbers")),
            })
        }
        Held::Text => return Err(Fault::value("numbers do not become text")),
        kept @ (Held::U8 | Held::I64) => {
            room(&shape, 8)?;
            integers = match data {
                Data::U8(data) => Box::new(data.into_iter().map(move |v| exact(v.into()))),
                Data::I64(data) => Box::new(data.into_iter().map(exact)),
                Data::F32(data) => Box::new(data.into_iter().map(move |v| whole(v.into()))),
                Data::F64(data) => Box::new(data.into_iter().map(whole)),
                Data::Text(_) => return Err(Fault::value("holds text, not numbers")),
            };
            match kept {
                Held::U8 => Data::U8(integers.map(|v| v as u8).collect()),
                _ => Data::I64(integers.collect()),
            }
        }
    };
    Ok(Array { datatype, shape, data, placements })
}

fn transpose(array: Array, axes: &[usize]) -> Result<Array, Fault> {
    let Array { datatype, shape, data, .. } = array;
    if shape.len() != axes.len() {
        return Err(Fault::shape(format!("has the shape {shape:?}, not {} dimensions", axes.len())));
    }
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let turned: Vec<usize> = axes.iter().map(|axis| shape[*axis]).collect();
    let steps: Vec<usize> = axes.iter().map(|axis| strides[*axis]).collect();
    let count = turned.iter().product::<usize>();
    let mut order = Vec::with_capacity(room(&turned, size_of::<usize>())?);
    let (mut index, mut at) = (vec![0usize; turned.len()], 0usize);
    for _ in 0..count {
        order.push(at);
        for axis in (0..turned.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < turned[axis] {
                break;
            }
            at -= steps[axis] * turned[axis];
            index[axis] = 0;
        }
    }
    fn pick<T: Copy>(data: &[T], order: &[usize]) -> Vec<T> {
        order.iter().map(|at| data[*at]).collect()
    }
    let data = match &data {
        Data::U8(data) => Data::U8(pick(data, &order)),
        Data::I64(data) => Data::I64(pick(data, &order)),
        Data::F32(data) => Data::F32(pick(data, &order)),
        Data::F64(data) => Data::F64(pick(data, &order)),
        Data::Text(_) => return Err(Fault::value("holds text, not numbers")),
    };
    Ok(Array { datatype, shape: turned, data, placements: None })
}

/// The shape that comes of it, as far as it is known.
fn reshaped_kind(shape: &[i64], wanted: &[i64]) -> Result<Vec<i64>, String> {
    let mut done = Vec::new();
    for (axis, dim) in wanted.iter().enumerate() {
        done.push(match (dim, shape.get(axis)) {
            (0, None) => return Err(format!("keeps dimension {axis}, which {shape:?} lacks")),
            (0, Some(kept)) => *kept,
            (dim, _) => *dim,
        });
    }
    let whole = product(shape);
    if whole >= 0 {
        let known: Vec<i64> = done.iter().copied().filter(|dim| *dim != -1).collect();
        let known_product = product(&known);
        match done.iter().position(|dim| *dim == -1) {
            Some(open) if known_product > 0 && whole % known_product == 0 => {
                done[open] = whole / known_product
            }
            None if known_product == whole => {}
            _ => return Err(format!("{shape:?} does not become {wanted:?}")),
        }
    }
    Ok(done)
}

fn reshape(array: Array, wanted: &[i64]) -> Result<Array, Fault> {
    let known: Vec<i64> = array.shape.iter().map(|dim| *dim as i64).collect();
    let shape = reshaped_kind(&known, wanted).map_err(Fault::Shape)?;
    let shape: Vec<usize> = shape.into_iter().map(|dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
    if room(&shape, 1)? != array.len() {
        return Err(Fault::shape(format!("{:?} does not become {wanted:?}", array.shape)));
    }
    Ok(Array { shape, placements: None, ..array })
}
