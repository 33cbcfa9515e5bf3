//! The next trust document, from wish to signed file. Pure: commands read and write the files.
//!
//! A request is an envelope without enough signatures yet; holders of trust keys add theirs on machines of
//! their own, `merge` puts the signatures together and checks them as every device will.

use super::chain::TrustChain;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use edgefleet_shared::{
    ids::ModelName,
    time::Timestamp,
    trust::{
        Envelope, KeyId, PublicKey, RoleName, SigningKey, Trust, TrustError, documents::Role,
        envelope::TRUST_TYPE,
    },
};
use std::{collections::BTreeMap, time::Duration};

const ROLES: [RoleName; 3] = [RoleName::Trust, RoleName::Publisher, RoleName::Controller];

/// What shall be different in the next version.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub add: Vec<(RoleName, PublicKey)>,
    /// Key ids or unique beginnings of at least 6 digits; removed from every role.
    pub remove: Vec<String>,
    pub floors: BTreeMap<ModelName, u64>,
    pub thresholds: Vec<(RoleName, usize)>,
    /// A new version always gets a new expiry; this alone is a reason for one.
    pub renew: bool,
}

/// Why there is no proposal, or why it cannot be completed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    #[error("nothing would change; say what, or use --renew for a new expiry date alone")]
    Nothing,
    #[error("no key of trust {version} begins with `{text}`")]
    UnknownKey { text: String, version: u64 },
    #[error("{found} keys begin with `{text}`; write more of it (at least 6 digits)")]
    AmbiguousKey { text: String, found: usize },
    #[error("the floor of `{model}` is {current} and only rises, {wanted} is lower")]
    FloorFalls { model: ModelName, current: u64, wanted: u64 },
    #[error("the next trust document would be unusable")]
    Unusable { source: TrustError },
    #[error("not a trust request")]
    Form { source: TrustError },
    #[error("the requests are about different documents; sign and merge copies of one request")]
    Different,
    #[error("there is no request to merge")]
    Empty,
    #[error("key `{key}` has no say in trust {version}: it is in the trust role neither before nor after{}",
        no_publisher(*floors))]
    NoSay { key: KeyId, version: u64, floors: bool },
    #[error("the document is not accepted: {status}")]
    NotAccepted { status: SignatureStatus, source: TrustError },
}

/// Signatures that count, by the rule of version N and of version N+1; each (there, needed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureStatus {
    pub old: (usize, usize),
    pub new: (usize, usize),
    /// Of the present publishers, whose word a change of floors needs.
    pub publishers: Option<(usize, usize)>,
}

fn no_publisher(floors: bool) -> &'static str {
    if floors { ", and no present publisher's, whose word the new floors need" } else { "" }
}

impl std::fmt::Display for SignatureStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((old, old_of), (new, new_of)) = (self.old, self.new);
        write!(
            f,
            "{old} of {old_of} signatures by the present trust keys, {new} of {new_of} by the next ones"
        )?;
        match self.publishers {
            Some((there, of)) => {
                write!(f, ", {there} of {of} by the present publishers, whose releases the new floors revoke")
            }
            None => Ok(()),
        }
    }
}

impl SignatureStatus {
    pub fn complete(&self) -> bool {
        [Some(self.old), Some(self.new), self.publishers].into_iter().flatten().all(|(there, of)| there >= of)
    }
}

