//! Opens a `libonnxruntime` and holds its table of functions.
//!
//! A library is opened once and never closed: it starts threads and registers exit handlers of its own.
//! So a process goes on with the file it opened: one that takes its place at the same path counts after the
//! next start (see [`Standing`]). Opening runs its code. So a process that must not fall with it opens it
//! only after a confined child has done so (see [`probe`](crate::engine::probe)).
#![allow(unsafe_code)]

use super::stamp::{Stamp, Standing, real};
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
    #[error("`{path}` was replaced while it was opened; what is there now counts after the next start")]
    Replaced { path: PathBuf },
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

/// A file whose code is in this process.
struct Opened {
    /// As it was asked for, and where that led.
    path: PathBuf,
    real: PathBuf,
    stamp: Stamp,
    /// The linker gives out the same code for the same path again, so its failure stays too.
    library: Result<&'static Library, LibraryError>,
}

impl Opened {
    fn is_at(&self, path: &Path, real: &Path) -> bool {
        self.real == real || (self.path == path && !real.exists())
    }
}

/// Two at most in practice.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

/// Opens `path`, or finds it open: then the file that was there is meant, not what is there now.
///
/// # Errors
/// [`LibraryError`]; tried anew at the next call, unless the library's code is in this process already.
pub(super) fn open(path: &Path) -> Result<&'static Library, LibraryError> {
    let unreadable =
        |e: std::io::Error| LibraryError::Unreadable { path: path.to_owned(), reason: e.to_string() };
    let real = real(path).map_err(unreadable)?;
    let mut opened = OPENED.lock();
    if let Some(known) = opened.iter().find(|known| known.is_at(path, &real)) {
        return known.library.clone();
    }
    let stamp = Stamp::of(&real).map_err(unreadable)?;
    let base = base(&real)?;
    let library = match Stamp::of(&real) {
        Ok(after) if after == stamp => base.and_then(|base| start(base, &real)),
        Ok(_) | Err(_) => Err(LibraryError::Replaced { path: real.clone() }),
    };
    opened.push(Opened { path: path.to_owned(), real, stamp, library: library.clone() });
    library
}

/// What there is at `path` for this process. Runs nothing.
pub(super) fn standing(path: &Path) -> Standing {
    let Ok(real) = real(path) else { return Standing::Missing };
    let opened = OPENED.lock();
    let known = opened.iter().find(|known| known.is_at(path, &real)).map(|known| known.stamp);
    Standing::judge(known, Stamp::of(&real).ok())
}

fn start(base: NonNull<OrtApiBase>, path: &Path) -> Result<&'static Library, LibraryError> {
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

/// A library in this process, if it is one.
type Base = Result<NonNull<OrtApiBase>, LibraryError>;

#[cfg(target_feature = "crt-static")]
fn base(_path: &Path) -> Result<Base, LibraryError> {
    Err(LibraryError::StaticBuild)
}

/// The error outside: nothing of the file is in this process.
#[cfg(not(target_feature = "crt-static"))]
fn base(path: &Path) -> Result<Base, LibraryError> {
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
    let another = || LibraryError::AnotherLibrary { path: path.to_owned() };
    if symbol.is_null() {
        return Ok(Err(another()));
    }
    // SAFETY: ONNX Runtime declares the function of that name with this type; a library that lies about
    // it crashes the confined child, which is the first to open it.
    let base = unsafe {
        let get: unsafe extern "system" fn() -> *const OrtApiBase = std::mem::transmute(symbol);
        get()
    };
    Ok(NonNull::new(base.cast_mut()).ok_or_else(another))
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
    fn a_file_that_is_no_library_is_refused_with_its_name_and_looked_at_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        assert_eq!(standing(&path), Standing::Missing);
        let missing = open(&path).err().unwrap();
        assert!(matches!(missing, LibraryError::Unreadable { .. }), "{missing}");
        std::fs::write(&path, "no library").unwrap();
        let error = open(&path).err().unwrap();
        assert!(matches!(error, LibraryError::Unreadable { .. } | LibraryError::StaticBuild), "{error}");
        assert_ne!(error, missing, "a failure is not remembered");
        assert!(matches!(standing(&path), Standing::Present(_)));
    }
}
