//! Commands: signed by the controller role, for this device, once, before their deadline.

use edgefleet_shared::{
    ids::{DeviceId, MessageId},
    message::{Command, MESSAGE_SCHEMA, Reply},
    time::Timestamp,
    trust::{RoleName, Trust, TrustError, envelope::COMMAND_TYPE, open},
};
use std::collections::{BTreeMap, BTreeSet};

/// Commands remembered at once. More than this within their deadlines is refused: forgetting an id
/// early would let it be replayed.
const REMEMBERED: usize = 1024;

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("the command is not signed as it must be")]
    Untrusted(#[from] TrustError),
    #[error("the command's schema {found} is not understood")]
    UnknownSchema { found: u32 },
    #[error("the command is for device `{found}`")]
    WrongDevice { found: DeviceId },
    #[error("the command's deadline was {deadline}, it is {now}")]
    TooLate { deadline: Timestamp, now: Timestamp },
    #[error("command `{id}` was carried out already")]
    Repeated { id: MessageId },
    #[error("{REMEMBERED} commands are still within their deadlines; no more are taken until some pass")]
    TooMany,
}

/// Remembers what was carried out until it could not be repeated anyway.
#[derive(Debug, Default)]
pub struct CommandGate {
    by_deadline: BTreeSet<(Timestamp, MessageId)>,
    /// Ids and nonces, so that neither can come again under the other.
    seen: BTreeMap<MessageId, String>,
}

impl CommandGate {
    /// Lets a command through at most once. `now` is the time of the signed floor.
    ///
    /// # Errors
    /// [`CommandError`]; nothing may be carried out then.
    pub fn admit(
        &mut self,
        raw: &[u8],
        device: &DeviceId,
        trust: &Trust,
        now: Timestamp,
    ) -> Result<Command, CommandError> {
        let command: Command = open(raw, COMMAND_TYPE, trust, RoleName::Controller)?;
        if command.schema != MESSAGE_SCHEMA {
            return Err(CommandError::UnknownSchema { found: command.schema });
        }
        if command.device != *device {
            return Err(CommandError::WrongDevice { found: command.device });
        }
        if command.deadline <= now {
            return Err(CommandError::TooLate { deadline: command.deadline, now });
        }
        self.forget(now);
        if self.seen.contains_key(&command.id) || self.seen.values().any(|nonce| *nonce == command.nonce) {
            return Err(CommandError::Repeated { id: command.id });
        }
        if self.seen.len() >= REMEMBERED {
            return Err(CommandError::TooMany);
        }
        self.by_deadline.insert((command.deadline, command.id.clone()));
        self.seen.insert(command.id.clone(), command.nonce.clone());
        Ok(command)
    }

    fn forget(&mut self, now: Timestamp) {
        while let Some((deadline, _)) = self.by_deadline.first() {
            if *deadline > now {
                break;
            }
            if let Some((_, id)) = self.by_deadline.pop_first() {
                self.seen.remove(&id);
            }
        }
    }
}

/// The answer to a command; `error` is what people see at the controller.
pub fn reply(device: &DeviceId, id: &MessageId, error: Option<String>) -> Vec<u8> {
    let reply =
        Reply { schema: MESSAGE_SCHEMA, id: id.clone(), device: device.clone(), ok: error.is_none(), error };
    serde_json::to_vec(&reply).unwrap_or_default() // plain data: cannot fail
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
