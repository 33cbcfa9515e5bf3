//! How much of the processor a thread may claim.

/// The calling thread runs only when nothing else wants the processor (`SCHED_IDLE`), or at niceness 19
/// where the system does not let it. Failing at both leaves it as it is: it works, only less politely.
pub(crate) fn lowest() {
    #[allow(unsafe_code)]
    // SAFETY: plain system calls about the calling thread; the parameter outlives the call.
    unsafe {
        let param = libc::sched_param { sched_priority: 0 };
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        if libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "no idle priority for a shadow");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_thread_becomes_the_least_important_one() {
        let policy = std::thread::spawn(|| {
            super::lowest();
            #[allow(unsafe_code)]
            // SAFETY: a plain system call about the calling thread.
            unsafe {
                libc::sched_getscheduler(0)
            }
        });
        assert_eq!(policy.join().unwrap(), libc::SCHED_IDLE);
    }
}
