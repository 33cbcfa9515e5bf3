//! `If`, as exports use it.
//!
//! tract's own analyses and keeps both branches even where the condition is a constant, so a branch that is
//! never taken and does not fit the shapes makes the model fail; and it prepares the chosen branch anew in
//! every call (15 times ONNX Runtime's time on a small model). Here a constant condition leaves only its
//! branch, inlined; otherwise both are prepared once, and one that does not fit the shapes becomes an error
//! of the request that asks for it.

use super::super::inspect::{attribute, node_name};
use super::kernel::{Built, building};
use std::sync::Arc;
use tract_onnx::{
    model::{ParseResult, ParsingContext},
    pb::NodeProto,
    tract_hir::{infer::Factoid, internal::*},
};

/// One branch: a graph whose inputs are values around it.
#[derive(Clone, Debug)]
struct Body {
    model: InferenceModel,
    /// For each input of `model`, the input of the operator it is.
    inputs: Vec<usize>,
}

impl Body {
    /// Types and shapes of its outputs, given those of the operator's inputs.
    fn outputs(&self, inputs: &[InferenceFact]) -> TractResult<TVec<InferenceFact>> {
        let mut model = self.model.clone();
        for (at, outer) in self.inputs.iter().enumerate() {
            model.set_input_fact(at, inputs[*outer].clone())?;
        }
        model.analyse(false)?;
        (0..model.outputs.len()).map(|at| Ok(model.output_fact(at)?.clone().without_value())).collect()
    }

    /// With the constants of the graph around it put inside, and the inputs that remain.
    fn typed(&self, inputs: &[TypedFact]) -> TractResult<(TypedModel, Vec<usize>)> {
        let mut model = self.model.clone();
        let outlets = model.input_outlets()?.to_vec();
        let (mut open, mut remaining) = (Vec::new(), Vec::new());
        for (outlet, outer) in outlets.iter().zip(&self.inputs) {
            let fact = &inputs[*outer];
            match &fact.konst {
                Some(value) => {
                    let constant = tract_onnx::tract_hir::ops::konst::Const::new(value.clone())?;
                    model.node_mut(outlet.node).op = Box::new(constant);
                    model.set_outlet_fact(*outlet, InferenceFact::from(value.as_ref().clone()))?;
                }
                None => {
                    model.set_outlet_fact(*outlet, InferenceFact::from(fact))?;
                    open.push(*outlet);
                    remaining.push(*outer);
                }
            }
        }
        model.set_input_outlets(&open)?;
        Ok((model.into_typed()?.into_decluttered()?, remaining))
    }
}

pub(super) fn build(ctx: &ParsingContext, node: &NodeProto) -> Built {
    read(ctx, node).with_context(|| building(node))
}

fn read(ctx: &ParsingContext, node: &NodeProto) -> Built {
    let mut outer: Vec<String> = Vec::new();
    let mut body = |name: &str| -> TractResult<Body> {
        let graph = attribute(node, name).and_then(|a| a.g.as_ref());
        let graph = graph.with_context(|| format!("`{name}` is missing"))?;
        let ParseResult { model, unresolved_inputs, .. } = ctx.parse_graph(graph)?;
        ensure!(
            model.input_outlets()?.len() == unresolved_inputs.len(),
            "`{name}` has inputs of its own, a branch has none"
        );
        let slot = |name: &String| match outer.iter().position(|known| known == name) {
            Some(at) => at + 1,
            None => {
                outer.push(name.clone());
                outer.len()
            }
        };
        Ok(Body { inputs: unresolved_inputs.iter().map(slot).collect(), model })
    };
    let bodies = [body("else_branch")?, body("then_branch")?];
    let outputs = node.output.len();
    for body in &bodies {
        let found = body.model.outputs.len();
        ensure!(found == outputs, "a branch has {found} outputs, the node {outputs}");
    }
    Ok((Box::new(If { bodies, outputs, name: node_name(node).to_owned() }), outer))
}

#[derive(Clone, Debug)]
struct If {
    /// Taken if the condition is false, if it is true.
    bodies: [Body; 2],
    outputs: usize,
    name: String,
}

impl PartialEq for If {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}
impl Eq for If {}

impl Op for If {
    fn name(&self) -> StaticName {
        "If".into()
    }
    fn as_typed(&self) -> Option<&dyn TypedOp> {
        None
    }
}

impl EvalOp for If {
    fn eval_out_of_plan(&self, _inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        Ok(None)
    }
}

impl If {
    /// What comes out, as far as the inputs tell.
    fn made(&self, inputs: &[InferenceFact]) -> TractResult<TVec<InferenceFact>> {
        if let Some(condition) = inputs[0].value.concretize() {
            return self.bodies[usize::from(truth(&condition)?)].outputs(inputs);
        }
        let [no, yes] = self.bodies.each_ref().map(|body| body.outputs(inputs));
        match (no, yes) {
            (Ok(no), Ok(yes)) => {
                for (at, (no, yes)) in no.iter().zip(&yes).enumerate() {
                    ensure!(
                        no.datum_type == yes.datum_type && no.shape == yes.shape,
                        "output {at} is {:?} {:?} or {:?} {:?}, as an open condition tells: not supported",
                        yes.datum_type,
                        yes.shape,
                        no.datum_type,
                        no.shape
                    );
                }
                Ok(yes)
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(error), Err(_)) => Err(error),
        }
    }
}

