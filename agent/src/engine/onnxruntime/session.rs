//! The unsafe half of a loaded model: sessions and tensors of ONNX Runtime as owned Rust values.
#![allow(unsafe_code)]

use super::{
    library::{Library, check},
    tensors,
};
use bytes::Bytes;
use edgefleet_shared::tensor::{Datatype, Tensor};
use ort_sys::{
    ExecutionMode, GraphOptimizationLevel, ONNXTensorElementDataType, ONNXType, OrtAllocator, OrtSession,
    OrtSessionOptions, OrtTensorTypeAndShapeInfo, OrtValue,
};
use std::{
    ffi::{CString, c_void},
    ptr::{NonNull, null, null_mut},
};

/// Largest rank an answer may have; the interface allows 8.
const MAX_RANK: usize = 64;

/// How a session computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// Threads of one inference, the caller's among them.
    pub(super) threads: usize,
    /// Every request has the same shapes, up to the batch: then memory is planned ahead.
    pub(super) steady: bool,
}

/// A prepared model. Runs may overlap.
pub(super) struct Session {
    library: &'static Library,
    session: NonNull<OrtSession>,
}

// SAFETY: ONNX Runtime documents `Run` as callable from several threads on one session at once; nothing
// else is called on it until it is dropped.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: made by CreateSession, released once.
        unsafe { (self.library.api.ReleaseSession)(self.session.as_ptr()) }
    }
}

struct SessionOptions {
    library: &'static Library,
    options: *mut OrtSessionOptions,
}

impl Drop for SessionOptions {
    fn drop(&mut self) {
        // SAFETY: made by CreateSessionOptions, released once; null is allowed.
        unsafe { (self.library.api.ReleaseSessionOptions)(self.options) }
    }
}

impl SessionOptions {
    fn new(library: &'static Library, wanted: Options) -> Result<Self, String> {
        let api = library.api;
        let mut made = Self { library, options: null_mut() };
        let threads = i32::try_from(wanted.threads.max(1)).unwrap_or(1);
        // Threads that wait by spinning do so only while a run goes on: between requests a device sleeps.
        // The other format of models is a binary table that nobody has checked here.
        let entries = [(c"session.force_spinning_stop", c"1"), (c"session.load_model_format", c"ONNX")];
        // SAFETY: the options are valid from their creation on; texts are constants that end with a zero.
        unsafe {
            check(api, (api.CreateSessionOptions)(&mut made.options))?;
            let options = made.options;
            check(api, (api.SetIntraOpNumThreads)(options, threads))?;
            check(api, (api.SetInterOpNumThreads)(options, 1))?;
            check(api, (api.SetSessionExecutionMode)(options, ExecutionMode::ORT_SEQUENTIAL))?;
            let level = GraphOptimizationLevel::ORT_ENABLE_ALL;
            check(api, (api.SetSessionGraphOptimizationLevel)(options, level))?;
            check(api, (api.EnableCpuMemArena)(options))?;
            check(
                api,
                match wanted.steady {
                    true => (api.EnableMemPattern)(options),
                    false => (api.DisableMemPattern)(options),
                },
            )?;
            for (key, value) in entries {
                check(api, (api.AddSessionConfigEntry)(options, key.as_ptr(), value.as_ptr()))?;
            }
        }
        Ok(made)
    }
}

impl Session {
    /// # Errors
    /// ONNX Runtime's words.
    pub(super) fn new(library: &'static Library, model: &[u8], wanted: Options) -> Result<Self, String> {
        let options = SessionOptions::new(library, wanted)?;
        let api = library.api;
        let mut session = null_mut();
        // SAFETY: environment and options are valid; the model's bytes are only read during the call.
        let status = unsafe {
            let (data, len) = (model.as_ptr().cast::<c_void>(), model.len());
            (api.CreateSessionFromArray)(library.env.as_ptr(), data, len, options.options, &mut session)
        };
        check(api, status)?;
        let session = NonNull::new(session).ok_or("it gave out no session")?;
        Ok(Self { library, session })
    }

