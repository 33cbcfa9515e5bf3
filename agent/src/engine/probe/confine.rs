//! The walls around the child, put up by itself before it reads the first byte of a model.

use super::{
    messages::Bounds,
    sys::{self, Resource},
};
use edgefleet_shared::probe::Confinement;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use seccompiler::BpfProgram;
use std::path::{Path, PathBuf};

const ENFORCED: &str = "enforced";

/// Puts up every wall the kernel has. Cannot be undone.
pub(super) fn confine(bounds: Bounds) -> Confinement {
    // Landlock needs a descriptor for its rules, so the limit on files comes after it; seccomp
    // forbids changing limits and rules, so it comes last.
    let landlock = landlock(&[]);
    let mut refused = limits(bounds, None);
    refused.extend(no_files());
    Confinement { landlock, seccomp: seccomp(filter(&[], None)), limits: told(&refused) }
}

/// Proof that this process can make threads and nothing else: without it every wall is as if no thread had
/// been asked for.
#[derive(Clone, Copy, Debug)]
struct ThreadsOnly(());

impl ThreadsOnly {
    /// `told_apart`: a filter exists that knows threads from processes. `clone3`: what the system answered
    /// when that was to be closed, and then when it was called.
    fn proved(told_apart: Result<(), String>, clone3: Result<i32, String>) -> Result<Self, String> {
        told_apart?;
        match clone3? {
            libc::ENOSYS => Ok(Self(())),
            other => Err(format!(
                "the kernel accepted the filter that closes clone3, and answers a call with error {other}"
            )),
        }
    }
}

/// Walls that stood while a library was opened, and what is still to come.
pub(super) struct Outer {
    landlock: String,
    seccomp: String,
    refused: Vec<String>,
    threads: Option<ThreadsOnly>,
    /// Why threads that were asked for cannot be started; nothing else is any weaker for it.
    pub(super) no_threads: Option<String>,
}

/// Walls for opening an engine's library: all of [`confine`]'s, except that files of system libraries, of
/// the library's own folder and of the processor's description can be read, and nothing else be opened.
pub(super) fn for_library(bounds: Bounds, library: &Path, threaded: bool) -> Outer {
    let landlock = landlock(&readable(library));
    // Where system calls cannot be told apart, threads cannot be allowed without processes.
    let threads =
        threaded.then(|| ThreadsOnly::proved(filter(&[], Some(ThreadsOnly(()))).map(drop), closed_clone3()));
    let (threads, no_threads) = match threads {
        None => (None, None),
        Some(Ok(proof)) => (Some(proof), None),
        Some(Err(reason)) => (None, Some(reason)),
    };
    let refused = limits(bounds, threads);
    let seccomp = apply(filter(&OPENING, threads));
    Outer { landlock, seccomp, refused, threads, no_threads }
}

/// Takes back what [`for_library`] left open. Threads the engine was allowed to start it still is, processes
/// it never was.
pub(super) fn close(outer: Outer) -> Confinement {
    let worse = |first: String, second: String| if first == ENFORCED { second } else { first };
    let landlock = worse(outer.landlock, landlock(&[]));
    let mut refused = outer.refused;
    refused.extend(no_files());
    let seccomp = worse(outer.seccomp, seccomp(filter(&[], outer.threads)));
    Confinement { landlock, seccomp, limits: told(&refused) }
}

/// What the dynamic linker and an engine read while they start.
fn readable(library: &Path) -> Vec<PathBuf> {
    const SYSTEM: [&str; 8] = [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/etc/ld.so.cache",
        "/proc/cpuinfo",
        "/sys/devices/system/cpu",
    ];
    /// Beside the library; more are in no installation.
    const MOST: usize = 64;
    let mut all: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    let beside = library.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let libraries = beside.into_iter().flatten().flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("lib") && name.contains(".so")
    });
    all.extend(libraries.map(|entry| entry.path()).take(MOST));
    all.push(library.to_owned());
    all
}

/// No wall stood, because the child never got that far.
pub(super) fn none(reason: &str) -> Confinement {
    let text = format!("unavailable: {reason}");
    Confinement { landlock: text.clone(), seccomp: text.clone(), limits: text }
}

/// No file may be opened but `readable` ones, none be run, no TCP port used, nobody signalled. The claim
/// is tried.
fn landlock(readable: &[PathBuf]) -> String {
    let restrict = || {
        let reading = AccessFs::ReadFile | AccessFs::ReadDir;
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V6))?
            .handle_access(AccessNet::from_all(ABI::V6))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rules(landlock::path_beneath_rules(readable, reading))?
            .restrict_self()
    };
    match restrict() {
        Err(error) => format!("unavailable: {error}"),
        Ok(status) => match status.ruleset {
            RulesetStatus::NotEnforced => "unavailable: this kernel has no Landlock".into(),
            _ if std::fs::read_dir("/").is_ok() => "unavailable: the kernel accepted the rules, \
                 but `/` can still be read"
                .into(),
            RulesetStatus::PartiallyEnforced => "partial".into(),
            RulesetStatus::FullyEnforced => ENFORCED.into(),
        },
    }
}

/// What the system refused. Never RLIMIT_AS: thread stacks and allocator reservations are address
/// space, not memory. With `threads` seccomp alone keeps processes from being made: the limit counts
/// threads too, and those of the whole user.
fn limits(bounds: Bounds, threads: Option<ThreadsOnly>) -> Vec<String> {
    let all = [
        Some((Resource::Cpu, bounds.cpu_seconds)),
        Some((Resource::Data, bounds.data_bytes)),
        threads.is_none().then_some((Resource::Processes, 0)),
        Some((Resource::FileSize, 0)),
        Some((Resource::Core, 0)),
    ];
    all.into_iter().flatten().filter_map(|(resource, value)| limit(resource, value)).collect()
}

