//! TfIdfVectorizer: counts n-grams of a pool in sequences of words or numbers, as exports of text pipelines do.

use super::{
    attributes::{MAX_WIDTH, floats, has, index, int, ints, same_length, strings, text, width},
    kernel::{Fact, FromNode, Kernel, is_whole, slice, tensor},
};
use std::collections::HashMap;
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// Longest n-gram and widest skip: time grows with their product.
const MAX_LENGTH: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Count,
    /// The weight of what occurs, however often.
    Idf,
    Both,
}

/// N-grams to columns.
#[derive(Debug)]
enum Pool {
    Numbers(HashMap<Vec<i64>, usize>),
    Words(HashMap<Vec<String>, usize>),
}

#[derive(Debug)]
pub(super) struct TfIdfVectorizer {
    mode: Mode,
    shortest: usize,
    longest: usize,
    skips: usize,
    pool: Pool,
    /// By column; empty: 1.
    weights: Vec<f32>,
    columns: usize,
}

impl FromNode for TfIdfVectorizer {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let mode = match text(node, "mode", "")? {
            "TF" => Mode::Count,
            "IDF" => Mode::Idf,
            "TFIDF" => Mode::Both,
            other => bail!("`mode` is `{other}`, not TF, IDF or TFIDF"),
        };
        let length = |name: &str| {
            let length = width(name, int(node, name, 0))?;
            ensure!(length <= MAX_LENGTH, "`{name}` is {length}, more than {MAX_LENGTH}");
            Ok(length)
        };
        let (shortest, longest) = (length("min_gram_length")?, length("max_gram_length")?);
        ensure!(shortest <= longest, "`min_gram_length` {shortest} is more than `max_gram_length` {longest}");
        let skips = index("max_skip_count", int(node, "max_skip_count", 0), MAX_LENGTH)?;
        let places: Vec<usize> = ints(node, "ngram_indexes")
            .iter()
            .map(|at| index("ngram_indexes", *at, MAX_WIDTH))
            .collect::<TractResult<_>>()?;
        let columns = places.iter().max().context("`ngram_indexes` is missing")? + 1;
        let starts = ints(node, "ngram_counts");
        let pool = if has(node, "pool_strings") {
            let words = strings(node, "pool_strings")?.into_iter().map(str::to_owned);
            Pool::Words(grams(&words.collect::<Vec<_>>(), starts, &places)?)
        } else {
            Pool::Numbers(grams(ints(node, "pool_int64s"), starts, &places)?)
        };
        let mut weights = Vec::new();
        if has(node, "weights") {
            let told = floats(node, "weights");
            same_length(&[("ngram_indexes", places.len()), ("weights", told.len())])?;
            weights.resize(columns, 1.0);
            places.iter().zip(told).for_each(|(column, weight)| weights[*column] = *weight);
        }
        Ok(Self { mode, shortest, longest, skips, pool, weights, columns })
    }
}

/// Cuts the pool into n-grams: `starts[n - 1]` is where those of n items begin.
fn grams<T: Clone + Eq + std::hash::Hash>(
    pool: &[T],
    starts: &[i64],
    places: &[usize],
) -> TractResult<HashMap<Vec<T>, usize>> {
    ensure!(starts.len() <= MAX_LENGTH, "`ngram_counts` has {} elements", starts.len());
    let mut columns = HashMap::with_capacity(places.len());
    let mut next = places.iter();
    for (at, start) in starts.iter().enumerate() {
        let start = index("ngram_counts", *start, pool.len() + 1)?;
        let end =
            starts.get(at + 1).map_or(Ok(pool.len()), |end| index("ngram_counts", *end, pool.len() + 1))?;
        let items = pool.get(start..end).context("`ngram_counts` goes backwards")?;
        ensure!(items.len() % (at + 1) == 0, "{} items are no whole {}-grams", items.len(), at + 1);
        for gram in items.chunks_exact(at + 1) {
            let place = next.next().context("`ngram_indexes` has fewer elements than the pool n-grams")?;
            columns.insert(gram.to_vec(), *place);
        }
    }
    ensure!(next.next().is_none(), "`ngram_indexes` has more elements than the pool n-grams");
    Ok(columns)
}

impl Kernel for TfIdfVectorizer {
    fn name(&self) -> &'static str {
        "TfIdfVectorizer"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("TfIdfVectorizer takes one input, not {}", inputs.len()) };
        let wanted = match self.pool {
            Pool::Numbers(_) => is_whole(*kind),
            Pool::Words(_) => *kind == String::datum_type(),
        };
        ensure!(wanted, "the pool has other items than {kind:?}");
        let columns = self.columns.to_dim();
        let made = match &**shape {
            [_] => tvec!(columns),
            [rows, _] => tvec!(rows.clone(), columns),
            _ => bail!("takes one sequence or a batch of them, not {} dimensions", shape.len()),
        };
        Ok(tvec!((f32::datum_type(), made)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let shape = inputs[0].shape();
        let (rows, length, mut made) = match *shape {
            [length] => (1, length, vec![]),
            [rows, length] => (rows, length, vec![rows]),
            _ => bail!("takes one sequence or a batch of them"),
        };
        let mut counts = vec![0f32; rows * self.columns];
        match &self.pool {
            Pool::Numbers(pool) => {
                let items = inputs[0].cast_to::<i64>()?;
                self.count(pool, slice::<i64>(&items)?, length, &mut counts);
            }
            Pool::Words(pool) => self.count(pool, slice::<String>(&inputs[0])?, length, &mut counts),
        }
        if self.mode != Mode::Count {
            for row in counts.chunks_exact_mut(self.columns) {
                for (at, count) in row.iter_mut().enumerate() {
                    let times = if self.mode == Mode::Both { *count } else { f32::from(*count > 0.0) };
                    *count = times * self.weights.get(at).copied().unwrap_or(1.0);
                }
            }
        }
        made.push(self.columns);
        Ok(tvec!(tensor(&made, counts)?))
    }
}

impl TfIdfVectorizer {
    fn count<T: Clone + Eq + std::hash::Hash>(
        &self,
        pool: &HashMap<Vec<T>, usize>,
        items: &[T],
        length: usize,
        counts: &mut [f32],
    ) {
        let mut gram = Vec::with_capacity(self.longest);
        for (row, counts) in items.chunks_exact(length.max(1)).zip(counts.chunks_exact_mut(self.columns)) {
            for step in 1..=self.skips + 1 {
                for start in 0..length {
                    gram.clear();
                    for item in row[start..].iter().step_by(step).take(self.longest) {
                        gram.push(item.clone());
                        // One item alone is the same whatever is skipped: it counts once.
                        let counts_here = gram.len() >= self.shortest && (gram.len() > 1 || step == 1);
                        if counts_here && let Some(column) = pool.get(&gram) {
                            counts[*column] += 1.0;
                        }
                    }
                }
            }
        }
    }
}
