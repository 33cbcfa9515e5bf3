//! API tokens: `eft_<id>_<secret>`, 256 random bits, stored as a hash.

use super::{
    Actor, Fleet, FleetError, Page,
    attributes::check_word,
    data_dir::write_private,
    roles::Role,
    secret::{SecretHash, base32, random, random_id},
};
use crate::store::{
    Expect, FleetStore, Kind, Repository, Revision, Transaction, Versioned, audit::AuditDraft,
};
use edgefleet_shared::time::Timestamp;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, ops::Bound, path::Path, sync::Arc};

const TOKEN: Kind = Kind::new("token");
const PREFIX: &str = "eft_";
/// Longer than any token of ours; longer ones are not even hashed.
const MAX_TOKEN_BYTES: usize = 128;

/// One token, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: String,
    pub name: String,
    pub role: Role,
    pub secret: SecretHash,
    pub created: Timestamp,
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

impl Token {
    pub fn usable(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }
}

/// What a person keeps. Shown once, stored nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText(String);

impl TokenText {
    /// The text to put after `Authorization: Bearer`.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(..)")
    }
}

/// A new token with its text.
#[derive(Clone, Debug)]
pub struct CreatedToken {
    pub token: Token,
    pub text: TokenText,
}

pub(super) struct TokenIndex {
    known: RwLock<BTreeMap<String, (Revision, Token)>>,
    /// Keeps two revocations from each taking "the other" admin for the last one.
    gate: tokio::sync::Mutex<()>,
}

impl TokenIndex {
    pub(super) async fn load(store: &Arc<dyn FleetStore>) -> Result<Self, FleetError> {
        let all = Repository::<Token>::new(Arc::clone(store), TOKEN).list_all("").await?;
        let known = all.into_iter().map(|(id, found)| (id, (found.revision, found.value))).collect();
        Ok(Self { known: RwLock::new(known), gate: tokio::sync::Mutex::new(()) })
    }

    fn put(&self, found: Versioned<Token>) {
        self.known.write().insert(found.value.id.clone(), (found.revision, found.value));
    }
}

impl Fleet {
    /// The token's owner, or `None` for anything that is not a usable token. Answers from memory.
    pub fn authenticate(&self, text: &str) -> Option<Token> {
        if text.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let token = self.tokens.known.read().get(id).map(|(_, token)| token.clone())?;
        (token.secret.matches(secret) && token.usable(self.now())).then_some(token)
    }

    /// The token with this id if it may be used now: for a session that was begun with it.
    pub fn usable_token(&self, id: &str) -> Option<Token> {
        let token = self.tokens.known.read().get(id).map(|(_, token)| token.clone())?;
        token.usable(self.now()).then_some(token)
    }

    /// # Errors
    /// [`FleetError::Label`] for a bad name, store errors.
    pub async fn create_token(
        &self,
        actor: &Actor,
        name: &str,
        role: Role,
        expires: Option<Timestamp>,
    ) -> Result<CreatedToken, FleetError> {
        let created = self.new_token(actor, name, role, expires)?;
        self.save_new_token(actor, &created).await?;
        Ok(created)
    }

    /// At the first start: an admin token, also written to `file` (0600). `None` once there are tokens.
    ///
    /// The file comes first: a kill in between leaves a text that opens nothing, and the next start makes a
    /// new one.
    ///
    /// # Errors
    /// [`FleetError::File`], store errors.
    pub async fn ensure_admin(&self, file: &Path) -> Result<Option<CreatedToken>, FleetError> {
        let _gate = self.tokens.gate.lock().await;
        if !self.tokens.known.read().is_empty() {
            return Ok(None);
        }
        let actor = Actor::controller();
        let created = self.new_token(&actor, "admin", Role::Admin, None)?;
        write_private(file, format!("{}\n", created.text.reveal()).as_bytes())?;
        self.save_new_token(&actor, &created).await?;
        Ok(Some(created))
    }

    /// One page of tokens in the order of their ids.
    pub fn list_tokens(&self, after: Option<&str>, limit: usize) -> Page<Token> {
        let known = self.tokens.known.read();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut items: Vec<Token> = known
            .range::<str, _>((start, Bound::Unbounded))
            .take(limit.saturating_add(1))
            .map(|(_, (_, token))| token.clone())
            .collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|token| token.id.clone());
        Page { items, next }
    }

    /// Ends a token at once. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`FleetError::NoToken`]; [`FleetError::LastAdmin`], so that nobody locks everybody out.
    pub async fn revoke_token(&self, actor: &Actor, id: &str) -> Result<Token, FleetError> {
        let _gate = self.tokens.gate.lock().await;
        let found = self.tokens.known.read().get(id).cloned();
        let (revision, token) = found.ok_or_else(|| FleetError::NoToken(id.chars().take(40).collect()))?;
        if token.revoked.is_some() {
            return Ok(token);
        }
        let now = self.now();
        let admin = |token: &Token| token.role == Role::Admin && token.usable(now) && token.expires.is_none();
        let others = self.tokens.known.read().values().filter(|(_, one)| one.id != id && admin(one)).count();
        if admin(&token) && others == 0 {
            return Err(FleetError::LastAdmin);
        }
        let next = Token { revoked: Some(now), ..token.clone() };
        let audit = AuditDraft {
            before: Some(describe(&token)),
            after: Some(describe(&next)),
            ..self.draft(actor, "token.revoke", format!("token/{id}"))
        };
        let transaction = Transaction::new().put_json(TOKEN, id, Expect::Revision(revision), &next)?;
        let recorded = self.audit.commit(transaction, &[audit]).await?;
        self.tokens.put(Versioned { revision: recorded.committed.revision, value: next.clone() });
        Ok(next)
    }

    fn new_token(
        &self,
        actor: &Actor,
        name: &str,
        role: Role,
        expires: Option<Timestamp>,
    ) -> Result<CreatedToken, FleetError> {
        check_word("a token's name", name)?;
        let now = self.now();
        if let Some(at) = expires.filter(|at| *at <= now) {
            return Err(FleetError::Invalid {
                what: "the end of a token",
                reason: format!("{at} has passed"),
            });
        }
        let id = random_id("")?;
        let secret = base32(&random::<32>()?);
        let text = TokenText(format!("{PREFIX}{id}_{secret}"));
        let token = Token {
            id,
            name: name.to_owned(),
            role,
            secret: SecretHash::of(&secret),
            created: now,
            created_by: actor.name().to_owned(),
            expires,
            revoked: None,
        };
        Ok(CreatedToken { token, text })
    }

    async fn save_new_token(&self, actor: &Actor, created: &CreatedToken) -> Result<(), FleetError> {
        let token = &created.token;
        let audit = AuditDraft {
            after: Some(describe(token)),
            ..self.draft(actor, "token.create", format!("token/{}", token.id))
        };
        let transaction = Transaction::new().put_json(TOKEN, token.id.as_str(), Expect::Absent, token)?;
        let recorded = self.audit.commit(transaction, &[audit]).await?;
        self.tokens.put(Versioned { revision: recorded.committed.revision, value: token.clone() });
        Ok(())
    }
}

fn describe(token: &Token) -> String {
    let expires = token.expires.map(|at| format!(", expires {at}")).unwrap_or_default();
    let revoked = token.revoked.map(|at| format!(", revoked {at}")).unwrap_or_default();
    format!("`{}` with role {}{expires}{revoked}", token.name, token.role)
}