fn truth(condition: &Tensor) -> TractResult<bool> {
    ensure!(condition.len() == 1, "the condition has {} elements, not one", condition.len());
    condition.cast_to_scalar::<bool>()
}

impl InferenceOp for If {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let mut inputs: TVec<InferenceFact> = inputs.into_iter().cloned().collect();
        let mut outputs: TVec<InferenceFact> = outputs.into_iter().cloned().collect();
        inputs[0].datum_type.unify_with(&bool::datum_type().into())?;
        let known = |fact: &InferenceFact| fact.datum_type.is_concrete() && fact.shape.is_concrete();
        if inputs[1..].iter().all(known) {
            for (output, made) in outputs.iter_mut().zip(self.made(&inputs)?) {
                output.unify_with(&made)?;
            }
        }
        Ok((inputs, outputs, observed.into_iter().cloned().collect()))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs)
    }

    fn to_typed(
        &self,
        _source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| mapping[outlet]).collect();
        let facts: Vec<TypedFact> =
            inputs.iter().map(|outlet| target.outlet_fact(*outlet).cloned()).collect::<TractResult<_>>()?;
        if let Some(condition) = &facts[0].konst {
            let (body, open) = self.bodies[usize::from(truth(condition)?)].typed(&facts)?;
            let outer: Vec<OutletId> = open.iter().map(|at| inputs[*at]).collect();
            return inline(&node.name, &body, &outer, target);
        }
        let arms = self.bodies.each_ref().map(|body| Arm::new(body, &facts));
        let op = Branch { arms: Arc::new(arms), name: self.name.clone() };
        target.wire_node(&node.name, op, &inputs)
    }

    as_op!();
}

/// Copies the nodes of `body` into `target`; `inputs` are what its inputs are there.
fn inline(
    prefix: &str,
    body: &TypedModel,
    inputs: &[OutletId],
    target: &mut TypedModel,
) -> TractResult<TVec<OutletId>> {
    let mut places: HashMap<OutletId, OutletId> =
        body.input_outlets()?.iter().copied().zip(inputs.iter().copied()).collect();
    for id in body.eval_order()? {
        let node = body.node(id);
        if places.contains_key(&id.into()) {
            continue;
        }
        let inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| places[outlet]).collect();
        let made = target.wire_node(format!("{prefix}.{}", node.name), node.op.clone(), &inputs)?;
        for (slot, outlet) in made.into_iter().enumerate() {
            places.insert(OutletId::new(id, slot), outlet);
        }
    }
    Ok(body.output_outlets()?.iter().map(|outlet| places[outlet]).collect())
}

/// A branch, prepared; or why it cannot be.
#[derive(Debug)]
enum Arm {
    Ready { plan: Arc<TypedSimplePlan>, inputs: Vec<usize>, facts: Vec<TypedFact> },
    Unfit(String),
}

impl Arm {
    fn new(body: &Body, facts: &[TypedFact]) -> Self {
        let prepare = || -> TractResult<Self> {
            let (model, inputs) = body.typed(facts)?;
            let outputs = (0..model.outputs.len()).map(|at| Ok(model.output_fact(at)?.without_value()));
            let facts = outputs.collect::<TractResult<_>>()?;
            let plan = TypedSimplePlan::new(model.into_optimized()?)?;
            Ok(Self::Ready { plan, inputs, facts })
        };
        prepare().unwrap_or_else(|error| Self::Unfit(format!("{error:#}")))
    }
}

/// Runs one of two prepared branches.
#[derive(Clone, Debug)]
struct Branch {
    arms: Arc<[Arm; 2]>,
    name: String,
}

impl PartialEq for Branch {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.arms, &other.arms)
    }
}
impl Eq for Branch {}

impl Op for Branch {
    fn name(&self) -> StaticName {
        "If".into()
    }
    fn as_typed(&self) -> Option<&dyn TypedOp> {
        Some(self)
    }
}

impl EvalOp for Branch {
    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        match &self.arms[usize::from(truth(&inputs[0])?)] {
            // A fresh state each time, as for the model as a whole.
            Arm::Ready { plan, inputs: slots, .. } => {
                plan.run(slots.iter().map(|at| inputs[*at].clone()).collect())
            }
            Arm::Unfit(why) => {
                bail!("If `{}` took the branch that does not fit the inputs: {why}", self.name)
            }
        }
    }
    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        EvalOp::eval(self, &EvalContext::out_of_plan(), inputs).map(Some)
    }
}

impl TypedOp for Branch {
    fn as_op(&self) -> &dyn Op {
        self
    }
    fn as_op_mut(&mut self) -> &mut dyn Op {
        self
    }
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        match &*self.arms {
            [Arm::Ready { facts: no, .. }, Arm::Ready { facts: yes, .. }] => {
                for (at, (no, yes)) in no.iter().zip(yes).enumerate() {
                    let same = no.datum_type == yes.datum_type && no.shape == yes.shape;
                    ensure!(same, "output {at} of the branches differs: {yes:?} and {no:?}, not supported");
                }
                Ok(yes.iter().cloned().collect())
            }
            [_, Arm::Ready { facts, .. }] | [Arm::Ready { facts, .. }, _] => {
                Ok(facts.iter().cloned().collect())
            }
            [Arm::Unfit(why), _] => bail!("neither branch fits the inputs: {why}"),
        }
    }
}
