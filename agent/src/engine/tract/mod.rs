//! The engine that is always there: tract, pure Rust, no file access of its own.
//!
//! What it insists on, and why (measured on 0.23.9): shapes are concrete when a plan is made (symbolic
//! ones run up to 8.6x slower or fail), every call starts from a fresh state (a reused one remembers
//! the last request), tensors are bound by name, and what tract is known to answer wrongly without an
//! error is refused before tract sees it. Loading reads a file of the store and nothing else: weights
//! in external files are refused.

mod bind;
mod inspect;
mod known_wrong;
mod look;
mod model;
mod ops;
mod plans;
mod tensors;
mod words;

pub use inspect::Inspection;
pub(in crate::engine) use look::{OPSETS, Seen};
pub use model::TractModel;
pub(in crate::engine) use words::{excerpt, is_out_of_memory};

use super::{Engine, LoadError, LoadedModel};
use edgefleet_shared::bundle::Interface;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use tract_onnx::prelude::*;

pub const NAME: &str = "tract";
/// Follows the exact version in the workspace's Cargo.toml; a test compares them.
pub const VERSION: &str = "0.23.9";

/// Looks a model over for an engine that reads it by itself: everything that is checked for tract too,
/// except what tract lacks or computes wrongly.
///
/// # Errors
/// [`LoadError`]: not ONNX, out of bounds, or another interface.
pub(in crate::engine) fn inspect_for(model: &[u8], interface: &Interface) -> Result<Inspection, LoadError> {
    let proto = inspect::decode(model)?;
    let inspection = inspect::inspect(&proto)?;
    bind::agree(&proto, interface)?;
    Ok(inspection)
}

/// The interface that a model file declares by itself.
///
/// # Errors
/// [`LoadError`]: not ONNX, out of bounds, or not declared in full.
pub(in crate::engine) fn declared_interface(model: &[u8]) -> Result<Interface, LoadError> {
    let proto = inspect::decode(model)?;
    inspect::inspect(&proto)?;
    bind::interface(&proto)
}

/// Loads ONNX files with tract. Cheap to make; holds the register of operators.
pub struct TractEngine {
    onnx: tract_onnx::Onnx,
}

impl Default for TractEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl TractEngine {
    pub fn new() -> Self {
        // Files carry symbolic value_info that contradicts concrete shapes.
        let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
        ops::register(&mut onnx.op_register);
        Self { onnx }
    }

    /// Makes tract look at the processor now, by running a matrix product of 2 by 2. On ARM it reads
    /// `/proc/cpuinfo`, which a confined process no longer can: it would choose slower kernels than
    /// the ones that will serve.
    pub fn warm_up(&self) {
        let warm = || -> TractResult<()> {
            let mut model = self.onnx.model_for_proto_model(&product())?;
            let fact = tract_onnx::tract_hir::infer::InferenceFact::dt_shape(DatumType::F32, [2, 2]);
            model.set_input_fact(0, fact)?;
            let input = Tensor::from_shape(&[2, 2], &[1f32; 4])?;
            model.into_optimized()?.into_runnable()?.run(tvec!(input.into_tvalue()))?;
            Ok(())
        };
        if let Err(error) = warm() {
            tracing::warn!("engine {NAME} could not multiply two small matrices: {error:#}");
        }
    }

    /// Counts and checks the graph without preparing it.
    ///
    /// # Errors
    /// As [`TractEngine::load_bytes`].
    pub fn inspect(&self, model: &[u8]) -> Result<Inspection, LoadError> {
        let proto = inspect::decode(model)?;
        let inspection = inspect::inspect(&proto)?;
        known_wrong::check(&proto, &self.onnx)?;
        Ok(inspection)
    }

    /// Loads a model from its bytes; for a confined process that cannot open files.
    ///
    /// # Errors
    /// [`LoadError`] with the node and operator at fault where there is one; panics of the engine
    /// are caught and come back as an error too.
    pub fn load_bytes(
        &self,
        model: Vec<u8>,
        interface: &Interface,
    ) -> Result<(TractModel, Inspection), LoadError> {
        let proto = inspect::decode(&model)?;
        drop(model); // the weights are in `proto` now; two copies would double the peak
        let inspection = inspect::inspect(&proto)?;
        known_wrong::check(&proto, &self.onnx)?;
        let binding = bind::bind(&proto, interface)?;
        let parsed = catch_unwind(AssertUnwindSafe(|| self.onnx.model_for_proto_model(&proto)));
        drop(proto);
        let template = match parsed {
            Ok(Ok(template)) => template,
            Ok(Err(error)) => return Err(words::load_error(&format!("{error:#}"))),
            Err(panic) => return Err(words::load_panic(&*panic)),
        };
        let model = TractModel::prepare(template, interface, &binding, &inspection)?;
        Ok((model, inspection))
    }
}

impl Engine for TractEngine {
    fn name(&self) -> &'static str {
        NAME
    }
    fn version(&self) -> &'static str {
        VERSION
    }
    fn load(&self, model: &Path, interface: &Interface) -> Result<Box<dyn LoadedModel>, LoadError> {
        let (model, _) = self.load_bytes(super::read_model(model)?, interface)?;
        Ok(Box::new(model))
    }
}

/// `y = x x` as a file that any engine takes.
pub(in crate::engine) fn product_file() -> Vec<u8> {
    use prost::Message;
    let opset = tract_onnx::pb::OperatorSetIdProto { domain: String::new(), version: 13 };
    let model = tract_onnx::pb::ModelProto { ir_version: 7, opset_import: vec![opset], ..product() };
    model.encode_to_vec()
}

/// `y = x x`.
fn product() -> tract_onnx::pb::ModelProto {
    use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, type_proto};
    let tensor = type_proto::Tensor { elem_type: 1, shape: None };
    let value = |name: &str| ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor.clone())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let node = NodeProto {
        input: vec!["x".into(), "x".into()],
        output: vec!["y".into()],
        op_type: "MatMul".into(),
        ..Default::default()
    };
    let graph = GraphProto {
        node: vec![node],
        input: vec![value("x")],
        output: vec![value("y")],
        ..Default::default()
    };
    ModelProto { graph: Some(graph), ..Default::default() }
}
