//! From scores to classes: softmax, argmax, top_k, threshold, abstain, label.
//!
//! A row with NaN has no best class: that is a fault, not class 0.

use super::{
    error::Fault,
    kind::Kind,
    step::{Around, Built, Compiled, OnArray, Run, arrays},
    value::{Array, Data, Held, Value, axis_of, held, room},
};
use bytes::Bytes;
use edgefleet_shared::{bundle::pipeline::Op, tensor::Datatype};

/// Class of an answer that is none.
pub(super) const NONE: i64 = -1;

pub(super) fn compile(op: &Op, input: &Kind, labels: &[String]) -> Built {
    let (datatype, shape) = input.as_numbers()?;
    match op {
        Op::Softmax { axis, temperature } => {
            axis_of(*axis, shape.len())?;
            let (axis, temperature) = (*axis, *temperature);
            let kind = Kind::array(Datatype::Fp32, shape.to_vec());
            Compiled::one(kind, OnArray(move |array| softmax(array, axis, temperature)))
        }
        Op::Argmax { axis } => {
            let at = axis_of(*axis, shape.len())?;
            let mut rest = shape.to_vec();
            rest.remove(at);
            let axis = *axis;
            let kind = Kind::array(Datatype::Int64, rest);
            Compiled::one(kind, OnArray(move |array| argmax(array, axis)))
        }
        Op::TopK { k, .. } => {
            let (last, rest) = shape.split_last().ok_or("needs at least one dimension")?;
            if *last >= 0 && (*k as u64) > last.cast_unsigned() {
                return Err(format!("cannot take {k} of {last}"));
            }
            let shape = [rest, &[*k as i64]].concat();
            let writes =
                vec![Kind::array(Datatype::Fp32, shape.clone()), Kind::array(Datatype::Int64, shape)];
            Ok(Compiled { run: Box::new(TopK { k: *k }), writes })
        }
        Op::Threshold { at } => {
            let at = *at as f32;
            let kind = Kind::array(Datatype::Bool, shape.to_vec());
            Compiled::one(kind, OnArray(move |array| threshold(array, at)))
        }
        Op::Label { names, none } => {
            if !matches!(held(datatype), Held::I64 | Held::U8) {
                return Err(format!("names classes by index, not {input}"));
            }
            let names = names.as_deref().unwrap_or(labels);
            if names.is_empty() {
                return Err("has no `names`, and the bundle has no labels".into());
            }
            let names: Vec<Bytes> =
                names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
            let none = Bytes::copy_from_slice(none.as_bytes());
            let kind = Kind::array(Datatype::Bytes, shape.to_vec());
            Compiled::one(kind, OnArray(move |array| label(array, &names, &none)))
        }
        other => Err(format!("`{}` is no operation on classes", other.name())),
    }
}

/// Reads class indexes and, second, the scores they were chosen by.
pub(super) fn abstain(min: f64, margin: f64, class: &Kind, scores: &Kind) -> Built {
    let (datatype, shape) = class.as_numbers()?;
    let (_, score_shape) = scores.as_numbers()?;
    let rows_differ = match score_shape.split_last() {
        Some((_, rest)) => {
            rest.len() != shape.len() || rest.iter().zip(shape).any(|(a, b)| a != b && *a != -1 && *b != -1)
        }
        None => true,
    };
    if !matches!(held(datatype), Held::I64 | Held::U8) || rows_differ {
        return Err(format!("takes classes and one more dimension of scores, not {class} and {scores}"));
    }
    let kind = Kind::array(Datatype::Int64, shape.to_vec());
    Compiled::one(kind, Abstain { min: min as f32, margin: margin as f32 })
}

struct Abstain {
    min: f32,
    margin: f32,
}
impl Run for Abstain {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let [class, scores] = arrays(inputs)?;
        let (shape, mut class) = class.into_i64()?;
        let (score_shape, scores) = scores.into_f32()?;
        let width = score_shape.last().copied().unwrap_or(0);
        if width == 0 || class.len().checked_mul(width) != Some(scores.len()) {
            return Err(Fault::shape(format!("classes of {shape:?} with scores of {score_shape:?}")));
        }
        for (class, row) in class.iter_mut().zip(scores.chunks_exact(width)) {
            let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for score in row {
                if *score > best {
                    (best, second) = (*score, best);
                } else if *score > second {
                    second = *score;
                }
            }
            // Written so that NaN abstains.
            let sure = best >= self.min && (self.margin <= 0.0 || best - second >= self.margin);
            if !sure || row.iter().any(|score| score.is_nan()) {
                *class = NONE;
            }
        }
        Ok(vec![Value::Array(Array::longs(shape, class))])
    }
}

