//! Opens a `libonnxruntime` and holds its table of functions.
//!
//! A library is opened once and never closed: it starts threads and registers exit handlers of its own.
//! Opening runs its code. So a process that must not fall with it opens it only after a confined child
//! has done so (see [`probe`](crate::engine::probe)).
#![allow(unsafe_code)]

use crate::engine::tract::excerpt;
use ort_sys::{
    OrtAllocatorType, OrtApi, OrtApiBase, OrtEnv, OrtLoggingLevel, OrtMemType, OrtMemoryInfo, OrtStatusPtr,
};
use parking_lot::Mutex;
use std::{
    ffi::{CStr, c_char, c_void},
    path::{Path, PathBuf},
    ptr::NonNull,
};

/// The oldest ONNX Runtime whose functions are enough, as the second number of its version.
pub const OLDEST_MINOR: u32 = ort_sys::ORT_API_VERSION;

/// Why a file cannot be used as ONNX Runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    #[error("this agent is a static build, which cannot load ONNX Runtime; the dynamically linked one can")]
    StaticBuild,
    #[error("`{path}` cannot be opened as a library: {reason}")]
    Unreadable { path: PathBuf, reason: String },
    #[error("`{path}` is a library, but not ONNX Runtime: it has no function `OrtGetApiBase`")]
    AnotherLibrary { path: PathBuf },
    #[error("`{path}` is ONNX Runtime {found}, at least 1.{OLDEST_MINOR} is needed")]
    TooOld { path: PathBuf, found: String },
    #[error("`{path}` is ONNX Runtime, but does not start: {reason}")]
    Broken { path: PathBuf, reason: String },
}

/// An opened library with its one environment. Lives as long as the process.
pub(super) struct Library {
    pub(super) api: &'static OrtApi,
    pub(super) env: NonNull<OrtEnv>,
    /// Where the caller's tensors lie: plain memory.
    pub(super) memory: NonNull<OrtMemoryInfo>,
    pub(super) version: &'static str,
}

// SAFETY: ONNX Runtime documents environment, session and memory info as usable from any thread.
unsafe impl Send for Library {}
// SAFETY: as above; nothing here is changed after it was made.
unsafe impl Sync for Library {}

/// What was opened so far, or why it could not be; by real path. Two at most in practice.
type Opened = Vec<(PathBuf, Result<&'static Library, LibraryError>)>;
static OPENED: Mutex<Opened> = Mutex::new(Vec::new());

/// Opens `path`, or finds it open.
///
/// # Errors
/// [`LibraryError`]; the same again for the same path until the process ends.
pub(super) fn open(path: &Path) -> Result<&'static Library, LibraryError> {
    // A confined process may open the file, but not follow links to it: its caller has done so. Never a bare
    // name, which the linker would look for elsewhere.
    let path = std::fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .map_err(|e| LibraryError::Unreadable { path: path.to_owned(), reason: e.to_string() })?;
    let mut opened = OPENED.lock();
    if let Some((_, known)) = opened.iter().find(|(known, _)| *known == path) {
        return known.clone();
    }
    let library = start(&path);
    opened.push((path, library.clone()));
    library
}

fn start(path: &Path) -> Result<&'static Library, LibraryError> {
    let base = base(path)?;
    // SAFETY: by ONNX Runtime's contract the base holds two functions and is never freed; the version
    // is a constant text that ends with a zero.
    let found = unsafe {
        let text = ((*base.as_ptr()).GetVersionString)();
        if text.is_null() { "of no version".into() } else { CStr::from_ptr(text).to_string_lossy() }
    };
    let too_old = || LibraryError::TooOld { path: path.to_owned(), found: excerpt(&found) };
    if !is_new_enough(&found) {
        return Err(too_old());
    }
    // SAFETY: as above; null if the library does not know that version of the table.
    let api = unsafe { ((*base.as_ptr()).GetApi)(OLDEST_MINOR).as_ref() }.ok_or_else(too_old)?;
    let broken = |reason: String| LibraryError::Broken { path: path.to_owned(), reason };
    let mut env = std::ptr::null_mut();
    let mut memory = std::ptr::null_mut();
    // SAFETY: every pointer is valid for the call; the name is a constant that ends with a zero. Without
    // events nothing is collected (Linux builds have none, others do).
    unsafe {
        let severity = OrtLoggingLevel::ORT_LOGGING_LEVEL_ERROR;
        let name = c"edgefleet".as_ptr();
        let log = (api.CreateEnvWithCustomLogger)(log, std::ptr::null_mut(), severity, name, &mut env);
        check(api, log).map_err(broken)?;
        check(api, (api.DisableTelemetryEvents)(env)).map_err(broken)?;
        let kind = OrtAllocatorType::OrtDeviceAllocator;
        let status = (api.CreateCpuMemoryInfo)(kind, OrtMemType::OrtMemTypeDefault, &mut memory);
        check(api, status).map_err(broken)?;
    }
    let (Some(env), Some(memory)) = (NonNull::new(env), NonNull::new(memory)) else {
        return Err(broken("it gave out no environment".into()));
    };
    let version: &'static str = Box::leak(excerpt(&found).into_boxed_str());
    Ok(Box::leak(Box::new(Library { api, env, memory, version })))
}

