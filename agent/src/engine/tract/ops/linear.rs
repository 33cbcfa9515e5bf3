//! LinearClassifier and LinearRegressor: tract's own lack two transforms and some layouts of two classes.

use super::{
    attributes::{floats, int, text, width},
    kernel::{Fact, FromNode, Kernel, matrix, rows_and_columns, slice, tensor},
    labels::Labels,
    scores::Post,
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// `targets` rows of coefficients, one for each column of the input.
#[derive(Debug)]
struct Linear {
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    columns: usize,
    post: Post,
}

impl Linear {
    fn new(node: &NodeProto, targets: usize) -> TractResult<Self> {
        let coefficients = floats(node, "coefficients").to_vec();
        let columns = coefficients.len() / targets;
        ensure!(
            columns > 0 && columns * targets == coefficients.len(),
            "`coefficients` has {} elements, no multiple of {targets} targets",
            coefficients.len()
        );
        let mut intercepts = floats(node, "intercepts").to_vec();
        if intercepts.is_empty() {
            intercepts.resize(targets, 0.0);
        }
        ensure!(
            intercepts.len() == targets,
            "`intercepts` has {} elements for {targets} targets",
            intercepts.len()
        );
        let post = Post::parse(text(node, "post_transform", "NONE")?)?;
        Ok(Self { coefficients, intercepts, columns, post })
    }

    fn rows(&self, op: &str, inputs: &[Fact]) -> TractResult<TDim> {
        let [(kind, shape)] = inputs else { bail!("{op} takes one input, not {}", inputs.len()) };
        ensure!(kind.is_number(), "{op} takes numbers, not {kind:?}");
        let (rows, columns) = matrix(shape)?;
        ensure!(
            columns == self.columns.to_dim(),
            "{} coefficients for each target, but the input has {columns} columns",
            self.columns
        );
        Ok(rows)
    }

    /// Sums of each row, by target.
    fn ask(&self, input: &Tensor, mut each: impl FnMut(&[f32])) -> TractResult<usize> {
        let (rows, columns) = rows_and_columns(input.shape())?;
        ensure!(columns == self.columns, "{columns} columns for {} coefficients", self.columns);
        let input = input.cast_to::<f32>()?;
        let mut sums = vec![0f32; self.intercepts.len()];
        for row in slice::<f32>(&input)?.chunks_exact(columns) {
            let targets = self.coefficients.chunks_exact(columns).zip(&self.intercepts);
            for (sum, (weights, intercept)) in sums.iter_mut().zip(targets) {
                *sum = dot(row, weights) + intercept;
            }
            each(&sums);
        }
        Ok(rows)
    }
}

/// Eight sums at once: a single one would wait for each addition before the next.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0f32; 8];
    for (a, b) in a8.iter().zip(b8) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[derive(Debug)]
pub(super) struct Classifier {
    linear: Linear,
    labels: Labels,
}

impl FromNode for Classifier {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let labels = Labels::of_classes(node)?;
        let classes = width("classlabels", labels.len() as i64)?;
        // Two classes may share one row of coefficients.
        let targets = match floats(node, "intercepts").len() {
            0 => classes,
            given => given,
        };
        ensure!(
            targets == classes || (targets == 1 && classes == 2),
            "`intercepts` has {targets} elements for {classes} classes"
        );
        let linear = Linear::new(node, targets)?;
        ensure!(
            targets > 1 || linear.post != Post::Probit,
            "PROBIT of one score for two classes is not supported"
        );
        Ok(Self { linear, labels })
    }
}

impl Kernel for Classifier {
    fn name(&self) -> &'static str {
        "LinearClassifier"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = self.linear.rows(self.name(), inputs)?;
        let scores = tvec!(rows.clone(), self.labels.len().to_dim());
        Ok(tvec!((self.labels.kind(), tvec!(rows)), (f32::datum_type(), scores)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let post = self.linear.post;
        let (mut winners, mut all) = (Vec::new(), Vec::new());
        let mut out = vec![0f64; self.labels.len()];
        let rows = self.linear.ask(&inputs[0], |sums| {
            match (sums, &mut out[..]) {
                ([lone], [negative, positive]) => {
                    winners.push(usize::from(*lone > 0.0));
                    (*negative, *positive) = match post {
                        Post::Logistic => {
                            let positive = super::scores::logistic(f64::from(*lone));
                            (1.0 - positive, positive)
                        }
                        _ => (1.0 - f64::from(*lone), f64::from(*lone)),
                    };
                }
                (sums, out) => {
                    let mut best = 0;
                    for (at, sum) in sums.iter().enumerate() {
                        if *sum > sums[best] {
                            best = at;
                        }
                    }
                    winners.push(best);
                    out.iter_mut().zip(sums).for_each(|(to, sum)| *to = f64::from(*sum));
                    post.row(out);
                }
            }
            all.extend(out.iter().map(|score| *score as f32));
        })?;
        Ok(tvec!(self.labels.pick(&winners)?, tensor(&[rows, self.labels.len()], all)?))
    }
}

#[derive(Debug)]
pub(super) struct Regressor {
    linear: Linear,
    targets: usize,
}

impl FromNode for Regressor {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let targets = width("targets", int(node, "targets", 1))?;
        Ok(Self { linear: Linear::new(node, targets)?, targets })
    }
}

impl Kernel for Regressor {
    fn name(&self) -> &'static str {
        "LinearRegressor"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let rows = self.linear.rows(self.name(), inputs)?;
        Ok(tvec!((f32::datum_type(), tvec!(rows, self.targets.to_dim()))))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let mut all = Vec::new();
        let mut out = vec![0f64; self.targets];
        let rows = self.linear.ask(&inputs[0], |sums| {
            out.iter_mut().zip(sums).for_each(|(to, sum)| *to = f64::from(*sum));
            match &mut out[..] {
                [lone] => *lone = self.linear.post.single(*lone),
                several => self.linear.post.row(several),
            }
            all.extend(out.iter().map(|score| *score as f32));
        })?;
        Ok(tvec!(tensor(&[rows, self.targets], all)?))
    }
}
