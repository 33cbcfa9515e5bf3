//! A model loaded by ONNX Runtime.

use super::{
    NAME,
    library::Library,
    session::{Answer, Options, Session},
    words,
};
use crate::engine::{LoadError, LoadedModel, RunError, request, tract::excerpt};
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    reported::RefusalCode,
    tensor::Tensor,
};
use std::ffi::CString;

/// A model in memory, shared by all workers; each runs it in its own thread.
pub struct OrtModel {
    session: Session,
    version: &'static str,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
}

impl OrtModel {
    pub(super) fn prepare(
        library: &'static Library,
        threads: usize,
        model: &[u8],
        interface: &Interface,
    ) -> Result<Self, LoadError> {
        let names = |specs: &[TensorSpec]| -> Result<Vec<CString>, LoadError> {
            specs.iter().map(|spec| CString::new(spec.name.as_str()).map_err(|_| unnameable(spec))).collect()
        };
        let (input_names, output_names) = (names(&interface.inputs)?, names(&interface.outputs)?);
        let steady = interface.inputs.iter().all(|spec| spec.shape.iter().skip(1).all(|dim| *dim >= 0));
        let session = Session::new(library, model, Options { threads, steady })
            .map_err(|said| words::load_error(library.version, &said))?;
        Ok(Self {
            session,
            version: library.version,
            inputs: interface.inputs.clone(),
            outputs: interface.outputs.clone(),
            input_names,
            output_names,
        })
    }

    fn failed(&self, words: &str) -> RunError {
        RunError::Engine(format!("engine {NAME} {} failed: {}", self.version, excerpt(words)))
    }

    fn named(&self, spec: &TensorSpec, answer: Answer) -> Result<Tensor, RunError> {
        let Answer { datatype, shape, data } = answer;
        if datatype != Some(spec.datatype) || !request::fits(&shape, &spec.shape) {
            let found = datatype.map_or("of a type the protocol lacks", |datatype| datatype.as_str());
            return Err(self.failed(&format!(
                "output `{}` came out as {found} {shape:?}, the interface says {} {:?}",
                spec.name, spec.datatype, spec.shape
            )));
        }
        Tensor::new(spec.name.clone(), spec.datatype, shape, data).map_err(|e| self.failed(&e.to_string()))
    }
}

impl LoadedModel for OrtModel {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let (inputs, _) = request::accept(self.inputs.iter(), inputs)?;
        let answers = self.session.run(&self.input_names, &inputs, &self.output_names);
        let answers = answers.map_err(|words| self.failed(&words))?;
        self.outputs.iter().zip(answers).map(|(spec, answer)| self.named(spec, answer)).collect()
    }
}

fn unnameable(spec: &TensorSpec) -> LoadError {
    LoadError {
        code: RefusalCode::InterfaceMismatch,
        message: format!(
            "tensor {:?} has a zero byte in its name, which ONNX Runtime cannot take",
            spec.name
        ),
        node: None,
        op: None,
    }
}