/// `1.17.0` and later.
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    major > 1 || (major == 1 && minor >= OLDEST_MINOR)
}

#[cfg(target_feature = "crt-static")]
fn base(_path: &Path) -> Result<NonNull<OrtApiBase>, LibraryError> {
    Err(LibraryError::StaticBuild)
}

#[cfg(not(target_feature = "crt-static"))]
fn base(path: &Path) -> Result<NonNull<OrtApiBase>, LibraryError> {
    use std::os::unix::ffi::OsStrExt;

    let unreadable = |reason: String| LibraryError::Unreadable { path: path.to_owned(), reason };
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|e| unreadable(e.to_string()))?;
    // SAFETY: the name ends with a zero. The library's own start-up code runs here: see the module's
    // words on who may call this.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: after a failure it is a text that ends with a zero, valid until the next such call
        // of this thread.
        let words = unsafe {
            let words = libc::dlerror();
            if words.is_null() { "no reason".into() } else { CStr::from_ptr(words).to_string_lossy() }
        };
        return Err(unreadable(excerpt(&words)));
    }
    // SAFETY: the handle is open and the name ends with a zero.
    let symbol = unsafe { libc::dlsym(handle, c"OrtGetApiBase".as_ptr()) };
    if symbol.is_null() {
        return Err(LibraryError::AnotherLibrary { path: path.to_owned() });
    }
    // SAFETY: ONNX Runtime declares the function of that name with this type; a library that lies about
    // it crashes the confined child, which is the first to open it.
    let base = unsafe {
        let get: unsafe extern "system" fn() -> *const OrtApiBase = std::mem::transmute(symbol);
        get()
    };
    NonNull::new(base.cast_mut()).ok_or_else(|| LibraryError::AnotherLibrary { path: path.to_owned() })
}

/// What the library complains about itself, beside the errors it returns.
unsafe extern "system" fn log(
    _: *mut c_void,
    _: OrtLoggingLevel,
    _: *const c_char,
    _: *const c_char,
    _: *const c_char,
    message: *const c_char,
) {
    if !message.is_null() {
        // SAFETY: a text that ends with a zero, valid during this call.
        let words = unsafe { CStr::from_ptr(message) }.to_string_lossy();
        tracing::debug!("onnxruntime: {}", excerpt(&words));
    }
}

/// Turns a status into its words and frees it.
pub(super) fn check(api: &OrtApi, status: OrtStatusPtr) -> Result<(), String> {
    let Some(status) = NonNull::new(status.0) else { return Ok(()) };
    // SAFETY: a status that is not null is valid until it is released, its message with it.
    unsafe {
        let words = (api.GetErrorMessage)(status.as_ptr());
        let words = match words.is_null() {
            true => "an error without words".to_owned(),
            false => CStr::from_ptr(words).to_string_lossy().into_owned(),
        };
        (api.ReleaseStatus)(status.as_ptr());
        Err(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, good) in [
            ("1.17.0", true),
            ("1.32.0", true),
            ("1.9.1", false),
            ("1.16.3", false),
            ("2.0", true),
            ("1", false),
            ("", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_new_enough(version), good, "{version}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        assert!(matches!(open(&path), Err(LibraryError::Unreadable { .. })));
        std::fs::write(&path, "no library").unwrap();
        let error = open(&path).err().unwrap();
        assert!(matches!(error, LibraryError::Unreadable { .. } | LibraryError::StaticBuild), "{error}");
    }
}
