//! Support vector machines, as scikit-learn's SVC, SVR and OneClassSVM export them.
//!
//! Source: ONNX operators for ML; the coupling of pairwise probabilities is that of Wu, Lin and Weng (2004),
//! "Probability Estimates for Multi-class Classification by Pairwise Coupling", algorithm 2, with the
//! constants of libsvm.

use super::{
    attributes::{MAX_WIDTH, floats, int, ints, same_length, text},
    kernel::{Fact, FromNode, Kernel, matrix, rows_and_columns, slice, tensor},
    labels::Labels,
    linear::dot,
    scores::logistic,
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// Rounds of the coupling at most, and how near it must come for each class.
const MAX_ROUNDS: usize = 100;
const NEARNESS: f64 = 0.005;

#[derive(Clone, Copy, Debug)]
enum Similarity {
    Linear,
    Poly,
    Rbf,
    Sigmoid,
}

/// Support vectors and how a row is compared with them.
#[derive(Debug)]
struct Supports {
    vectors: Vec<f32>,
    columns: usize,
    similarity: Similarity,
    gamma: f32,
    coef0: f32,
    degree: f32,
}

impl Supports {
    fn new(node: &NodeProto, count: usize) -> TractResult<Self> {
        let vectors = floats(node, "support_vectors").to_vec();
        let columns = vectors.len().checked_div(count).unwrap_or(0);
        ensure!(
            columns > 0 && columns * count == vectors.len(),
            "`support_vectors` has {} elements, no multiple of {count} vectors",
            vectors.len()
        );
        let similarity = match text(node, "kernel_type", "LINEAR")? {
            "LINEAR" => Similarity::Linear,
            "POLY" => Similarity::Poly,
            "RBF" => Similarity::Rbf,
            "SIGMOID" => Similarity::Sigmoid,
            other => bail!("`kernel_type` is `{other}`, which ONNX does not know"),
        };
        let (gamma, coef0, degree) = match floats(node, "kernel_params") {
            [] => (0.0, 0.0, 0.0),
            [gamma, coef0, degree] => (*gamma, *coef0, *degree),
            other => bail!("`kernel_params` has {} elements, not 3", other.len()),
        };
        let transform = text(node, "post_transform", "NONE")?;
        ensure!(transform == "NONE", "`post_transform` {transform} of support vectors is not supported");
        Ok(Self { vectors, columns, similarity, gamma, coef0, degree })
    }

    fn rows(&self, op: &str, inputs: &[Fact]) -> TractResult<TDim> {
        let [(kind, shape)] = inputs else { bail!("{op} takes one input, not {}", inputs.len()) };
        ensure!(kind.is_number(), "{op} takes numbers, not {kind:?}");
        let (rows, columns) = matrix(shape)?;
        let own = self.columns;
        ensure!(columns == own.to_dim(), "the support vectors have {own} columns, the input has {columns}");
        Ok(rows)
    }

    /// Each row's similarity to each vector.
    fn ask(&self, input: &Tensor, mut each: impl FnMut(&[f32])) -> TractResult<usize> {
        let (rows, columns) = rows_and_columns(input.shape())?;
        ensure!(columns == self.columns, "{columns} columns for vectors of {}", self.columns);
        let input = input.cast_to::<f32>()?;
        let mut near = Vec::new();
        for row in slice::<f32>(&input)?.chunks_exact(columns) {
            near.clear();
            near.extend(self.vectors.chunks_exact(columns).map(|vector| match self.similarity {
                Similarity::Linear => dot(row, vector),
                Similarity::Poly => (self.gamma * dot(row, vector) + self.coef0).powf(self.degree),
                Similarity::Sigmoid => (self.gamma * dot(row, vector) + self.coef0).tanh(),
                Similarity::Rbf => {
                    let apart: f32 = row.iter().zip(vector).map(|(a, b)| (a - b) * (a - b)).sum();
                    (-self.gamma * apart).exp()
                }
            }));
            each(&near);
        }
        Ok(rows)
    }
}

#[derive(Debug)]
pub(super) struct Regressor {
    supports: Supports,
    coefficients: Vec<f32>,
    rho: f32,
    /// Only the side of the boundary: 1 or -1.
    one_class: bool,
}

impl FromNode for Regressor {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let coefficients = floats(node, "coefficients").to_vec();
        let count = int(node, "n_supports", 0);
        ensure!(count > 0, "SVMRegressor without support vectors is not supported");
        let given = i64::try_from(coefficients.len())?;
        ensure!(given == count, "`coefficients` has {given} elements for {count} vectors");
        let [rho] = floats(node, "rho") else { bail!("`rho` has not one element") };
        let one_class = int(node, "one_class", 0) != 0;
        Ok(Self { supports: Supports::new(node, coefficients.len())?, coefficients, rho: *rho, one_class })
    }
}

