//! Advice taken as a person types it, against a real controller; and every command that advice prints.

use super::{Cli, tests::Running};
use crate::{
    advice::{
        Action, Scope, Standing, Tracked, command,
        take::tests::{actions, all_steps, cohort, finding},
    },
    alerts::AlertSettings,
    api::take::{TakeAnswer, TakeBody},
    cli::client::ClientError,
    fleet::testing::TestDevice,
    lookout::{ADVICE, AdviceRecord, Marked},
    registry::{http::BundleView, probe::tests as fake, record::ModelSummary},
    settings::Rule,
    store::{
        Expect, FleetStore as _, Transaction,
        sled_home::{SledConfig, SledStore},
    },
};
use clap::Parser as _;
use edgefleet_shared::{
    bundle::{Baseline, Calibration, Manifest},
    time::Timestamp,
};
use serde_json::{Value, json};

/// A POSIX shell's words, as far as commands of advice need them.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => (quoted, any) = (!quoted, true),
            '\\' if !quoted => word.extend(chars.next()),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    assert!(!quoted, "{line}");
    if any || !word.is_empty() {
        all.push(word);
    }
    all
}

#[test]
fn every_printed_command_is_one_the_program_takes() {
    let mut all: Vec<_> = all_steps().into_iter().flat_map(|(_, step)| step.commands).collect();
    all.extend(actions().iter().map(|action| command("adv-0123456789ab", action)));
    for (_, step) in all_steps() {
        if let crate::advice::take::Doing::ByHand { lines, .. } = step.doing {
            all.extend(lines.into_iter().filter(|line| line.starts_with("edgefleet ")));
        }
    }
    assert!(all.len() > 50);
    for line in all {
        let parsed = Cli::try_parse_from(words(&line));
        assert!(parsed.is_ok(), "{line}: {}", parsed.err().unwrap());
    }
}

/// A controller that was told this advice before it started; the ids in the order of the actions.
async fn told(actions: Vec<(Action, Scope)>) -> (Running, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let data = crate::fleet::data_dir::DataDir::open(dir.path().join("data")).unwrap();
    let (store, _) = SledStore::open(SledConfig::new(data.store())).await.unwrap();
    let (mut ids, mut transaction) = (Vec::new(), Transaction::new());
    for (at, (action, scope)) in actions.into_iter().enumerate() {
        let opened = Timestamp::from_secs(1_795_000_000 + at as u64);
        let finding = finding(action, scope);
        let tracked = Tracked {
            finding,
            standing: Standing::Open,
            opened,
            last_seen: opened,
            judged: opened,
            clear_since: None,
            told: opened,
            told_numbers: Default::default(),
        };
        let record = AdviceRecord::open(tracked);
        ids.push(record.id.clone());
        transaction =
            transaction.put_json(ADVICE, record.id.clone().as_str(), Expect::Absent, &record).unwrap();
    }
    store.commit(transaction).await.unwrap();
    store.close().await.unwrap();
    drop((store, data));
    let script = fake::verdict_script(true, "");
    (Running::within(dir, &script, AlertSettings::default()).await, ids)
}

async fn take(house: &Running, id: &str, body: TakeBody) -> Result<TakeAnswer, ClientError> {
    house.client().post(&format!("/api/v1/advice/{id}/take"), &body).await
}

fn dry() -> TakeBody {
    TakeBody { dry_run: true, ..TakeBody::default() }
}

