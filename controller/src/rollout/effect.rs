//! What a driver has to do. It decides nothing.
//!
//! Effects stand in the document, with their numbers, until the driver says they are done; a driver that loads
//! a rollout first repeats them. Each is idempotent by its number.

use super::{
    event::{Cursor, EffectId},
    plan::Mode,
    verdict::VerdictRecord,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    pub id: EffectId,
    #[serde(flatten)]
    pub effect: Effect,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "kebab-case")]
pub enum Effect {
    /// Compute the membership, announce its digest ([`Event::MembersWritten`](super::Event) with 0 written), then
    /// write one attempt per member, before anything is published. When repeated: if the digest is the one
    /// announced, what is written already stays; if it is another, everything is written anew and attempts
    /// of strangers are deleted. Answer: the same event with `done`.
    WriteMembers,
    /// Give `at_most` devices of the stage their turn, chosen by [`pick`](super::pick) in the order of
    /// their rank. `again`: from those in [`Bucket::Again`](super::Bucket), wherever their rank.
    /// Answer: [`Event::HandedOut`](super::Event).
    HandOut {
        stage: u16,
        mode: Mode,
        at_most: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        again: bool,
    },
    /// Call [`Attempt::take_back`](super::Attempt::take_back) on up to `at_most` devices below `before`, newest
    /// hand-out first, and give them back what they had. Answer: [`Event::Swept`](super::Event).
    Revert {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Cursor>,
        at_most: u64,
    },
    /// As `Revert`, but only what has not been activated, by [`Attempt::cancel`](super::Attempt::cancel).
    /// A device whose slot a later rollout has taken is left to that.
    Cancel {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Cursor>,
        at_most: u64,
    },
    /// Take this into the audit log, signed. Answer: [`Event::Done`](super::Event).
    Verdict { record: Box<VerdictRecord> },
    /// Open a finding. Answer: [`Event::Done`](super::Event).
    Note { note: Note },
}

/// Something a person should see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "kebab-case")]
pub enum Note {
    /// Devices refuse what was signed: possibly an attack.
    SignatureRefused {
        stage: u16,
        devices: u64,
    },
    /// A gate raises an alarm that decides nothing.
    Alarm {
        gate: String,
        text: String,
    },
    ApprovalWanted {
        sentence: String,
    },
    ApprovalExpired {
        sentence: String,
    },
    Paused {
        sentence: String,
    },
    /// A revert ended with devices that nobody has reached; they keep the order to go back.
    Unreachable {
        devices: u64,
    },
    /// A person halted or froze it: the fleet runs two bundles.
    Mixed {
        devices: u64,
    },
}
