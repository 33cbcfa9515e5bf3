//! The three operators over a forest.

use super::super::{
    attributes::{int, numbers, text, width},
    kernel::{Fact, FromNode, Kernel, matrix, rows_and_columns, slice, tensor},
    labels::Labels,
    scores::Post,
};
use super::{
    Real,
    forest::{Forest, Grove},
    read,
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// How the votes for one target become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

/// A forest in the precision of its thresholds and weights.
#[derive(Debug)]
enum Trees {
    Single(Forest<f32>),
    Double(Forest<f64>),
}

impl Trees {
    fn plant(grove: &Grove, double: bool) -> TractResult<Self> {
        Ok(if double { Self::Double(Forest::plant(grove)?) } else { Self::Single(Forest::plant(grove)?) })
    }
    fn features(&self) -> usize {
        match self {
            Self::Single(forest) => forest.features,
            Self::Double(forest) => forest.features,
        }
    }
    fn targets(&self) -> usize {
        match self {
            Self::Single(forest) => forest.targets,
            Self::Double(forest) => forest.targets,
        }
    }

    /// Rows of the input, if it is one these trees can be asked about.
    fn rows(&self, op: &str, inputs: &[Fact]) -> TractResult<TDim> {
        let [(kind, shape)] = inputs else { bail!("{op} takes one input, not {}", inputs.len()) };
        let numeric = [f32::datum_type(), f64::datum_type(), i32::datum_type(), i64::datum_type()];
        ensure!(numeric.contains(kind) || *kind == f16::datum_type(), "{op} takes numbers, not {kind:?}");
        let (rows, columns) = matrix(shape)?;
        if let Ok(columns) = columns.to_usize() {
            let features = self.features();
            ensure!(columns >= features, "the trees ask for {features} columns, the input has {columns}");
        }
        Ok(rows)
    }

    /// The aggregated votes of each row; `each` gets a row's scores by target, `None` where no tree voted.
    fn ask(
        &self,
        aggregate: Aggregate,
        input: &Tensor,
        each: impl FnMut(&mut [Option<f64>]) -> TractResult<()>,
    ) -> TractResult<()> {
        let (rows, columns) = rows_and_columns(input.shape())?;
        let features = self.features();
        ensure!(columns >= features, "the trees ask for {features} columns, the input has {columns}");
        let double = input.datum_type() == f64::datum_type();
        match self {
            Self::Single(forest) if double => {
                ask(forest, aggregate, slice::<f64>(input)?, rows, columns, each)
            }
            Self::Single(forest) => {
                let input = input.cast_to::<f32>()?;
                ask(forest, aggregate, slice::<f32>(&input)?, rows, columns, each)
            }
            Self::Double(forest) => {
                let input = input.cast_to::<f64>()?;
                ask(forest, aggregate, slice::<f64>(&input)?, rows, columns, each)
            }
        }
    }
}

fn ask<T: Real, X: Real + From<T>>(
    forest: &Forest<T>,
    aggregate: Aggregate,
    values: &[X],
    rows: usize,
    columns: usize,
    mut each: impl FnMut(&mut [Option<f64>]) -> TractResult<()>,
) -> TractResult<()> {
    let zero = X::from(T::from_f64(0.0));
    let mut votes: Vec<(X, bool)> = vec![(zero, false); forest.targets];
    let mut scores: Vec<Option<f64>> = Vec::with_capacity(forest.targets);
    let mut leaves = Vec::with_capacity(forest.trees());
    let trees = forest.trees() as f64;
    for row in values.chunks_exact(columns).take(rows) {
        votes.fill((zero, false));
        forest.leaves(row, &mut leaves);
        for (target, weight) in leaves.iter().flat_map(|leaf| forest.votes(*leaf)) {
            let weight = X::from(*weight);
            let (score, voted) = &mut votes[*target as usize];
            match aggregate {
                Aggregate::Sum | Aggregate::Average => *score += weight,
                Aggregate::Min if !*voted || weight < *score => *score = weight,
                Aggregate::Max if !*voted || weight > *score => *score = weight,
                Aggregate::Min | Aggregate::Max => {}
            }
            *voted = true;
        }
        let share = if aggregate == Aggregate::Average { trees } else { 1.0 };
        scores.clear();
        scores.extend(votes.iter().map(|(score, voted)| voted.then(|| score.to_f64() / share)));
        each(&mut scores)?;
    }
    Ok(())
}

/// Labels and scores of each row.
#[derive(Debug)]
pub(in super::super) struct Classifier {
    trees: Trees,
    labels: Labels,
    base: Vec<f64>,
    post: Post,
    /// All votes are for one class of two: the other's score follows from it.
    one_sided: bool,
    /// No vote is negative: scores are shares, and one half decides.
    shares: bool,
}

impl FromNode for Classifier {
    fn from_node(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let labels = Labels::of_classes(node)?;
        let classes = width("classlabels", labels.len() as i64)?;
        ensure!(classes > 1, "`classlabels` has one class: nothing to tell apart, which is not supported");
        let (grove, double) = read::by_node(ctx, node, "class", classes)?;
        let (base, _) = numbers(ctx, node, "base_values")?;
        ensure!(base.len() <= classes, "`base_values` has {} elements for {classes} classes", base.len());
        let post = Post::parse(text(node, "post_transform", "NONE")?)?;
        // ONNX Runtime leaves the second score unwritten: there is no answer to agree with.
        ensure!(classes > 2 || post != Post::Probit, "PROBIT of two classes is not supported");
        let first = grove.votes.first().map(|vote| vote.target);
        Ok(Self {
            labels,
            base,
            post,
            one_sided: classes == 2 && grove.votes.iter().all(|vote| Some(vote.target) == first),
            shares: grove.votes.iter().all(|vote| vote.weight >= 0.0),
            trees: Trees::plant(&grove, double)?,
        })
    }
}

impl Classifier {
    /// Finishes one row: its class, and its scores in `out`.
    fn decide(&self, scores: &mut [Option<f64>], out: &mut [f64]) -> usize {
        let [first, second] = scores else {
            for (score, base) in scores.iter_mut().zip(&self.base) {
                *score = Some(score.unwrap_or(0.0) + base);
            }
            let mut best: Option<(usize, f64)> = None;
            for (at, score) in scores.iter().enumerate() {
                if let Some(score) = *score
                    && best.is_none_or(|(_, top)| score > top)
                {
                    best = Some((at, score));
                }
            }
            out.iter_mut().zip(scores).for_each(|(to, score)| *to = score.unwrap_or(0.0));
            self.post.row(out);
            return best.map_or(0, |(at, _)| at);
        };
        let voted = second.is_some();
        match self.base[..] {
            // A pair of margins: only the second base counts, and the first score is its opposite.
            [_, base] if voted => {
                let score = base + first.unwrap_or(0.0);
                *first = first.map(|_| -score);
                *second = Some(score);
            }
            [base, _] | [base] => *first = first.map(|score| score + base),
            _ => {}
        }
        let decisive = second.or(*first).unwrap_or(0.0);
        let shares = self.one_sided && self.shares;
        if voted || self.base.len() == 2 {
            (out[0], out[1]) = (first.unwrap_or(0.0), second.unwrap_or(0.0));
            self.post.row(out);
        } else if self.post == Post::Logistic {
            (out[0], out[1]) = (-decisive, decisive);
            self.post.row(out);
        } else {
            // One score for two classes is not transformed any further.
            (out[0], out[1]) = (if shares { 1.0 - decisive } else { -decisive }, decisive);
        }
        let positive = decisive > if shares { 0.5 } else { 0.0 };
        usize::from(positive)
    }
}

impl Kernel for Classifier {
    fn name(&self) -> &'static str {
        "TreeEnsembleClassifier"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = self.trees.rows(self.name(), inputs)?;
        let scores = tvec!(rows.clone(), self.labels.len().to_dim());
        Ok(tvec!((self.labels.kind(), tvec!(rows)), (f32::datum_type(), scores)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let (rows, _) = rows_and_columns(inputs[0].shape())?;
        let classes = self.labels.len();
        let mut winners = Vec::with_capacity(rows);
        let mut all: Vec<f32> = Vec::with_capacity(rows * classes);
        let mut out = vec![0.0; classes];
        self.trees.ask(Aggregate::Sum, &inputs[0], |scores| {
            winners.push(self.decide(scores, &mut out));
            all.extend(out.iter().map(|score| *score as f32));
            Ok(())
        })?;
        Ok(tvec!(self.labels.pick(&winners)?, tensor(&[rows, classes], all)?))
    }
}

/// One or several numbers for each row.
#[derive(Debug)]
struct Sums {
    trees: Trees,
    aggregate: Aggregate,
    base: Vec<f64>,
    post: Post,
}

impl Sums {
    fn eval<T: Datum>(&self, input: &Tensor, convert: impl Fn(f64) -> T) -> TractResult<TVec<Tensor>> {
        let (rows, _) = rows_and_columns(input.shape())?;
        let targets = self.trees.targets();
        let mut all = Vec::with_capacity(rows * targets);
        let mut out = vec![0.0; targets];
        self.trees.ask(self.aggregate, input, |scores| {
            for (at, (to, score)) in out.iter_mut().zip(scores).enumerate() {
                *to = score.unwrap_or(0.0) + self.base.get(at).copied().unwrap_or(0.0);
            }
            match &mut out[..] {
                [lone] => *lone = self.post.single(*lone),
                several => self.post.row(several),
            }
            all.extend(out.iter().map(|score| convert(*score)));
            Ok(())
        })?;
        Ok(tvec!(tensor(&[rows, targets], all)?))
    }
}

#[derive(Debug)]
pub(in super::super) struct Regressor(Sums);

impl FromNode for Regressor {
    fn from_node(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let targets = width("n_targets", int(node, "n_targets", 1))?;
        let (grove, double) = read::by_node(ctx, node, "target", targets)?;
        let (base, _) = numbers(ctx, node, "base_values")?;
        ensure!(
            base.is_empty() || base.len() == targets,
            "`base_values` has {} elements for {targets} targets",
            base.len()
        );
        let aggregate = match text(node, "aggregate_function", "SUM")? {
            "SUM" => Aggregate::Sum,
            "AVERAGE" => Aggregate::Average,
            "MIN" => Aggregate::Min,
            "MAX" => Aggregate::Max,
            other => bail!("`aggregate_function` is `{other}`, which ONNX does not know"),
        };
        let post = Post::parse(text(node, "post_transform", "NONE")?)?;
        Ok(Self(Sums { trees: Trees::plant(&grove, double)?, aggregate, base, post }))
    }
}

impl Kernel for Regressor {
    fn name(&self) -> &'static str {
        "TreeEnsembleRegressor"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = self.0.trees.rows(self.name(), inputs)?;
        Ok(tvec!((f32::datum_type(), tvec!(rows, self.0.trees.targets().to_dim()))))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        self.0.eval(&inputs[0], |score| score as f32)
    }
}

/// The operator that replaced the two others in ai.onnx.ml 5: its answer has the type of its input.
#[derive(Debug)]
pub(in super::super) struct Ensemble(Sums);

impl FromNode for Ensemble {
    fn from_node(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let grove = read::by_index(ctx, node)?;
        let aggregate = match int(node, "aggregate_function", 1) {
            0 => Aggregate::Average,
            1 => Aggregate::Sum,
            2 => Aggregate::Min,
            3 => Aggregate::Max,
            other => bail!("`aggregate_function` is {other}, not 0 to 3"),
        };
        let post = Post::numbered(int(node, "post_transform", 0))?;
        // In double precision, as tensors come; a FP32 input is compared after widening, which is exact.
        Ok(Self(Sums { trees: Trees::plant(&grove, true)?, aggregate, base: Vec::new(), post }))
    }
}

impl Kernel for Ensemble {
    fn name(&self) -> &'static str {
        "TreeEnsemble"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = self.0.trees.rows(self.name(), inputs)?;
        let kind = inputs[0].0;
        ensure!(kind.is_float(), "TreeEnsemble takes floating-point numbers, not {kind:?}");
        Ok(tvec!((kind, tvec!(rows, self.0.trees.targets().to_dim()))))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        match inputs[0].datum_type() {
            DatumType::F64 => self.0.eval(&inputs[0], |score| score),
            DatumType::F16 => self.0.eval(&inputs[0], f16::from_f64),
            _ => self.0.eval(&inputs[0], |score| score as f32),
        }
    }
}