    /// One run. `inputs` and `outputs` are named alongside; answers come in the order of `outputs`.
    ///
    /// # Errors
    /// ONNX Runtime's words; the session stays usable.
    pub(super) fn run(
        &self,
        input_names: &[CString],
        inputs: &[&Tensor],
        output_names: &[CString],
    ) -> Result<Vec<Answer>, String> {
        let api = self.library.api;
        let inputs: Vec<Given> =
            inputs.iter().map(|t| Given::new(self.library, t)).collect::<Result<_, _>>()?;
        let values: Vec<*const OrtValue> = inputs.iter().map(|v| v.value.pointer.cast_const()).collect();
        let names = |names: &[CString]| names.iter().map(|n| n.as_ptr()).collect::<Vec<_>>();
        let (input_names, output_names) = (names(input_names), names(output_names));
        let mut outputs = vec![null_mut::<OrtValue>(); output_names.len()];
        // SAFETY: all arrays have the lengths told and live through the call, like what they point to;
        // null for each output lets ONNX Runtime make it.
        let status = unsafe {
            (api.Run)(
                self.session.as_ptr(),
                null(),
                input_names.as_ptr(),
                values.as_ptr(),
                values.len().min(input_names.len()),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            )
        };
        // Owned first, so that they are freed whatever comes.
        let outputs: Vec<Value> =
            outputs.into_iter().map(|pointer| Value { library: self.library, pointer }).collect();
        check(api, status)?;
        outputs.iter().map(Value::read).collect()
    }
}

/// A tensor that came out.
pub(super) struct Answer {
    /// `None` if the protocol has no such type.
    pub(super) datatype: Option<Datatype>,
    pub(super) shape: Vec<usize>,
    pub(super) data: Bytes,
}

struct Value {
    library: &'static Library,
    pointer: *mut OrtValue,
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: owned here, released once; null is allowed.
        unsafe { (self.library.api.ReleaseValue)(self.pointer) }
    }
}

/// An input with the memory it points into.
struct Given {
    value: Value,
    /// The tensor's bytes; where they did not lie as their type needs it, an aligned copy.
    _data: Option<Vec<u64>>,
}

impl Given {
    fn new(library: &'static Library, tensor: &Tensor) -> Result<Self, String> {
        let shape: Vec<i64> = tensor
            .shape()
            .iter()
            .map(|dim| i64::try_from(*dim).map_err(|_| format!("dimension {dim} is too large")))
            .collect::<Result<_, _>>()?;
        let kind = tensors::element_type(tensor.datatype());
        let Some(size) = tensor.datatype().size() else {
            return Self::texts(library, tensor, &shape, kind);
        };
        let raw = tensor.data();
        let aligned = raw.as_ptr().align_offset(size) == 0;
        let copy = (!aligned).then(|| tensors::aligned(raw));
        let data = copy.as_ref().map_or(raw.as_ptr(), |copy| copy.as_ptr().cast());
        let mut pointer = null_mut();
        // SAFETY: `data` holds `raw.len()` bytes and, like `shape`, outlives the value: the copy lies
        // beside it and the tensor is borrowed through the run. ONNX Runtime writes to outputs only.
        let status = unsafe {
            (library.api.CreateTensorWithDataAsOrtValue)(
                library.memory.as_ptr(),
                data.cast_mut().cast(),
                raw.len(),
                shape.as_ptr(),
                shape.len(),
                kind,
                &mut pointer,
            )
        };
        check(library.api, status)?;
        Ok(Self { value: Value { library, pointer }, _data: copy })
    }

    /// Texts are copied into ONNX Runtime's own strings, any byte in them.
    fn texts(
        library: &'static Library,
        tensor: &Tensor,
        shape: &[i64],
        kind: ONNXTensorElementDataType,
    ) -> Result<Self, String> {
        let api = library.api;
        let mut allocator: *mut OrtAllocator = null_mut();
        let mut value = Value { library, pointer: null_mut() };
        // SAFETY: the default allocator is never freed; shape and out pointers live through the calls.
        unsafe {
            check(api, (api.GetAllocatorWithDefaultOptions)(&mut allocator))?;
            let made = (api.CreateTensorAsOrtValue)(
                allocator,
                shape.as_ptr(),
                shape.len(),
                kind,
                &mut value.pointer,
            );
            check(api, made)?;
        }
        for (index, text) in tensors::texts(tensor.data()).enumerate() {
            let mut place = null_mut();
            // SAFETY: ONNX Runtime checks the index and gives out room for exactly that many bytes.
            unsafe {
                let made =
                    (api.GetResizedStringTensorElementBuffer)(value.pointer, index, text.len(), &mut place);
                check(api, made)?;
                if !place.is_null() {
                    std::ptr::copy_nonoverlapping(text.as_ptr(), place.cast(), text.len());
                }
            }
        }
        Ok(Self { value, _data: None })
    }
}

