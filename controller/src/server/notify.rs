//! Tells systemd how the service stands; does nothing without it.

use sd_notify::NotifyState;

pub(super) fn ready() {
    say(NotifyState::Ready);
}
pub(super) fn alive() {
    say(NotifyState::Watchdog);
}
pub(super) fn stopping() {
    say(NotifyState::Stopping);
}

fn say(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "notify");
    }
}