impl Kernel for Regressor {
    fn name(&self) -> &'static str {
        "SVMRegressor"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = self.supports.rows(self.name(), inputs)?;
        Ok(tvec!((f32::datum_type(), tvec!(rows, 1.to_dim()))))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let mut all = Vec::new();
        let rows = self.supports.ask(&inputs[0], |near| {
            let sum = dot(near, &self.coefficients) + self.rho;
            let side = if sum > 0.0 { 1.0 } else { -1.0 };
            all.push(if self.one_class { side } else { sum });
        })?;
        Ok(tvec!(tensor(&[rows, 1], all)?))
    }
}

/// Every pair of classes votes; probabilities couple the pairs.
#[derive(Debug)]
pub(super) struct Classifier {
    supports: Supports,
    labels: Labels,
    /// Where each class's vectors begin, and where the last ends.
    starts: Vec<usize>,
    /// A row of one per vector, for each other class.
    coefficients: Vec<f32>,
    /// One for each pair of classes.
    rho: Vec<f32>,
    /// Slope and offset of each pair's probability, or nothing.
    probabilities: Vec<(f32, f32)>,
}

impl FromNode for Classifier {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let labels = Labels::of_classes(node)?;
        let classes = labels.len();
        // Scores are as many as there are pairs.
        ensure!((2..=256).contains(&classes), "{classes} classes, not 2 to 256, are not supported");
        let sizes = ints(node, "vectors_per_class");
        ensure!(!sizes.is_empty(), "SVMClassifier without support vectors is not supported");
        same_length(&[("classlabels", classes), ("vectors_per_class", sizes.len())])?;
        let coefficients = floats(node, "coefficients").to_vec();
        let mut starts = vec![0usize];
        for size in sizes {
            let last = starts.last().copied().unwrap_or(0);
            let next = usize::try_from(*size).ok().and_then(|size| last.checked_add(size));
            let next = next.filter(|next| *next <= coefficients.len());
            starts.push(next.with_context(|| format!("`vectors_per_class` has {size}, which cannot be"))?);
        }
        let count = starts.last().copied().unwrap_or(0);
        ensure!(count <= MAX_WIDTH * 16, "{count} support vectors are too many");
        let pairs = classes * (classes - 1) / 2;
        let rho = floats(node, "rho").to_vec();
        let wanted = (classes - 1) * count;
        ensure!(
            coefficients.len() == wanted,
            "`coefficients` has {} elements, not {wanted}",
            coefficients.len()
        );
        ensure!(rho.len() == pairs, "`rho` has {} elements for {pairs} pairs of classes", rho.len());
        let (a, b) = (floats(node, "prob_a"), floats(node, "prob_b"));
        let given = same_length(&[("prob_a", a.len()), ("prob_b", b.len())])?;
        ensure!(given == 0 || given == pairs, "`prob_a` has {given} elements for {pairs} pairs of classes");
        let probabilities = a.iter().copied().zip(b.iter().copied()).collect();
        Ok(Self { supports: Supports::new(node, count)?, labels, starts, coefficients, rho, probabilities })
    }
}

impl Classifier {
    fn columns(&self) -> usize {
        match self.labels.len() {
            classes if !self.probabilities.is_empty() => classes,
            2 => 2,
            _ => self.rho.len(),
        }
    }

