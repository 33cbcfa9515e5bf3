//! Who may do what: the one table.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $kind:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)*
        }
        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| UnknownWord {
                    kind: $kind,
                    text: text.chars().take(40).collect(),
                    known: Self::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

/// A text that is no role or permission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind}; known are {known}")]
pub struct UnknownWord {
    kind: &'static str,
    text: String,
    known: String,
}

words! {
    /// What a token's owner is. `publisher` can all that `operator` can, and so on down; `approver` looks
    /// and approves but starts nothing, so that one person's work needs another one's consent; `admin` can
    /// everything.
    Role, "role" {
        Viewer = "viewer",
        Operator = "operator",
        Publisher = "publisher",
        Approver = "approver",
        Admin = "admin",
    }
}

words! {
    /// What a route asks for. Routes name one in their OpenAPI `security`; that text is what is enforced.
    Permission, "permission" {
        /// Devices, models, rollouts, telemetry, metrics.
        Read = "read",
        AuditRead = "audit:read",
        /// What devices captured: people's pictures and texts, not only what was counted of them.
        CapturesRead = "captures:read",
        DevicesWrite = "devices:write",
        DevicesApprove = "devices:approve",
        DevicesRemove = "devices:remove",
        InvitesWrite = "invites:write",
        /// Assignments, rollouts, commands, settings.
        RolloutsWrite = "rollouts:write",
        RolloutsApprove = "rollouts:approve",
        ModelsWrite = "models:write",
        /// Push a bundle although a check failed.
        ChecksOverride = "checks:override",
        TokensWrite = "tokens:write",
        /// Backup, keys, trust.
        SystemWrite = "system:write",
    }
}

impl Role {
    /// Whether this role has `permission`. The whole matrix of the program is here.
    pub fn has(self, permission: Permission) -> bool {
        use Permission as P;
        use Role as R;
        let who: &[R] = match permission {
            P::Read => &[R::Viewer, R::Operator, R::Publisher, R::Approver, R::Admin],
            P::AuditRead => &[R::Operator, R::Publisher, R::Approver, R::Admin],
            P::CapturesRead => &[R::Operator, R::Publisher, R::Admin],
            P::DevicesWrite => &[R::Operator, R::Publisher, R::Admin],
            P::DevicesApprove => &[R::Approver, R::Admin],
            P::DevicesRemove => &[R::Operator, R::Publisher, R::Admin],
            P::InvitesWrite => &[R::Operator, R::Publisher, R::Admin],
            P::RolloutsWrite => &[R::Operator, R::Publisher, R::Admin],
            P::RolloutsApprove => &[R::Approver, R::Admin],
            P::ModelsWrite => &[R::Publisher, R::Admin],
            P::ChecksOverride => &[R::Admin],
            P::TokensWrite => &[R::Admin],
            P::SystemWrite => &[R::Admin],
        };
        who.contains(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_of_the_ladder_adds_and_admin_has_everything() {
        for permission in Permission::ALL {
            let has = |role: Role| role.has(*permission);
            assert!(has(Role::Admin), "{permission}");
            assert!(!has(Role::Viewer) || has(Role::Operator), "{permission}");
            assert!(!has(Role::Operator) || has(Role::Publisher), "{permission}");
            assert!(!has(Role::Viewer) || has(Role::Approver), "{permission}");
        }
    }

    #[test]
    fn nobody_but_admin_both_starts_and_approves() {
        for role in Role::ALL.iter().filter(|role| **role != Role::Admin) {
            assert!(
                !(role.has(Permission::RolloutsWrite) && role.has(Permission::RolloutsApprove)),
                "{role}"
            );
            assert!(!(role.has(Permission::InvitesWrite) && role.has(Permission::DevicesApprove)), "{role}");
        }
    }
}
