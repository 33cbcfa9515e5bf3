//! Who has to agree to what, who did, and until when.

use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};

/// What an approval is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum Scope {
    Start,
    /// The stage may begin.
    Begin {
        stage: u16,
    },
    /// The stage's statistics can prove nothing on so few devices: a person vouches for it.
    Pass {
        stage: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub scope: Scope,
    pub since: Timestamp,
    pub until: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub scope: Scope,
    pub by: String,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Approvals {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<Request>,
    /// One per scope: at most one per stage and kind, so it stays small.
    pub given: Vec<Approval>,
}

impl Approvals {
    pub fn has(&self, scope: Scope) -> bool {
        self.given.iter().any(|approval| approval.scope == scope)
    }
    pub fn is_open(&self, scope: Scope) -> bool {
        self.open.as_ref().is_some_and(|request| request.scope == scope)
    }
    pub(super) fn ask(&mut self, scope: Scope, since: Timestamp, until: Timestamp) {
        self.open = Some(Request { scope, since, until });
    }
    /// Closes the open request with a yes; the caller has checked who says so.
    pub(super) fn give(&mut self, by: &str, reason: &str, at: Timestamp) -> Option<Scope> {
        let scope = self.open.take()?.scope;
        self.given.retain(|approval| approval.scope != scope);
        self.given.push(Approval { scope, by: by.to_owned(), at, reason: reason.to_owned() });
        Some(scope)
    }
}
