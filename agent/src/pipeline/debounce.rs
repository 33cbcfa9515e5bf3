//! An answer that changes only when enough of the last ones agree. Its memory is the caller's, one for
//! each stream of requests; without one, every request is the first.

use super::{
    classify::NONE,
    error::Fault,
    kind::Kind,
    step::{Around, Built, Compiled, Run, arrays},
    value::{Array, Held, Value, held},
};
use edgefleet_shared::tensor::Datatype;
use std::collections::{BTreeMap, VecDeque};

/// What a pipeline remembers of one stream of requests. Opaque; begins empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// By step.
    histories: BTreeMap<usize, History>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct History {
    last: VecDeque<i64>,
    answer: i64,
}

pub(super) fn compile(step: usize, k: usize, n: usize, input: &Kind) -> Built {
    let (datatype, shape) = input.as_numbers()?;
    if !matches!(held(datatype), Held::I64 | Held::U8) {
        return Err(format!("takes classes, not {input}"));
    }
    let kind = Kind::array(Datatype::Int64, shape.to_vec());
    Compiled::one(kind, Debounce { step, k, n })
}

struct Debounce {
    step: usize,
    k: usize,
    n: usize,
}

impl Run for Debounce {
    /// Rows follow each other in time.
    fn run(&self, inputs: Vec<Value>, around: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let [array] = arrays(inputs)?;
        let (shape, mut classes) = array.into_i64()?;
        let fresh = || History { last: VecDeque::new(), answer: NONE };
        let history = around.stream.histories.entry(self.step).or_insert_with(fresh);
        for class in &mut classes {
            history.last.push_back(*class);
            while history.last.len() > self.n {
                history.last.pop_front();
            }
            if history.last.iter().filter(|past| *past == class).count() >= self.k {
                history.answer = *class;
            }
            *class = history.answer;
        }
        Ok(vec![Value::Array(Array::longs(shape, classes))])
    }
}
