//! Tokens.

use crate::fleet::{
    FleetError,
    roles::Role,
    testing::{DAY, TestFleet, actor},
};
use std::{fs, os::unix::fs::PermissionsExt};

#[tokio::test]
async fn the_first_start_makes_one_admin_token_and_the_second_none() {
    let test = TestFleet::new().await;
    let file = test.dir.path().join("admin-token");
    let created = test.fleet.ensure_admin(&file).await.unwrap().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), created.text.reveal());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!format!("{created:?}").contains(created.text.reveal()));
    let test = test.restart().await;
    assert!(test.fleet.ensure_admin(&file).await.unwrap().is_none());
    let found = test.fleet.authenticate(fs::read_to_string(&file).unwrap().trim()).unwrap();
    assert_eq!((found.role, found.name.as_str()), (Role::Admin, "admin"));
}

#[tokio::test]
async fn only_whole_unexpired_unrevoked_tokens_open_anything() {
    let test = TestFleet::new().await;
    let fleet = &test.fleet;
    let admin = fleet.create_token(&actor(), "boss", Role::Admin, None).await.unwrap();
    let ends = Some(test.clock.now() + DAY);
    let viewer = fleet.create_token(&actor(), "screen", Role::Viewer, ends).await.unwrap();
    let text = viewer.text.reveal();
    assert!(fleet.authenticate(text).is_some());
    let other = admin.text.reveal();
    let swapped = format!("eft_{}_{}", viewer.token.id, other.rsplit_once('_').unwrap().1);
    for bad in [
        "",
        "eft_",
        "eft__",
        &text[..text.len() - 1],
        &format!("{text}a"),
        &text[4..],
        &swapped,
        &"x".repeat(1_000_000),
    ] {
        assert!(fleet.authenticate(bad).is_none());
    }
    fleet.revoke_token(&actor(), &viewer.token.id).await.unwrap();
    assert!(fleet.authenticate(text).is_none());
    let short = fleet.create_token(&actor(), "short", Role::Operator, ends).await.unwrap();
    test.clock.advance(DAY);
    assert!(fleet.authenticate(short.text.reveal()).is_none());
    let past = fleet.create_token(&actor(), "past", Role::Viewer, ends).await.unwrap_err();
    assert_eq!(past.code(), "invalid");
    assert!(matches!(fleet.revoke_token(&actor(), &admin.token.id).await, Err(FleetError::LastAdmin)));
    assert!(matches!(fleet.revoke_token(&actor(), "nobody").await, Err(FleetError::NoToken(_))));
    let test = test.restart().await;
    assert!(test.fleet.authenticate(text).is_none(), "still revoked");
    // The store never saw a secret.
    let entries = test.fleet.audit_entries(1, 100).await.unwrap().items;
    let secret = text.rsplit_once('_').unwrap().1;
    assert!(!format!("{entries:?}").contains(secret));
    test.fleet.audit_log().verify().await.unwrap();
}
