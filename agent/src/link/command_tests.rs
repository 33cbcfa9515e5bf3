use super::*;
use edgefleet_shared::{
    message::Action,
    trust::{KeyId, Role, SigningKey, documents::Roles, seal},
};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap()
}

fn trust(controller: &SigningKey, other: &SigningKey) -> Trust {
    let role = |key: &SigningKey| Role { keys: vec![key.public().id()], threshold: 1 };
    let listed = |key: &SigningKey| -> (KeyId, _) { (key.public().id(), key.public()) };
    Trust {
        version: 1,
        issued: Timestamp::from_secs(1),
        expires: Timestamp::from_secs(2),
        keys: [listed(controller), listed(other)].into(),
        roles: Roles { trust: role(other), publisher: role(other), controller: role(controller) },
        floors: BTreeMap::new(),
    }
}

fn command(id: &str, nonce: &str, deadline: Timestamp) -> Command {
    Command {
        schema: MESSAGE_SCHEMA,
        id: id.parse().unwrap(),
        device: "dev-1".parse().unwrap(),
        nonce: nonce.into(),
        deadline,
        action: Action::Ping,
    }
}

#[test]
fn a_command_works_once_for_its_device_before_its_deadline_and_only_if_the_controller_signed_it() {
    let (controller, other) = (key(), key());
    let trust = trust(&controller, &other);
    let now = Timestamp::from_secs(1_000_000);
    let me: DeviceId = "dev-1".parse().unwrap();
    let mut gate = CommandGate::default();
    let sealed = |command: &Command| seal(COMMAND_TYPE, command, &[&controller]);

    let good = sealed(&command("a", "n1", now + DAY));
    assert_eq!(gate.admit(&good, &me, &trust, now).unwrap().action, Action::Ping);
    assert!(matches!(gate.admit(&good, &me, &trust, now), Err(CommandError::Repeated { .. })));
    let same_nonce = sealed(&command("b", "n1", now + DAY));
    assert!(matches!(gate.admit(&same_nonce, &me, &trust, now), Err(CommandError::Repeated { .. })));
    let late = sealed(&command("c", "n2", now));
    assert!(matches!(gate.admit(&late, &me, &trust, now), Err(CommandError::TooLate { .. })));
    let foreign: DeviceId = "dev-2".parse().unwrap();
    let fresh = sealed(&command("d", "n3", now + DAY));
    assert!(matches!(gate.admit(&fresh, &foreign, &trust, now), Err(CommandError::WrongDevice { .. })));
    // Signed by a publisher, or under another document type, or not at all.
    let publisher = seal(COMMAND_TYPE, &command("e", "n4", now + DAY), &[&other]);
    assert!(matches!(gate.admit(&publisher, &me, &trust, now), Err(CommandError::Untrusted(_))));
    let desired =
        seal("application/vnd.edgefleet.desired.v1+json", &command("e", "n4", now + DAY), &[&controller]);
    assert!(matches!(gate.admit(&desired, &me, &trust, now), Err(CommandError::Untrusted(_))));
    assert!(matches!(gate.admit(b"{}", &me, &trust, now), Err(CommandError::Untrusted(_))));
    assert!(gate.admit(&fresh, &me, &trust, now).is_ok());
}

#[test]
fn ids_are_forgotten_after_their_deadline_and_never_before() {
    let (controller, other) = (key(), key());
    let trust = trust(&controller, &other);
    let now = Timestamp::from_secs(1_000_000);
    let me: DeviceId = "dev-1".parse().unwrap();
    let mut gate = CommandGate::default();
    for n in 0..REMEMBERED {
        let raw = seal(COMMAND_TYPE, &command(&format!("c{n}"), &format!("n{n}"), now + DAY), &[&controller]);
        gate.admit(&raw, &me, &trust, now).unwrap();
    }
    let more = seal(COMMAND_TYPE, &command("more", "more", now + DAY * 3), &[&controller]);
    assert_eq!(gate.admit(&more, &me, &trust, now), Err(CommandError::TooMany));
    assert!(gate.admit(&more, &me, &trust, now + DAY).is_ok());
    assert_eq!(gate.seen.len(), 1);
}
