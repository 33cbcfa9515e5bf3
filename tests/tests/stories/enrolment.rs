//! Join codes that must not open anything, and say why.

use anyhow::{Context, Result, ensure};
use edgefleet_shared::{
    digest::{BlobDigest, EnvelopeDigest},
    enroll::JoinCode,
};
use edgefleet_tests::{
    agent::Agent,
    controller::Controller,
    place::Place,
    waiting::{PATIENCE, until},
};

#[tokio::test]
async fn a_join_code_that_must_not_open_says_why_and_leaves_the_device_as_it_was() -> Result<()> {
    let place = Place::new()?;
    let mut controller = Controller::start(&place).await?;
    let good: JoinCode = controller.invite(1).await?.parse()?;

    let expired = controller.run(&["device", "invite", "--ttl", "1s"]).await?;
    let expired_id = expired["invite"]["id"].as_str().context("no id")?.to_owned();
    until("an invite to expire", PATIENCE, async || {
        let invites = controller.run(&["device", "invites"]).await?;
        let all = invites.as_array().context("no list")?;
        let mine = all.iter().find(|one| one["id"] == expired_id.as_str()).context("not listed")?;
        ensure!(mine["state"] == "expired", "{mine}");
        Ok(())
    })
    .await?;
    let revoked = controller.run(&["device", "invite"]).await?;
    let id = revoked["invite"]["id"].as_str().context("no id")?;
    controller.run(&["device", "invites", "--revoke", id]).await?;
    let used = controller.invite(1).await?;
    drop(Agent::enroll(&place, "first", &used).await?);

    let text = |value: &serde_json::Value| value["code"].as_str().unwrap_or_default().to_owned();
    let changed = |change: &dyn Fn(&mut JoinCode)| {
        let mut code = good.clone();
        change(&mut code);
        code.to_string()
    };
    // Its secret is right, so this one costs a use: only the device can tell that the root is not the promised one.
    let mut other_root: JoinCode = controller.invite(1).await?.parse()?;
    other_root.trust_pin = EnvelopeDigest::of(b"another root");
    let mut cut = good.to_string();
    cut.truncate(cut.len() / 2);
    let cases: [(&str, String, i32, &[&str]); 10] = [
        ("expired", text(&expired), 1, &["expired", "edgefleet device invite"]),
        ("revoked", text(&revoked), 1, &["revoked"]),
        ("used up", used, 1, &["used 1 times", "--uses N"]),
        ("of an unknown invite", changed(&|code| code.secret = "guessed".into()), 1, &["not valid here"]),
        (
            "with another CA",
            changed(&|code| code.ca_pin = BlobDigest::of(b"another CA")),
            1,
            &["is not the one the join code names", "get a new join code"],
        ),
        ("with another trust root", other_root.to_string(), 1, &["trust documents", "do not retry blindly"]),
        (
            "of nobody",
            changed(&|code| code.url = "https://127.0.0.1:1".into()),
            1,
            &["could not ask https://127.0.0.1:1", "can be reached"],
        ),
        ("cut off", cut, 2, &["damaged or incomplete", "copy the whole code"]),
        ("of something else", "ef9-abc".into(), 2, &["starts with `ef1-`"]),
        ("without encryption", changed(&|code| code.url = code.url.replace("https", "http")), 1, &["http"]),
    ];
    for (number, (what, code, exit, words)) in cases.into_iter().enumerate() {
        let data = place.join(&format!("refused-{number}"));
        let done = Agent::try_enroll(&data, "refused", &code, &[]).await?;
        ensure!(done.code == Some(exit), "a code {what}: {done:?}");
        for word in words {
            ensure!(done.err.contains(word), "a code {what}: `{word}` is not named: {}", done.err);
        }
        ensure!(done.out.is_empty() && !data.join("identity").exists(), "a code {what} left an identity");
    }

    // None of it cost the good code anything.
    let agent = Agent::enroll(&place, "second", &good.to_string()).await?;
    let again = Agent::try_enroll(&agent.data, "second", &good.to_string(), &[]).await?;
    again.refused(&["already enrolled", "--force"])?;
    let devices = controller.run(&["device", "list"]).await?;
    ensure!(devices.as_array().is_some_and(|all| all.len() == 3), "{devices}");
    controller.process.stop().await?;
    drop((agent, controller));
    place.end()
}

#[tokio::test]
async fn a_device_waits_until_a_person_lets_it_in() -> Result<()> {
    let place = Place::new()?;
    let mut controller = Controller::start(&place).await?;
    let invite = controller.run(&["device", "invite", "--approval", "--uses", "2"]).await?;
    let code = invite["code"].as_str().context("no code")?;
    let pending = async |wanted: &str| {
        until("a pending device", PATIENCE, async || {
            let all = controller.run(&["device", "list"]).await?;
            let all = all.as_array().context("no list")?;
            let one = all.iter().find(|one| one["state"] == "pending" && one["name"] == wanted);
            Ok(one.context("none waits")?["id"].as_str().context("no id")?.to_owned())
        })
        .await
    };
    let approve = async {
        let id = pending("good").await?;
        controller.run(&["device", "approve", &id]).await?;
        anyhow::Ok(id)
    };
    let deny = async {
        let id = pending("bad").await?;
        controller.run(&["device", "deny", &id]).await
    };
    let data = place.join("bad");
    let good = Agent::enroll(&place, "good", code);
    let bad = Agent::try_enroll(&data, "bad", code, &[]);
    let (good, bad, approved, denied) = tokio::join!(good, bad, approve, deny);
    let mut agent = good?;
    ensure!(agent.id == approved?, "another device was let in");
    denied?;
    bad?.refused(&["denied"])?;
    ensure!(!data.join("identity").exists(), "a denied device has an identity");
    agent.start().await?;
    controller.sees(&agent.id, true).await?;
    agent.stop().await?;
    controller.process.stop().await?;
    drop((agent, controller));
    place.end()
}