fn no_files() -> Option<String> {
    limit(Resource::Files, 0)
}

fn limit(resource: Resource, value: u64) -> Option<String> {
    sys::limit(resource, value).err().map(|e| format!("{resource:?}: {e}"))
}

fn told(refused: &[String]) -> String {
    match refused {
        [] if sys::is_root() => "partial: RLIMIT_NPROC does not bind root".into(),
        [] => ENFORCED.into(),
        all => format!("partial: {}", all.join(", ")),
    }
}

/// Only what a computation on open descriptors needs; everything else fails with EPERM, so that a
/// library that merely looks around goes on.
fn seccomp(filter: Result<BpfProgram, String>) -> String {
    match apply(filter) {
        // The claim is tried: the filter forbids what is otherwise always allowed.
        told if told == ENFORCED && std::env::current_dir().is_ok() => {
            "unavailable: the kernel accepted the filter, \
             but does not apply it"
                .into()
        }
        told => told,
    }
}

fn apply(filter: Result<BpfProgram, String>) -> String {
    let applied = filter.and_then(|p| seccompiler::apply_filter(&p).map_err(|e| e.to_string()));
    applied.map_or_else(|reason| format!("unavailable: {reason}"), |()| ENFORCED.into())
}

/// The C library starts threads by `clone3`, whose flags lie in memory where a filter cannot look. Told
/// that there is none (ENOSYS), it takes `clone`. Returns the error a call has then: the claim is tried.
fn closed_clone3() -> Result<i32, String> {
    let told = apply(deny_clone3());
    if told != ENFORCED {
        return Err(format!("clone3 cannot be closed: {told}"));
    }
    sys::error_of_clone3().map_err(str::to_owned)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn filter(_more: &[libc::c_long], _threads: Option<ThreadsOnly>) -> Result<BpfProgram, String> {
    Err(format!("no filter for {}", std::env::consts::ARCH))
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn deny_clone3() -> Result<BpfProgram, String> {
    Err(format!("no filter for {}", std::env::consts::ARCH))
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const OPENING: [libc::c_long; 0] = [];

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn arch() -> Result<seccompiler::TargetArch, String> {
    seccompiler::TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| format!("no filter for {}", std::env::consts::ARCH))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn deny_clone3() -> Result<BpfProgram, String> {
    use seccompiler::{SeccompAction, SeccompFilter};
    let rules = [(libc::SYS_clone3, vec![])].into();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch()?)
        .and_then(BpfProgram::try_from)
        .map_err(|e| e.to_string())
}

/// [`PERMITTED`] and `more`; with the proof that no process comes of it, threads of this process too.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn filter(more: &[libc::c_long], threads: Option<ThreadsOnly>) -> Result<BpfProgram, String> {
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};
    use std::collections::BTreeMap;

    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        PERMITTED.iter().chain(more).map(|call| (*call, vec![])).collect();
    if let Some(limits) = rules.get_mut(&libc::SYS_prlimit64) {
        // Its own limits, nobody else's.
        let to_self = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|e| e.to_string())?;
        limits.push(to_self);
    }
    if threads.is_some() {
        let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or_default();
        let a_thread =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)
                .and_then(|condition| SeccompRule::new(vec![condition]))
                .map_err(|e| e.to_string())?;
        rules.insert(libc::SYS_clone, vec![a_thread]);
        // Answered by the filter before this one, which was seen to say ENOSYS.
        rules.insert(libc::SYS_clone3, vec![]);
    }
    let own = u64::from(std::process::id());
    // abort() signals the own process, a crash handler too; no other.
    let to_self = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|e| e.to_string())?;
    rules.insert(libc::SYS_tgkill, vec![to_self]);
    let refuse = seccompiler::SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, seccompiler::SeccompAction::Allow, arch()?)
        .and_then(BpfProgram::try_from)
        .map_err(|e| e.to_string())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const PERMITTED: [libc::c_long; 36] = [
    // Open descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_fcntl,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    // Time, waiting, randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    // Own identity and signals.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // C library start-up and end.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Besides those, for opening a library and for putting up the last walls.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const OPENING: [libc::c_long; 17] = [
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_prlimit64,
    libc::SYS_set_tid_address,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
];

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod tests {
    use super::*;

    #[test]
    fn threads_are_allowed_only_where_clone3_was_seen_to_be_closed() {
        let no = |text: &str| text.to_owned();
        for (told_apart, clone3, wanted) in [
            (Ok(()), Ok(libc::ENOSYS), true),
            // The filter was taken and does nothing: the call failed for its nonsense.
            (Ok(()), Ok(libc::EINVAL), false),
            (Ok(()), Ok(libc::EPERM), false),
            (Ok(()), Err(no("clone3 cannot be closed: unavailable")), false),
            (Err(no("no filter for arm")), Ok(libc::ENOSYS), false),
        ] {
            let said = format!("{told_apart:?} {clone3:?}");
            assert_eq!(ThreadsOnly::proved(told_apart, clone3).is_ok(), wanted, "{said}");
        }
    }

    #[test]
    fn without_the_proof_no_filter_lets_anything_be_cloned() {
        let compares_with = |program: &BpfProgram, call: libc::c_long| {
            program.iter().any(|step| i64::from(step.k) == call && step.code & 0x07 == 0x05)
        };
        for more in [&OPENING[..], &[]] {
            let (open, closed) = (filter(more, Some(ThreadsOnly(()))).unwrap(), filter(more, None).unwrap());
            for call in [libc::SYS_clone3, libc::SYS_clone] {
                assert!(compares_with(&open, call));
                assert!(!compares_with(&closed, call), "{call}");
            }
        }
    }
}