fn code(error: ClientError) -> String {
    match error {
        ClientError::Problem(problem) => problem.code.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_with_another_calibration_goes_from_advice_to_the_registry() {
    let calibration = Calibration { confidence: vec![0.2, 0.8], probability: vec![0.1, 0.7] };
    let push = Action::PushCalibration { calibration: calibration.clone(), ece_before: 0.2, ece_after: 0.01 };
    let (house, ids) = told(vec![(push, cohort("site=berlin"))]).await;
    let id = &ids[0];
    // Nothing is known of the bundle yet: by hand.
    let before = take(&house, id, dry()).await.unwrap();
    assert_eq!(serde_json::to_value(&before.steps[0]).unwrap()["step"], "by-hand");
    house.publish("v1", &[]).await.unwrap();
    let early = house.client().get::<Value>(&format!("/api/v1/advice/{id}/file")).await.unwrap_err();
    assert_eq!(code(early), "advice-not-taken");
    house.run(&["advice", "take", id, "--dry-run"]).await.unwrap();
    let out = house.path("next");
    house.run(&["advice", "take", id, "--out", &out]).await.unwrap();
    let unsigned = house.run(&["model", "push", &out]).await.unwrap_err();
    assert!(unsigned.contains("is not signed"), "{unsigned}");
    house.run(&["model", "sign", &out]).await.unwrap();
    house.run(&["model", "push", &out]).await.unwrap();
    // The same folder again is the same bundle, signature and all; another one is not overwritten.
    house.run(&["advice", "take", id, "--out", &out]).await.unwrap();
    house.run(&["model", "push", &out]).await.unwrap();
    let occupied = house.run(&["advice", "take", id, "--out", &house.path("data")]).await.unwrap_err();
    assert!(occupied.contains("not empty"), "{occupied}");

    let client = house.client();
    let model: ModelSummary = client.get("/api/v1/models/digits").await.unwrap();
    assert_eq!((model.newest, model.bundles.len()), (2, 2));
    let of = async |counter: u32| {
        let view: BundleView = client.get(&format!("/api/v1/models/digits/bundles/{counter}")).await.unwrap();
        (serde_json::from_value::<Manifest>(view.manifest).unwrap(), view.bundle.digest)
    };
    let ((old, digest), (new, _)) = (of(1).await, of(2).await);
    assert_eq!((&old.artifacts, &old.golden, &old.labels), (&new.artifacts, &new.golden, &new.labels));
    assert_eq!(new.lineage["parent"], digest.to_string());
    let blob = new.baseline.unwrap();
    let path = format!("/api/v1/advice/{id}/file?blob={}", blob.digest);
    let baseline = Baseline::parse(&client.get_bytes(&path).await.unwrap()).unwrap();
    assert_eq!(baseline.quality.unwrap().calibration, calibration);
    let foreign = format!("/api/v1/advice/{id}/file?blob=sha256:{}", "0".repeat(64));
    assert_eq!(code(client.get_bytes(&foreign).await.unwrap_err()), "blob-unknown");

    let again = take(&house, id, TakeBody::default()).await.unwrap();
    assert_eq!((again.outcome.as_str(), again.steps[0].made.as_deref()), ("already", Some("digits@2")));
    let shown: Marked = client.get(&format!("/api/v1/advice/{id}")).await.unwrap();
    assert_eq!(shown.taken.map(|taken| taken.by), again.by);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_is_set_once_and_a_dry_run_changes_nothing() {
    let (house, ids) = told(vec![
        (Action::RaiseAuditRate { from: 0.01, to: 0.04 }, cohort("site=berlin")),
        (actions()[2].clone(), cohort("site=berlin")),
    ])
    .await;
    let client = house.client();
    let rules = async || client.get::<Vec<Rule>>("/api/v1/settings").await.unwrap();
    for id in &ids {
        assert_eq!(take(&house, id, dry()).await.unwrap().outcome, "would");
    }
    assert!(rules().await.is_empty());
    for id in &ids {
        let answer = take(&house, id, TakeBody::default()).await.unwrap();
        assert_eq!(answer.outcome, "taken");
    }
    let set = rules().await;
    let names: std::collections::BTreeSet<_> = set.iter().map(|rule| rule.name.clone()).collect();
    assert_eq!(names, ids.iter().cloned().collect());
    let link = take(&house, &ids[1], dry()).await.unwrap().steps[0].step.links[0].clone();
    assert!(link.starts_with("/label?model=digits&") && link.contains("select=site%3Dberlin"), "{link}");
    let page = client.get_bytes(&link).await.unwrap();
    assert!(String::from_utf8_lossy(&page).contains("label captures"));
    // What the page asks for with this filter.
    let query = link.replace("/label?", "/api/v1/captures?state=unlabelled&");
    assert_eq!(client.get::<Value>(&query).await.unwrap()["items"], json!([]));
    // Once taken back by hand it stays taken back.
    house.run(&["settings", "remove", &ids[0]]).await.unwrap();
    house.run(&["advice", "take", &ids[0], "--output", "json"]).await.unwrap();
    assert_eq!(rules().await.len(), 1);
    let audit: Value = client.get("/api/v1/audit?limit=1000").await.unwrap();
    let takes = audit["items"].as_array().unwrap().iter().filter(|entry| entry["action"] == "advice.take");
    assert_eq!(takes.count(), 2);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_decide_who_takes_what_and_rollouts_keep_their_own_rules() {
    let calibration = Calibration { confidence: vec![0.2, 0.8], probability: vec![0.1, 0.7] };
    let push = Action::PushCalibration { calibration, ece_before: 0.2, ece_after: 0.01 };
    let canary =
        Action::StartCanary { bundle: "digits@1".parse().unwrap(), canaries: 20, controls: 60, hours: 72.0 };
    let look = actions().remove(0);
    let (house, ids) =
        told(vec![(push, cohort("all")), (canary, cohort("all")), (look, cohort("all"))]).await;
    house.publish("v1", &[]).await.unwrap();
    let client = house.client();
    let with = async |role: &str| {
        let made: Value = client.post("/api/v1/tokens", &json!({"name": role, "role": role})).await.unwrap();
        let ca = std::fs::read(house.data().join("ca/ca.pem")).unwrap();
        super::client::ApiClient::new(client.base(), made["text"].as_str().unwrap(), &ca).unwrap()
    };
    let path = |id: &str| format!("/api/v1/advice/{id}/take");
    let refused = async |client: &super::client::ApiClient, id: &str| {
        code(client.post::<_, TakeAnswer>(&path(id), &TakeBody::default()).await.unwrap_err())
    };
    let (viewer, operator) = (with("viewer").await, with("operator").await);
    assert_eq!(refused(&viewer, &ids[2]).await, "permission-denied");
    assert_eq!(refused(&operator, &ids[0]).await, "permission-denied");
    let seen: TakeAnswer = operator.post(&path(&ids[0]), &dry()).await.unwrap();
    assert_eq!(serde_json::to_value(&seen.steps[0]).unwrap()["step"], "make-bundle");
    let looked: TakeAnswer = operator.post(&path(&ids[2]), &TakeBody::default()).await.unwrap();
    assert_eq!(serde_json::to_value(&looked.steps[0]).unwrap()["outcome"], "for-people");
    // Nobody is enrolled: the rollout's own refusal, and it may be taken again later.
    for _ in 0..2 {
        assert_eq!(refused(&operator, &ids[1]).await, "nobody-selected");
    }
    let file = operator.get::<Value>(&format!("/api/v1/advice/{}/file", ids[0])).await.unwrap_err();
    assert_eq!(code(file), "permission-denied");
    assert_eq!(refused(&operator, "adv-000000000000").await, "advice-unknown");
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_is_a_rollout_with_the_rules_of_every_rollout() {
    let back = Action::RollBack {
        from: "digits@2".parse().unwrap(),
        to: Some("digits@1".parse().unwrap()),
        changed: vec!["pipeline".into()],
    };
    let canary =
        Action::StartCanary { bundle: "digits@2".parse().unwrap(), canaries: 3, controls: 6, hours: 72.0 };
    let site = || cohort("site=berlin");
    let (house, ids) = told(vec![(back, site()), (canary, site())]).await;
    house.publish("v1", &[]).await.unwrap();
    house.publish("v2", &[]).await.unwrap();
    let client = house.client();
    let invite = json!({"labels": {"site": "berlin"}, "uses": 12, "ttl_secs": 3_600});
    let invite: Value = client.post("/api/v1/invites", &invite).await.unwrap();
    let code_of_invite = invite["code"].as_str().unwrap().parse().unwrap();
    for _ in 0..12 {
        let request = TestDevice::new().request(&code_of_invite);
        client.post::<_, Value>("/api/v1/enroll", &request).await.unwrap();
    }
    // Looked at: one plan that is sound, and nothing started.
    for id in &ids {
        let seen = take(&house, id, dry()).await.unwrap();
        assert_eq!((seen.outcome.as_str(), seen.previews.len()), ("would", 1));
    }
    house.run(&["advice", "take", &ids[1], "--dry-run"]).await.unwrap();
    let rollouts = async || client.get::<Value>("/api/v1/rollouts").await.unwrap()["items"].clone();
    assert_eq!(rollouts().await, json!([]));
    // Twelve devices: somebody has to agree to the number.
    let unseen = take(&house, &ids[0], TakeBody::default()).await.unwrap_err();
    assert_eq!(code(unseen), "confirmation-needed");
    house.run(&["advice", "take", &ids[0], "--yes"]).await.unwrap();
    house.run(&["advice", "take", &ids[0], "--yes"]).await.unwrap();
    let all = rollouts().await;
    let all = all.as_array().unwrap();
    assert_eq!((all.len(), &all[0]["bundle"]), (1, &"digits@1".into()), "{all:?}");
    let again = take(&house, &ids[0], TakeBody::default()).await.unwrap();
    assert_eq!(again.steps[0].made.as_deref(), all[0]["id"].as_str());
    // It is under way: the other one waits its turn as every rollout would.
    let busy = take(&house, &ids[1], TakeBody { confirmed: true, ..TakeBody::default() }).await;
    assert_eq!(code(busy.unwrap_err()), "rollout-conflict");
    house.stop().await;
}
