//! The walls around the child, put up by itself before it reads the first byte of a model.

use super::{
    messages::Bounds,
    sys::{self, Resource},
};
use edgefleet_shared::probe::Confinement;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use seccompiler::BpfProgram;

const ENFORCED: &str = "enforced";

/// Puts up every wall the kernel has. Cannot be undone.
pub(super) fn confine(bounds: Bounds) -> Confinement {
    // Landlock needs a descriptor for its rules, so the limit on files comes after it; seccomp
    // forbids changing limits and rules, so it comes last.
    let landlock = landlock();
    let limits = limits(bounds);
    Confinement { landlock, seccomp: seccomp(), limits }
}

/// No wall stood, because the child never got that far.
pub(super) fn none(reason: &str) -> Confinement {
    let text = format!("unavailable: {reason}");
    Confinement { landlock: text.clone(), seccomp: text.clone(), limits: text }
}

/// No file may be opened, listed or run, no TCP port used, nobody signalled. The claim is tried.
fn landlock() -> String {
    let restrict = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V6))?
            .handle_access(AccessNet::from_all(ABI::V6))?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
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

/// Never RLIMIT_AS: thread stacks and allocator reservations are address space, not memory.
fn limits(bounds: Bounds) -> String {
    let all = [
        (Resource::Cpu, bounds.cpu_seconds),
        (Resource::Data, bounds.data_bytes),
        (Resource::Processes, 0),
        (Resource::FileSize, 0),
        (Resource::Core, 0),
        (Resource::Files, 0),
    ];
    let refused: Vec<String> = all
        .iter()
        .filter_map(|(resource, value)| {
            sys::limit(*resource, *value).err().map(|e| format!("{resource:?}: {e}"))
        })
        .collect();
    match refused.len() {
        0 if sys::is_root() => "partial: RLIMIT_NPROC does not bind root".into(),
        0 => ENFORCED.into(),
        n if n == all.len() => format!("unavailable: {}", refused.join(", ")),
        _ => format!("partial: {}", refused.join(", ")),
    }
}

/// Only what a computation on open descriptors needs; everything else fails with EPERM, so that a
/// library that merely looks around goes on. No thread is started in the child: an engine that needs
/// some would need `clone` with CLONE_THREAD here.
fn seccomp() -> String {
    match filter() {
        Err(reason) => format!("unavailable: {reason}"),
        Ok(program) => match seccompiler::apply_filter(&program) {
            Err(error) => format!("unavailable: {error}"),
            // The claim is tried: the filter forbids what is otherwise always allowed.
            Ok(()) if std::env::current_dir().is_ok() => "unavailable: the kernel accepted the filter, \
                 but does not apply it"
                .into(),
            Ok(()) => ENFORCED.into(),
        },
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn filter() -> Result<BpfProgram, String> {
    Err(format!("no filter for {}", std::env::consts::ARCH))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn filter() -> Result<BpfProgram, String> {
    use seccompiler::{
        SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    };
    use std::collections::BTreeMap;

    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| format!("no filter for {}", std::env::consts::ARCH))?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = PERMITTED.iter().map(|call| (*call, vec![])).collect();
    let own = u64::from(std::process::id());
    // abort() signals the own process, a crash handler too; no other.
    let to_self = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|e| e.to_string())?;
    rules.insert(libc::SYS_tgkill, vec![to_self]);
    let refuse = seccompiler::SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, seccompiler::SeccompAction::Allow, arch)
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
