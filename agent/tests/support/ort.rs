//! Finds the ONNX Runtime library that the tests run against.

use std::{path::PathBuf, process::Command};

/// The library named by `EDGEFLEET_TEST_ORT_LIB`, or the one in the Python environment of
/// `EDGEFLEET_TEST_PYTHON` (package `onnxruntime`, see tests/python/requirements.txt; `make test` sets it).
///
/// `None` only where `EDGEFLEET_TEST_ORT_LIB` is `none`: for machines that have no such library. Where
/// neither is set the test fails: one that was not run must not look like one that passed.
pub fn library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("EDGEFLEET_TEST_ORT_LIB") {
        return (path != "none").then(|| path.into());
    }
    let Some(python) = std::env::var_os("EDGEFLEET_TEST_PYTHON") else {
        panic!(
            "no ONNX Runtime to test: set EDGEFLEET_TEST_PYTHON to a Python that has the package `onnxruntime` \
             (`make test` does), EDGEFLEET_TEST_ORT_LIB to a libonnxruntime.so, or that to `none` to skip this"
        )
    };
    let find = "import onnxruntime, pathlib; \
        print(next(pathlib.Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so*')))";
    let output = Command::new(&python).args(["-c", find]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{python:?} has no package `onnxruntime`: {said}");
    Some(String::from_utf8(output.stdout).unwrap().trim().into())
}
