//! Who is signed in: sessions in memory, found by the hash of a secret that only the browser has.
//!
//! A session names a token; whether that still holds, and for what, is asked at every request, so revoking a token ends
//! its sessions. A restart of the controller ends them all.

use crate::fleet::secret::{NoRandomness, base32, random};
use edgefleet_shared::{digest::BlobDigest, time::Timestamp};
use parking_lot::Mutex;
use std::{collections::BTreeMap, time::Duration};

/// Nobody looked for so long: signed out.
const IDLE: Duration = Duration::from_secs(8 * 3_600);
/// Signed out in any case; long enough for a week of a wall screen.
pub(super) const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// Sessions of one token; the one that was used least recently goes.
const PER_TOKEN: usize = 20;
/// Sessions in all.
const MOST: usize = 2_000;
/// Longest secret looked at: ours have 52 characters.
const MAX_SECRET: usize = 64;

struct Session {
    token: String,
    csrf: String,
    began: Timestamp,
    seen: Timestamp,
}

impl Session {
    fn holds(&self, now: Timestamp) -> bool {
        now.since(self.seen) < IDLE && now.since(self.began) < LONGEST
    }
}

/// What a request with a good secret learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Id of the token it was begun with.
    pub(super) token: String,
    /// The word that forms of this session carry.
    pub(super) csrf: String,
}

#[derive(Default)]
pub(super) struct Sessions {
    /// By hexadecimal hash of the secret.
    known: Mutex<BTreeMap<String, Session>>,
}

fn hash(secret: &str) -> String {
    BlobDigest::of(secret.as_bytes()).to_hex()
}

impl Sessions {
    /// Begins a session; returns the secret for the cookie.
    pub(super) fn begin(&self, token: &str, now: Timestamp) -> Result<String, NoRandomness> {
        let (secret, csrf) = (base32(&random::<32>()?), base32(&random::<20>()?));
        let session = Session { token: token.to_owned(), csrf, began: now, seen: now };
        let mut known = self.known.lock();
        known.retain(|_, one| one.holds(now));
        while known.values().filter(|one| one.token == token).count() >= PER_TOKEN {
            drop_oldest(&mut known, |one| one.token == token);
        }
        while known.len() >= MOST {
            drop_oldest(&mut known, |_| true);
        }
        known.insert(hash(&secret), session);
        Ok(secret)
    }

    pub(super) fn find(&self, secret: &str, now: Timestamp) -> Option<Found> {
        if secret.len() > MAX_SECRET {
            return None;
        }
        let mut known = self.known.lock();
        let session = known.get_mut(&hash(secret)).filter(|one| one.holds(now))?;
        session.seen = session.seen.max(now);
        Some(Found { token: session.token.clone(), csrf: session.csrf.clone() })
    }

    pub(super) fn end(&self, secret: &str) {
        self.known.lock().remove(&hash(secret));
    }
}

fn drop_oldest(known: &mut BTreeMap<String, Session>, of: impl Fn(&Session) -> bool) {
    let oldest = known.iter().filter(|(_, one)| of(one)).min_by_key(|(_, one)| one.seen);
    if let Some(key) = oldest.map(|(key, _)| key.clone()) {
        known.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 + secs)
    }

    #[test]
    fn sessions_end_by_themselves_and_when_told() {
        let sessions = Sessions::default();
        let secret = sessions.begin("t1", at(0)).unwrap();
        assert_eq!(sessions.find(&secret, at(5)).map(|found| found.token), Some("t1".to_owned()));
        assert_eq!(sessions.find("another", at(5)), None);
        assert_eq!(sessions.find(&"x".repeat(10_000), at(5)), None);
        // Used now and then it lasts a week and no longer; unused, eight hours.
        let hours = |n: u64| at(n * 3_600);
        for hour in (0..7 * 24).step_by(6) {
            assert!(sessions.find(&secret, hours(hour)).is_some(), "after {hour} h");
        }
        assert_eq!(sessions.find(&secret, hours(7 * 24)), None);
        let idle = sessions.begin("t1", at(0)).unwrap();
        assert_eq!(sessions.find(&idle, hours(8)), None);
        let ended = sessions.begin("t1", at(0)).unwrap();
        sessions.end(&ended);
        assert_eq!(sessions.find(&ended, at(1)), None);
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let sessions = Sessions::default();
        let first = sessions.begin("t", at(0)).unwrap();
        let other = sessions.begin("other", at(0)).unwrap();
        for n in 1..=PER_TOKEN as u64 {
            sessions.begin("t", at(n)).unwrap();
        }
        assert_eq!(sessions.find(&first, at(30)), None, "the one not used for longest goes");
        assert!(sessions.find(&other, at(30)).is_some());
        for n in 0..MOST + 10 {
            sessions.begin(&format!("t{n}"), at(40)).unwrap();
        }
        assert_eq!(sessions.known.lock().len(), MOST);
    }

    #[test]
    fn the_secret_itself_is_not_kept() {
        let sessions = Sessions::default();
        let secret = sessions.begin("t", at(0)).unwrap();
        assert!(sessions.known.lock().keys().all(|key| *key != secret));
    }
}
