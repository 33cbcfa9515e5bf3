//! Which connection speaks for which identity, and who is refused.
//!
//! One lock orders everything a receiver of events could confuse: an event is put on the channel only
//! while its connection is the current one of its identity, so a late goodbye of a displaced connection
//! never follows the greeting of its successor.

use super::{BrokerEvent, session::Session};
use edgefleet_shared::ids::DeviceId;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::sync::mpsc::PermitIterator;

#[derive(Default)]
pub(super) struct Registry {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revoked: HashSet<DeviceId>,
    sessions: HashMap<DeviceId, Entry>,
    /// Identities whose `Connected` was sent and whose `Disconnected` was not.
    announced: usize,
    stopped: bool,
}

struct Entry {
    current: Arc<Session>,
    announced: bool,
}

/// Why an identity may not have a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the identity is revoked")]
    Revoked,
    #[error("the broker is stopping")]
    Stopped,
}

impl Registry {
    /// Makes `session` the current one of its identity and returns the one it displaces.
    pub(super) fn claim(&self, session: &Arc<Session>) -> Result<Option<Arc<Session>>, Refused> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(Refused::Stopped);
        }
        if state.revoked.contains(session.identity()) {
            return Err(Refused::Revoked);
        }
        match state.sessions.get_mut(session.identity()) {
            Some(entry) => Ok(Some(std::mem::replace(&mut entry.current, Arc::clone(session)))),
            None => {
                let entry = Entry { current: Arc::clone(session), announced: false };
                state.sessions.insert(session.identity().clone(), entry);
                Ok(None)
            }
        }
    }

    /// Sends `Connected` (after `Takeover`, if the identity was connected already).
    pub(super) fn announce(&self, session: &Arc<Session>, permits: PermitIterator<'_, BrokerEvent>) {
        let mut permits = permits;
        let mut state = self.state.lock();
        let Some(entry) = state.current(session) else { return };
        let device = session.identity().clone();
        let again = std::mem::replace(&mut entry.announced, true);
        if again {
            send(&mut permits, BrokerEvent::Takeover { device: device.clone() });
        } else {
            state.announced += 1;
        }
        send(&mut permits, BrokerEvent::Connected { device, peer: Some(session.peer()) });
    }

    /// Sends an event of `session` if it is still the current one.
    pub(super) fn tell(
        &self,
        session: &Arc<Session>,
        permit: tokio::sync::mpsc::Permit<'_, BrokerEvent>,
        event: BrokerEvent,
    ) {
        if self.state.lock().current(session).is_some() {
            permit.send(event);
        }
    }

    /// Forgets `session` if it is still the current one, sending `farewell` if it was announced.
    pub(super) fn release(
        &self,
        session: &Arc<Session>,
        permits: PermitIterator<'_, BrokerEvent>,
        farewell: impl IntoIterator<Item = BrokerEvent>,
    ) {
        let mut permits = permits;
        let mut state = self.state.lock();
        let Some(entry) = state.current(session) else { return };
        let announced = entry.announced;
        state.sessions.remove(session.identity());
        if announced {
            state.announced -= 1;
            farewell.into_iter().for_each(|event| send(&mut permits, event));
        }
    }

    /// Whether the router's entry for this identity is `session`'s to clean up.
    pub(super) fn owns(&self, session: &Arc<Session>) -> bool {
        let state = self.state.lock();
        state.sessions.get(session.identity()).is_none_or(|entry| Arc::ptr_eq(&entry.current, session))
    }

    pub(super) fn revoke(&self, device: &DeviceId) {
        self.state.lock().revoked.insert(device.clone());
    }

    pub(super) fn allow(&self, device: &DeviceId) {
        self.state.lock().revoked.remove(device);
    }

    pub(super) fn session(&self, device: &DeviceId) -> Option<Arc<Session>> {
        self.state.lock().sessions.get(device).map(|entry| Arc::clone(&entry.current))
    }

    pub(super) fn connected(&self) -> usize {
        self.state.lock().announced
    }

    /// From now on nobody gets a session and no event is sent; returns who is left.
    pub(super) fn stop(&self) -> Vec<Arc<Session>> {
        let mut state = self.state.lock();
        state.stopped = true;
        state.announced = 0;
        state.sessions.drain().map(|(_, entry)| entry.current).collect()
    }
}

impl State {
    fn current(&mut self, session: &Arc<Session>) -> Option<&mut Entry> {
        self.sessions.get_mut(session.identity()).filter(|entry| Arc::ptr_eq(&entry.current, session))
    }
}

/// The caller reserved as many places as it can have events.
fn send(permits: &mut PermitIterator<'_, BrokerEvent>, event: BrokerEvent) {
    match permits.next() {
        Some(permit) => permit.send(event),
        None => tracing::error!(?event, "no place was reserved for a broker event"),
    }
}
