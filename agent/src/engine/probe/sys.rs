//! The unsafe code of the probe: system calls that neither std nor a safe crate offers.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::{FromRawFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// Lets the child of `command` keep `fds` under the same numbers and die with the thread that starts
/// it. Only the child's copies change, so other children started meanwhile inherit nothing.
pub(super) fn inherit(command: &mut Command, fds: Vec<RawFd>) {
    let prepare = move || {
        for fd in &fds {
            // SAFETY: fcntl takes plain integers and touches no memory of ours.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: as above; the variadic argument is a signal number, as PR_SET_PDEATHSIG wants it.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: `prepare` runs between fork and exec and only makes async-signal-safe calls; it does not
    // allocate, lock or panic (`fds` was allocated before the fork).
    unsafe { command.pre_exec(prepare) };
}

/// Kills every process of the group; an empty group is no error.
pub(super) fn kill_group(group: u32) {
    let Ok(group) = libc::pid_t::try_from(group) else { return };
    if group > 1 {
        // SAFETY: plain integers. The caller has not reaped the group's leader yet, so the number
        // still means that group.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// Whether the child `process` has ended, without reaping it: until it is reaped its number, and its
/// group's, belong to nobody else.
pub(super) fn has_ended(process: u32) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid siginfo_t; the kernel overwrites it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is valid and outlives the call.
    if unsafe { libc::waitid(libc::P_PID, process, &mut info, how) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid returned 0, so si_pid is set: 0 while the child still runs.
    Ok(unsafe { info.si_pid() } != 0)
}

/// Sets soft and hard limit of `resource`. A hard limit that is lower already stays.
pub(super) fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let kind = match resource {
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::Processes => libc::RLIMIT_NPROC,
        Resource::Files => libc::RLIMIT_NOFILE,
        Resource::FileSize => libc::RLIMIT_FSIZE,
        Resource::Core => libc::RLIMIT_CORE,
    };
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `now` is a valid rlimit that outlives the call.
    if unsafe { libc::getrlimit(kind, &mut now) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let value = libc::rlim_t::try_from(value).unwrap_or(libc::RLIM_INFINITY).min(now.rlim_max);
    // Where both are equal the kernel kills at once; one second apart SIGXCPU tells why first.
    let soft = if matches!(resource, Resource::Cpu) { value.saturating_sub(1).max(1) } else { value };
    let new = libc::rlimit { rlim_cur: soft, rlim_max: value };
    // SAFETY: `new` is a valid rlimit that outlives the call.
    if unsafe { libc::setrlimit(kind, &new) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Resource {
    Cpu,
    Data,
    Processes,
    Files,
    FileSize,
    Core,
}

/// True if resource limits on processes do not bind us.
pub(super) fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getuid() == 0 }
}

/// Closes every descriptor above 2 that is not in `keep`.
pub(super) fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = 3;
    for fd in keep {
        close_between(first, fd - 1);
        first = fd + 1;
    }
    close_between(first, RawFd::MAX);
}

fn close_between(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: plain integers. Called before this process opens anything, so no live object owns a
    // descriptor that is closed here.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0 as libc::c_uint) };
    if done < 0 {
        // Kernels before 5.9. 1,024 is the usual soft limit, above it nothing is opened by default.
        for fd in first..=last.min(1_024) {
            // SAFETY: as above; closing a number that is not open only returns an error.
            unsafe { libc::close(fd) };
        }
    }
}

/// The error of a `clone3` that cannot make anything: its arguments have no bytes.
pub(super) fn error_of_clone3() -> Result<i32, &'static str> {
    // SAFETY: a null pointer to 0 bytes; the kernel refuses sizes below 64 (EINVAL) before it reads any.
    let made = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0usize) };
    match made {
        -1 => io::Error::last_os_error().raw_os_error().ok_or("clone3 failed without an error"),
        _ => Err("clone3 took arguments without bytes"),
    }
}

/// Takes over an inherited descriptor. Refuses standard streams and numbers that are not open.
pub(super) fn adopt(fd: RawFd) -> io::Result<File> {
    // SAFETY: plain integers.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::other(format!("descriptor {fd} was not inherited")));
    }
    // SAFETY: it is open, and the request names each descriptor once, so nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