/// Of each line along the axis, shifted by its maximum so that nothing overflows; sums in f64.
fn softmax(array: Array, axis: i64, temperature: f64) -> Result<Array, Fault> {
    let (outer, along, inner) = array.around(axis)?;
    let (shape, mut data) = array.into_f32()?;
    let mut line = vec![0f64; along];
    for block in 0..outer {
        for inside in 0..inner {
            let at = |i: usize| (block * along + i) * inner + inside;
            let max = (0..along).map(|i| data[at(i)]).fold(f32::NEG_INFINITY, f32::max);
            for (i, exp) in line.iter_mut().enumerate() {
                let value = data[at(i)];
                *exp = if value == max { 1.0 } else { (f64::from(value - max) / temperature).exp() };
            }
            let sum: f64 = line.iter().sum();
            for (i, exp) in line.iter().enumerate() {
                data[at(i)] = (exp / sum) as f32;
            }
        }
    }
    Ok(Array::floats(shape, data))
}

fn argmax(array: Array, axis: i64) -> Result<Array, Fault> {
    let at_axis = axis_of(axis, array.shape.len()).map_err(Fault::Shape)?;
    let (outer, along, inner) = array.around(axis)?;
    let (mut shape, data) = array.into_f32()?;
    shape.remove(at_axis);
    let count = room(&shape, 8)?;
    if along == 0 && count > 0 {
        return Err(Fault::shape("there is no class to choose from"));
    }
    let mut best = Vec::with_capacity(count);
    for block in 0..outer {
        for inside in 0..inner {
            let (mut index, mut max) = (0, f32::NEG_INFINITY);
            for i in 0..along {
                let value = data[(block * along + i) * inner + inside];
                if value.is_nan() {
                    return Err(Fault::value(format!("score {i} of row {} is NaN", best.len())));
                }
                if value > max {
                    (index, max) = (i, value);
                }
            }
            best.push(index as i64);
        }
    }
    Ok(Array::longs(shape, best))
}

/// Indexes of the `k` largest, largest first, equal ones in their order. NaN counts as smallest.
pub(super) fn largest(scores: &[f32], k: usize) -> Vec<usize> {
    let rank = |i: &usize| scores.get(*i).copied().filter(|v| !v.is_nan()).unwrap_or(f32::NEG_INFINITY);
    let order = |a: &usize, b: &usize| rank(b).total_cmp(&rank(a)).then(a.cmp(b));
    let mut indexes: Vec<usize> = (0..scores.len()).collect();
    if k < indexes.len() {
        indexes.select_nth_unstable_by(k, order);
        indexes.truncate(k);
    }
    indexes.sort_unstable_by(order);
    indexes
}

struct TopK {
    k: usize,
}
impl Run for TopK {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let [array] = arrays(inputs)?;
        let (mut shape, data) = array.into_f32()?;
        let width = shape.pop().unwrap_or(0);
        if width < self.k {
            return Err(Fault::shape(format!("cannot take {} of {width}", self.k)));
        }
        if let Some(at) = data.iter().position(|v| v.is_nan()) {
            return Err(Fault::value(format!("score {} of row {} is NaN", at % width, at / width)));
        }
        shape.push(self.k);
        room(&shape, 8)?;
        let (mut values, mut indexes) = (Vec::new(), Vec::new());
        for row in data.chunks_exact(width.max(1)) {
            for index in largest(row, self.k) {
                values.push(row[index]);
                indexes.push(index as i64);
            }
        }
        Ok(vec![
            Value::Array(Array::floats(shape.clone(), values)),
            Value::Array(Array::longs(shape, indexes)),
        ])
    }
}

/// Whether each is at least `at`; NaN is not.
fn threshold(array: Array, at: f32) -> Result<Array, Fault> {
    let (shape, data) = array.into_f32()?;
    let data = Data::U8(data.into_iter().map(|v| u8::from(v >= at)).collect());
    Ok(Array { datatype: Datatype::Bool, shape, data, placements: None })
}

fn label(array: Array, names: &[Bytes], none: &Bytes) -> Result<Array, Fault> {
    let (shape, classes) = array.into_i64()?;
    room(&shape, size_of::<Bytes>())?;
    let name = |class: &i64| match usize::try_from(*class).ok().and_then(|index| names.get(index)) {
        Some(name) => Ok(name.clone()),
        None if *class == NONE => Ok(none.clone()),
        None => Err(Fault::value(format!("class {class} has no name; there are {}", names.len()))),
    };
    let texts = classes.iter().map(name).collect::<Result<_, _>>()?;
    Ok(Array::texts(shape, texts))
}
