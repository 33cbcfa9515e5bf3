//! A libonnxruntime that misbehaves: a thin C library in front of the real one.

use std::{mem::offset_of, path::PathBuf, process::Command};
use tempfile::TempDir;

/// `BEHAVE` is the body of what stands in for `Run`; `REAL(...)` calls the real one.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
typedef void *(*run_fn)(void *, const void *, const char *const *, const void *const *, size_t,
                        const char *const *, size_t, void **);
typedef void *(*data_fn)(void *, void **);
typedef struct { const void *(*get_api)(uint32_t); const char *(*version)(void); } base;
static void *table[ENTRIES];
static const base *real;
static int calls;
static const volatile char *flag;
static int slow;
static void *run(void *s, const void *o, const char *const *in, const void *const *iv, size_t n,
                 const char *const *on, size_t m, void **ov) {
    calls++;
    BEFORE;
    void *status = ((run_fn)real_run)(s, o, in, iv, n, on, m, ov);
    void *data = 0;
    ((data_fn)table[DATA])(ov[0], &data);
    float *first = data;
    (void)first;
    AFTER;
    return status;
}
static const void *get_api(uint32_t version) {
    const void *api = real->get_api(version);
    if (!api) return 0;
    memcpy(table, api, sizeof table);
    real_run = table[RUN];
    table[RUN] = (void *)run;
    return table;
}
static const char *version(void) { return real->version(); }
static const base ours = {get_api, version};
const void *OrtGetApiBase(void) {
    Dl_info info;
    char path[4096];
    if (!dladdr((void *)OrtGetApiBase, &info)) return 0;
    snprintf(path, sizeof path, "%s", info.dli_fname);
    char *slash = strrchr(path, '/');
    snprintf(slash + 1, sizeof path - (slash + 1 - path), "libslow.so");
    int file = open(path, O_RDONLY);
    char first = 0;
    if (file >= 0 && read(file, &first, 1) == 1) {
        slow = first == '1';
        flag = mmap(0, 1, PROT_READ, MAP_SHARED, file, 0);
        if (flag == MAP_FAILED) flag = 0;
    }
    snprintf(slash + 1, sizeof path - (slash + 1 - path), "libreal_onnxruntime.so");
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) { fprintf(stderr, "%s\n", dlerror()); return 0; }
    real = ((const base *(*)(void))dlsym(handle, "OrtGetApiBase"))();
    return &ours;
}
"#;

/// How a library misbehaves. The warm-up of a child is its first call.
#[derive(Clone, Copy, Debug)]
pub enum Vice {
    None,
    /// Every answer is off.
    Wrong,
    /// Right at first, off from the third call on: it remembers.
    Remembers,
    /// Takes 20 ms more.
    Slow,
    /// Takes 40 ms more as soon as the file `libslow.so` beside it begins with `1`: in who has opened it, and in who opens it.
    SlowsDown,
    Crashes,
    Hangs,
    /// Allocates until nothing is left, then says so as C++ does.
    EatsMemory,
    /// Crashes as soon as it is opened.
    CrashesWhenOpened,
    /// Reads a secret file and starts a program while it is opened; writes what came of it to stderr and
    /// ends.
    Spies,
}

/// Makes the library in a folder of its own, beside a copy of the real one.
pub fn library(real: &std::path::Path, vice: Vice) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(real, folder.path().join("libreal_onnxruntime.so")).unwrap();
    let (before, after, more) = match vice {
        Vice::None => ("", "", ""),
        Vice::Wrong => ("", "first[0] += 1000.0f", ""),
        Vice::Remembers => ("", "if (calls > 2) first[0] += 1000.0f", ""),
        Vice::Slow => ("struct timespec t = {0, 20000000}; nanosleep(&t, 0)", "", ""),
        Vice::SlowsDown => (
            "struct timespec t = {0, 40000000}; if (slow || (flag && *flag == '1')) nanosleep(&t, 0)",
            "",
            "",
        ),
        Vice::Crashes => ("if (calls > 1) *(volatile int *)8 = 1", "", ""),
        Vice::Hangs => ("if (calls > 1) for (;;) {}", "", ""),
        Vice::EatsMemory => (
            "while (calls > 1) { char *p = malloc(1 << 20); \
             if (!p) { fputs(\"terminate called after throwing an instance of 'std::bad_alloc'\\n\", stderr); \
             abort(); } memset(p, 1, 1 << 20); }",
            "",
            "",
        ),
        Vice::CrashesWhenOpened => {
            ("", "", "__attribute__((constructor)) static void c(void) { *(volatile int *)8 = 1; }")
        }
        Vice::Spies => (
            "",
            "",
            "#include <stdio.h>\n#include <unistd.h>\n#include <sys/socket.h>\n#include <fcntl.h>\n\
             __attribute__((constructor)) static void c(void) { \
             fprintf(stderr, \"secret %d, write %d, socket %d, fork %d\\n\", open(\"/etc/passwd\", O_RDONLY), \
             open(\"/tmp/edgefleet-spy\", O_CREAT | O_WRONLY, 0600), socket(AF_INET, SOCK_STREAM, 0), \
             (int)fork()); _exit(7); }",
        ),
    };
    let code = folder.path().join("shim.c");
    let source =
        format!("{more}\n{SHIM}").replace("static int calls;", "static int calls;\nstatic void *real_run;");
    std::fs::write(&code, source).unwrap();
    std::fs::write(folder.path().join("libslow.so"), "0").unwrap();
    let library = folder.path().join("libonnxruntime.so");
    let word = size_of::<usize>();
    let done = Command::new("cc")
        .args(["-shared", "-fPIC", "-w", "-D_GNU_SOURCE", "-o"])
        .arg(&library)
        .arg(&code)
        .arg("-ldl")
        .arg(format!("-DENTRIES={}", size_of::<ort_sys::OrtApi>() / word))
        .arg(format!("-DRUN={}", offset_of!(ort_sys::OrtApi, Run) / word))
        .arg(format!("-DDATA={}", offset_of!(ort_sys::OrtApi, GetTensorMutableData) / word))
        .arg(format!("-DBEFORE={before}"))
        .arg(format!("-DAFTER={after}"))
        .status()
        .unwrap();
    assert!(done.success());
    (folder, library)
}