struct Info {
    library: &'static Library,
    info: *mut OrtTensorTypeAndShapeInfo,
}

impl Drop for Info {
    fn drop(&mut self) {
        // SAFETY: owned here, released once; null is allowed.
        unsafe { (self.library.api.ReleaseTensorTypeAndShapeInfo)(self.info) }
    }
}

impl Value {
    fn read(&self) -> Result<Answer, String> {
        let api = self.library.api;
        if self.pointer.is_null() {
            return Err("an output did not come".into());
        }
        // Kinds and types are read as numbers: a newer library may know more than this enumeration.
        let mut kind = 0i32;
        // SAFETY: the enumeration is an i32 of C; the value is valid.
        check(api, unsafe { (api.GetValueType)(self.pointer, (&raw mut kind).cast()) })?;
        if kind != ONNXType::ONNX_TYPE_TENSOR as i32 {
            return Err(format!("an output is no tensor, but of ONNX kind {kind} (a map or sequence)"));
        }
        let mut info = Info { library: self.library, info: null_mut() };
        let (mut element, mut rank, mut count) = (0i32, 0usize, 0usize);
        // SAFETY: the value is a tensor; out pointers live through the calls.
        unsafe {
            check(api, (api.GetTensorTypeAndShape)(self.pointer, &mut info.info))?;
            check(api, (api.GetTensorElementType)(info.info, (&raw mut element).cast()))?;
            check(api, (api.GetDimensionsCount)(info.info, &mut rank))?;
            check(api, (api.GetTensorShapeElementCount)(info.info, &mut count))?;
        }
        if rank > MAX_RANK {
            return Err(format!("an output has {rank} dimensions"));
        }
        let mut dims = vec![0i64; rank];
        // SAFETY: room for `rank` dimensions.
        check(api, unsafe { (api.GetDimensions)(info.info, dims.as_mut_ptr(), rank) })?;
        let shape: Vec<usize> = dims
            .iter()
            .map(|dim| usize::try_from(*dim).map_err(|_| format!("an output has the shape {dims:?}")))
            .collect::<Result<_, _>>()?;
        let datatype = tensors::datatype(element);
        let data = match datatype.map(Datatype::size) {
            None => Bytes::new(),
            Some(None) => self.read_texts(count)?,
            Some(Some(size)) => {
                self.read_numbers(count.checked_mul(size).ok_or("an output is too large")?)?
            }
        };
        Ok(Answer { datatype, shape, data })
    }

    fn read_numbers(&self, len: usize) -> Result<Bytes, String> {
        let mut data: *mut c_void = null_mut();
        // SAFETY: the value is a tensor of numbers.
        check(self.library.api, unsafe { (self.library.api.GetTensorMutableData)(self.pointer, &mut data) })?;
        match (NonNull::new(data), len) {
            (_, 0) => Ok(Bytes::new()),
            (None, _) => Err("an output has no data".into()),
            // SAFETY: the tensor holds as many elements of that size as its shape says, and lives.
            (Some(data), len) => Ok(Bytes::copy_from_slice(unsafe {
                std::slice::from_raw_parts(data.as_ptr().cast_const().cast::<u8>(), len)
            })),
        }
    }

    fn read_texts(&self, count: usize) -> Result<Bytes, String> {
        let api = self.library.api;
        let mut len = 0usize;
        // SAFETY: the value is a tensor of texts.
        check(api, unsafe { (api.GetStringTensorDataLength)(self.pointer, &mut len) })?;
        let mut raw = vec![0u8; len];
        let mut starts = vec![0usize; count];
        // SAFETY: room for `len` bytes and `count` offsets.
        check(api, unsafe {
            (api.GetStringTensorContent)(
                self.pointer,
                raw.as_mut_ptr().cast(),
                len,
                starts.as_mut_ptr(),
                count,
            )
        })?;
        tensors::join_texts(&raw, &starts)
    }
}
