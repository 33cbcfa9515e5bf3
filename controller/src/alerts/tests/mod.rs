//! The queue against real receivers: HTTP and SMTP servers in this process, a real store, and a clock that
//! stands still until it is moved.

mod hooks;
mod mail;
mod receivers;
mod restarts;