    /// The decision of each pair of classes, in the order (0, 1), (0, 2), ... (1, 2), ...
    fn pairs(&self, near: &[f32], decisions: &mut Vec<f32>, votes: &mut [usize]) {
        decisions.clear();
        let classes = self.labels.len();
        for one in 0..classes {
            for other in one + 1..classes {
                let part = |of: usize, row: usize| -> f64 {
                    let range = self.starts[of]..self.starts[of + 1];
                    let weights = &self.coefficients[row * near.len()..(row + 1) * near.len()];
                    let pairs = weights[range.clone()].iter().zip(&near[range]);
                    pairs.map(|(weight, near)| f64::from(weight * near)).sum()
                };
                let sum = part(one, other - 1) + part(other, one) + f64::from(self.rho[decisions.len()]);
                decisions.push(sum as f32);
                votes[if sum > 0.0 { one } else { other }] += 1;
            }
        }
    }

    /// One probability per class out of those of the pairs.
    #[allow(clippy::needless_range_loop, reason = "written as the paper has it")]
    fn couple(&self, decisions: &[f32]) -> Vec<f64> {
        let classes = self.labels.len();
        let mut r = vec![0f64; classes * classes];
        let mut pair = decisions.iter().zip(&self.probabilities);
        for one in 0..classes {
            for other in one + 1..classes {
                let Some((decision, (a, b))) = pair.next() else { break };
                let p = 1.0 - logistic(f64::from(decision * a + b));
                let p = p.clamp(1e-7, 1.0 - 1e-7);
                (r[one * classes + other], r[other * classes + one]) = (p, 1.0 - p);
            }
        }
        let at = |i: usize, j: usize| r[i * classes + j];
        let q = |i: usize, j: usize| -> f64 {
            if i == j {
                (0..classes).filter(|k| *k != i).map(|k| at(k, i) * at(k, i)).sum()
            } else {
                -at(j, i) * at(i, j)
            }
        };
        let q: Vec<f64> = (0..classes * classes).map(|n| q(n / classes, n % classes)).collect();
        let mut p = vec![1.0 / classes as f64; classes];
        for _ in 0..MAX_ROUNDS {
            let mut qp: Vec<f64> =
                q.chunks_exact(classes).map(|row| row.iter().zip(&p).map(|(q, p)| q * p).sum()).collect();
            let mut pqp: f64 = p.iter().zip(&qp).map(|(p, qp)| p * qp).sum();
            let error = qp.iter().map(|qp| (qp - pqp).abs()).fold(0.0, f64::max);
            if error < NEARNESS / classes as f64 {
                break;
            }
            for i in 0..classes {
                let own = q[i * classes + i];
                let step = (pqp - qp[i]) / own;
                p[i] += step;
                pqp = (pqp + step * (step * own + 2.0 * qp[i])) / (1.0 + step) / (1.0 + step);
                for j in 0..classes {
                    qp[j] = (qp[j] + step * q[i * classes + j]) / (1.0 + step);
                    p[j] /= 1.0 + step;
                }
            }
        }
        p
    }
}

impl Kernel for Classifier {
    fn name(&self) -> &'static str {
        "SVMClassifier"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = self.supports.rows(self.name(), inputs)?;
        let scores = tvec!(rows.clone(), self.columns().to_dim());
        Ok(tvec!((self.labels.kind(), tvec!(rows)), (f32::datum_type(), scores)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let (mut winners, mut all) = (Vec::new(), Vec::new());
        let mut decisions = Vec::with_capacity(self.rho.len());
        let mut votes = vec![0; self.labels.len()];
        let rows = self.supports.ask(&inputs[0], |near| {
            votes.fill(0);
            self.pairs(near, &mut decisions, &mut votes);
            // The first of those with the most votes.
            let most = votes.iter().max().copied().unwrap_or(0);
            winners.push(votes.iter().position(|votes| *votes == most).unwrap_or(0));
            match (self.probabilities.is_empty(), &decisions[..]) {
                (false, _) => all.extend(self.couple(&decisions).into_iter().map(|p| p as f32)),
                (true, [lone]) => all.extend([-lone, *lone]),
                (true, pairs) => all.extend_from_slice(pairs),
            }
        })?;
        Ok(tvec!(self.labels.pick(&winners)?, tensor(&[rows, self.columns()], all)?))
    }
}