/// The document that follows `current`.
///
/// # Errors
/// [`ProposalError`].
pub fn propose(
    current: &Trust,
    changes: &Changes,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Trust, ProposalError> {
    let mut next = current.clone();
    for text in &changes.remove {
        let id = find_key(current, text)?;
        for role in ROLES {
            role_mut(&mut next, role).keys.retain(|key| *key != id);
        }
    }
    for (role, key) in &changes.add {
        next.keys.insert(key.id(), key.clone());
        let keys = &mut role_mut(&mut next, *role).keys;
        if !keys.contains(&key.id()) {
            keys.push(key.id());
        }
    }
    for (role, threshold) in &changes.thresholds {
        role_mut(&mut next, *role).threshold = *threshold;
    }
    for (model, wanted) in &changes.floors {
        let floor = next.floors.entry(model.clone()).or_insert(0);
        if *wanted < *floor {
            return Err(ProposalError::FloorFalls { model: model.clone(), current: *floor, wanted: *wanted });
        }
        *floor = *wanted;
    }
    let used: Vec<KeyId> = ROLES.iter().flat_map(|role| next.role(*role).keys.clone()).collect();
    next.keys.retain(|id, _| used.contains(id));
    if next == *current && !changes.renew {
        return Err(ProposalError::Nothing);
    }
    next.version = current.version.saturating_add(1);
    // Never older than its predecessor, whatever the clock of the machine it is made on.
    next.issued = now.max(current.issued);
    next.expires = next.issued + lifetime;
    next.check().map_err(|source| ProposalError::Unusable { source })?;
    Ok(next)
}

fn role_mut(trust: &mut Trust, role: RoleName) -> &mut Role {
    match role {
        RoleName::Trust => &mut trust.roles.trust,
        RoleName::Publisher => &mut trust.roles.publisher,
        RoleName::Controller => &mut trust.roles.controller,
    }
}

fn find_key(trust: &Trust, text: &str) -> Result<KeyId, ProposalError> {
    let found: Vec<_> = trust.keys.keys().filter(|id| id.as_str().starts_with(text)).collect();
    match found[..] {
        [id] if text.len() >= 6 => Ok(id.clone()),
        [] => Err(ProposalError::UnknownKey { text: text.to_owned(), version: trust.version }),
        _ => Err(ProposalError::AmbiguousKey { text: text.to_owned(), found: found.len() }),
    }
}

/// An envelope that nobody has signed yet.
pub fn request(next: &Trust) -> Envelope {
    let payload = serde_json::to_vec(next).unwrap_or_default(); // plain data: cannot fail
    Envelope { payload_type: TRUST_TYPE.to_owned(), payload: BASE64.encode(payload), signatures: vec![] }
}

/// Reads a request and the document in it. **Unverified**: for showing to the person who signs.
///
/// # Errors
/// [`ProposalError::Form`].
pub fn read_request(raw: &[u8]) -> Result<(Envelope, Trust), ProposalError> {
    let form = |source| ProposalError::Form { source };
    let envelope = Envelope::parse(raw).map_err(form)?;
    if envelope.payload_type != TRUST_TYPE {
        let found = envelope.payload_type.chars().take(100).collect();
        return Err(form(TrustError::WrongType { wanted: TRUST_TYPE, found }));
    }
    let payload = envelope.payload().map_err(form)?;
    let trust: Trust = serde_json::from_slice(&payload)
        .map_err(|e| form(TrustError::Malformed { reason: e.to_string() }))?;
    trust.check().map_err(form)?;
    Ok((envelope, trust))
}

/// Whether the present publishers must sign too: devices take new floors only with their word.
pub fn needs_publishers(current: &Trust, next: &Trust) -> bool {
    current.floors != next.floors
}

/// Adds a signature.
///
/// # Errors
/// [`ProposalError::NoSay`] if the key is in the trust role neither of `current` (if known) nor of the request,
/// and is no present publisher's while floors change; without `current`, a key that is leaving cannot be told
/// from a foreign one and is accepted.
pub fn sign(envelope: &mut Envelope, key: &SigningKey, current: Option<&Trust>) -> Result<(), ProposalError> {
    let (_, next) = read_request(&envelope.to_bytes())?;
    let id = key.public().id();
    if let Some(current) = current
        && !next.roles.trust.keys.contains(&id)
        && !current.roles.trust.keys.contains(&id)
    {
        let floors = needs_publishers(current, &next);
        if !floors || !current.roles.publisher.keys.contains(&id) {
            return Err(ProposalError::NoSay { key: id, version: next.version, floors });
        }
    }
    let payload = envelope.payload().map_err(|source| ProposalError::Form { source })?;
    envelope.add_signature(key, &payload);
    Ok(())
}

/// Puts the signatures of several copies of one request together.
///
/// # Errors
/// [`ProposalError::Different`] if they are not copies of one request.
pub fn merge(requests: &[Vec<u8>]) -> Result<Envelope, ProposalError> {
    let mut merged: Option<Envelope> = None;
    for raw in requests {
        let (envelope, _) = read_request(raw)?;
        match &mut merged {
            None => merged = Some(envelope),
            Some(first) if first.payload != envelope.payload => return Err(ProposalError::Different),
            Some(first) => {
                for signature in envelope.signatures {
                    if !first.signatures.contains(&signature) {
                        first.signatures.push(signature);
                    }
                }
            }
        }
    }
    merged.ok_or(ProposalError::Empty)
}

/// How far a request has come.
///
/// # Errors
/// [`ProposalError::Form`].
pub fn status(current: &Trust, envelope: &Envelope) -> Result<SignatureStatus, ProposalError> {
    let (_, next) = read_request(&envelope.to_bytes())?;
    let payload = envelope.payload().map_err(|source| ProposalError::Form { source })?;
    let count = |trust: &Trust, role| {
        let role = trust.role(role);
        (envelope.valid_keys(trust, role, &payload).len(), role.threshold)
    };
    Ok(SignatureStatus {
        old: count(current, RoleName::Trust),
        new: count(&next, RoleName::Trust),
        publishers: needs_publishers(current, &next).then(|| count(current, RoleName::Publisher)),
    })
}

/// Checks a merged request exactly as a device that is at `current` will.
///
/// # Errors
/// [`ProposalError::NotAccepted`] with what is missing.
pub fn check(current: &[u8], envelope: &Envelope) -> Result<Trust, ProposalError> {
    let form = |source| ProposalError::Form { source };
    let mut chain = TrustChain::start(Bytes::copy_from_slice(current)).map_err(form)?;
    let status = status(chain.current(), envelope)?;
    chain
        .extend(Bytes::from(envelope.to_bytes()))
        .map_err(|source| ProposalError::NotAccepted { status, source })?;
    Ok(chain.current().clone())
}

/// What `next` changes, one sentence a line, for the person who signs.
pub fn differences(current: &Trust, next: &Trust) -> Vec<String> {
    let mut out = Vec::new();
    for name in ROLES {
        let (old, new) = (current.role(name), next.role(name));
        out.extend(new.keys.iter().filter(|k| !old.keys.contains(k)).map(|k| format!("adds {name} key {k}")));
        out.extend(
            old.keys.iter().filter(|k| !new.keys.contains(k)).map(|k| format!("removes {name} key {k}")),
        );
        if old.threshold != new.threshold {
            out.push(format!("changes the {name} threshold from {} to {}", old.threshold, new.threshold));
        }
    }
    for (model, floor) in &next.floors {
        if current.floors.get(model) != Some(floor) {
            out.push(format!("refuses releases of {model} below {floor}"));
        }
    }
    out.push(format!("expires {} instead of {}", next.expires, current.expires));
    out
}

#[cfg(test)]
#[path = "ceremony_tests.rs"]
mod tests;
