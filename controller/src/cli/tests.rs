//! Commands as a person types them, against a real controller in this process; only the agent's probe is a
//! script, since its engine has tests of its own.

use super::{Cli, failure::Failure, run};
use crate::{
    alerts::{self, AlertSettings},
    cli::{
        client::{ApiClient, ClientError},
        context::{Context, GlobalArgs},
    },
    registry::{http::BundleView, probe::AGENT_PROGRAM, probe::tests as fake, record::ModelSummary},
    server::{self, BrokerChoice, ServeOptions},
    signing::summary::TrustSummary,
    transfer::Limits,
};
use clap::{CommandFactory as _, Parser as _};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

pub(super) struct Running {
    pub(super) dir: tempfile::TempDir,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// A controller on free ports whose agent runs `script`.
    async fn start(script: &str) -> Self {
        Self::with(script, AlertSettings::default()).await
    }

    async fn with(script: &str, alerts: AlertSettings) -> Self {
        Self::within(tempfile::tempdir().unwrap(), script, alerts).await
    }

    /// With what its data folder `dir/data` has already.
    pub(super) async fn within(dir: tempfile::TempDir, script: &str, alerts: AlertSettings) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = fake::agent(dir.path(), script);
        let local = "127.0.0.1:0".parse().unwrap();
        let options = ServeOptions {
            data: dir.path().join("data"),
            https: local,
            mqtt: local,
            public_url: None,
            agent_bin: Some(agent),
            ort_lib: None,
            limits: Limits::default(),
            broker: BrokerChoice::Embedded,
            alerts,
            otlp: None,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(server::serve(options, stop.clone()));
        let begun = Instant::now();
        while !dir.path().join("data/run/addresses.json").exists() {
            assert!(!task.is_finished() && begun.elapsed() < DEADLINE, "the controller did not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { dir, stop, task }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
    }

    pub(super) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(super) fn client(&self) -> ApiClient {
        Context::new(GlobalArgs { data: Some(self.data()), ..GlobalArgs::default() }).client().unwrap()
    }

    /// Runs `edgefleet ARGS --data DATA`.
    pub(super) async fn run(&self, args: &[&str]) -> Result<(), String> {
        let data = self.data();
        let mut all = vec!["edgefleet"];
        all.extend(args);
        all.extend(["--data", data.to_str().unwrap()]);
        type_in(&all).await
    }

    /// Builds, signs and pushes a digits version.
    pub(super) async fn publish(&self, version: &str, more: &[&str]) -> Result<(), String> {
        let (source, out) = (digits(version), self.path(version));
        self.run(&["model", "build", &source, "--out", &out, "--no-probe"]).await?;
        self.run(&["model", "sign", &out]).await?;
        self.run(&[&["model", "push", &out], more].concat()).await
    }
}

async fn type_in(args: &[&str]) -> Result<(), String> {
    let cli = Cli::try_parse_from(args).map_err(|e| format!("usage: {e}"))?;
    run(cli.command).await.map_err(|e| format!("{e:#}"))
}

fn digits(version: &str) -> String {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits");
    models.join(version).to_str().unwrap().to_owned()
}

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
    for (args, good) in [
        (&["model", "push", "b", "--override-checks"][..], false),
        (&["model", "push", "b", "--reason", "x"], false),
        (&["model", "push", "b", "--override-checks", "--reason", "x", "--output", "json"], true),
        (&["trust", "propose", "--floor", "digits"], false),
        (&["trust", "propose", "--floor", "digits=2", "--threshold", "publisher=2"], true),
        (&["trust", "propose", "--threshold", "boss=2"], false),
        (&["trust", "sign", "r"], false),
        (&["trust", "merge"], false),
        (&["keys", "new-trust", "--offline", "--out", "d", "--publisher", "a", "--publisher", "b"], true),
        (&["keys", "new-trust"], false),
    ] {
        let all = [&["edgefleet"], args].concat();
        assert_eq!(Cli::try_parse_from(&all).is_ok(), good, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_test_says_which_channels_it_reached() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = format!("http://{}/secret-path", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(|| async { "thanks" });
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let hook = |name: &str, url: &str| alerts::Channel {
        name: name.parse().unwrap(),
        wants: alerts::Wants::default(),
        digest: Duration::ZERO,
        way: alerts::Way::Webhook(alerts::Webhook {
            url: url.parse().unwrap(),
            secret: alerts::Secret::new("a secret of 20 bytes"),
            ca: None,
        }),
    };
    let channels = vec![hook("good", &good), hook("away", "http://127.0.0.1:1/")];
    let house = Running::with("#!/bin/sh\n", AlertSettings { channels }).await;
    house.run(&["alert", "channels"]).await.unwrap();
    house.run(&["alert", "test", "--channel", "good"]).await.unwrap();
    let failed = house.run(&["alert", "test"]).await.unwrap_err();
    assert!(failed.contains("did not arrive at away"), "{failed}");
    let unknown = house.run(&["alert", "test", "--channel", "x"]).await.unwrap_err();
    assert!(unknown.contains("known are: good, away"), "{unknown}");
    house.run(&["alert", "list", "--state", "dead", "--output", "json"]).await.unwrap();
    let listed = house.client().get_bytes("/api/v1/alerts?channel=away").await.unwrap();
    let listed = String::from_utf8(listed.to_vec()).unwrap();
    assert!(listed.contains("\"dead\"") && !listed.contains("secret"), "{listed}");
    let none = house.client().get_bytes("/api/v1/alerts?state=lost").await.unwrap_err();
    assert!(matches!(&none, ClientError::Problem(problem) if problem.code == "query-invalid"), "{none:?}");
    let metrics = String::from_utf8(house.client().get_bytes("/metrics").await.unwrap().to_vec()).unwrap();
    assert!(metrics.contains("edgefleet_alerts_dead_total{channel=\"away\"} 1"), "{metrics}");
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_is_exported_by_the_day() {
    let house = Running::start("#!/bin/sh\n").await;
    let lake = house.path("lake");
    // Nothing to export is no failure, and no file.
    house.run(&["export", "telemetry", "--to", &lake]).await.unwrap();
    assert!(!Path::new(&lake).exists());
    let answer = house.client().get_bytes("/api/v1/export/telemetry?from=2026-11-01&until=2026-11-03").await;
    let lines: Vec<serde_json::Value> = String::from_utf8(answer.unwrap().to_vec())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((lines.len(), &lines[0]["begin"]["from"]), (2, &"2026-11-01".into()));
    assert_eq!(lines[1]["end"]["rows"], 0);
    for wrong in ["from=yesterday", "table=x", "model=A%20b", "form=2026-11-01"] {
        let refused = house.client().stream(&format!("/api/v1/export/telemetry?{wrong}")).await.unwrap_err();
        assert!(matches!(&refused, ClientError::Problem(p) if p.code == "query-invalid"), "{refused:?}");
    }
    let usage = house.run(&["export", "telemetry", "--to", &lake, "--from", "x"]).await.unwrap_err();
    assert!(usage.contains("2026-11-23"), "{usage}");
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_goes_from_a_folder_to_the_registry() {
    let house = Running::start(&fake::verdict_script(true, "")).await;
    let (source, out, agent) = (digits("v1"), house.path("b"), house.path(AGENT_PROGRAM));
    house.run(&["model", "build", &source, "--out", &out, "--agent-bin", &agent]).await.unwrap();
    let unsigned = house.run(&["model", "push", &out]).await.unwrap_err();
    assert!(unsigned.contains("is not signed"), "{unsigned}");
    house.run(&["model", "sign", &out]).await.unwrap();
    house.run(&["model", "push", &out]).await.unwrap();
    house.run(&["model", "push", &out]).await.unwrap();
    for args in [
        &["model", "list"][..],
        &["model", "show", "digits"],
        &["model", "show", "digits@1"],
        &["keys", "show"],
    ] {
        house.run(args).await.unwrap();
        house.run(&[args, &["--output", "json"]].concat()).await.unwrap();
    }
    let client = house.client();
    let model: ModelSummary = client.get("/api/v1/models/digits").await.unwrap();
    assert_eq!((model.newest, model.bundles.len()), (1, 1));
    let bundle: BundleView = client.get("/api/v1/models/digits/bundles/1").await.unwrap();
    assert_eq!(bundle.manifest["model"]["name"], "digits");
    for (path, code) in [
        ("/api/v1/models/nobody", "model-unknown"),
        ("/api/v1/models/digits/bundles/9", "bundle-unknown"),
        ("/api/v1/models/digits/bundles/x", "path-invalid"),
        ("/api/v1/trust/9", "trust-unknown"),
    ] {
        let Err(ClientError::Problem(problem)) = client.get::<serde_json::Value>(path).await else {
            panic!("{path}")
        };
        assert_eq!(problem.code, code);
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_looked_at_and_what_does_not_exist_is_refused_by_name() {
    let house = Running::start(&fake::verdict_script(true, "")).await;
    house.publish("v1", &[]).await.unwrap();
    let plan = house.path("plan.yaml");
    fs::write(&plan, "rollout: { slot: digits, bundle: digits@1 }\n").unwrap();
    for output in ["table", "json"] {
        house.run(&["rollout", "list", "--output", output]).await.unwrap();
    }
    // Nobody is enrolled: whatever the answer is, it names that.
    let nobody = house.run(&["rollout", "start", &plan, "--yes"]).await.unwrap_err();
    assert!(nobody.contains("nobody-selected"), "{nobody}");
    let unknown =
        house.run(&["rollout", "plan", &plan, "--set", "rollout.bundle=digits@9"]).await.unwrap_err();
    assert!(unknown.contains("bundle-unknown"), "{unknown}");
    let mistakes =
        house.run(&["rollout", "plan", &plan, "--set", "stages.early.size=0.1%"]).await.unwrap_err();
    assert!(mistakes.contains("stage"), "{mistakes}");
    for verb in [
        "show", "watch", "explain", "pause", "resume", "approve", "deny", "revert", "skip", "start",
        "verdicts",
    ] {
        let unknown = house.run(&["rollout", verb, "r-0mibjsxda-1f20"]).await.unwrap_err();
        assert!(unknown.contains("rollout-unknown"), "{verb}: {unknown}");
    }
    for more in [&["abort", "r-0mibjsxda-1f20"][..], &["extend", "r-0mibjsxda-1f20", "--by", "1h"]] {
        let unknown = house.run(&[&["rollout"], more, &["--reason", "x"]].concat()).await.unwrap_err();
        assert!(unknown.contains("rollout-unknown"), "{more:?}: {unknown}");
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_check_says_why_and_an_override_is_audited() {
    let failure = r#","failure":{"code":"golden-mismatch","message":"sample 00-zero differs"}"#;
    let house = Running::start(&fake::verdict_script(false, failure)).await;
    let (source, out, agent) = (digits("v3"), house.path("b"), house.path(AGENT_PROGRAM));
    let built = house.run(&["model", "build", &source, "--out", &out, "--agent-bin", &agent]).await;
    assert!(built.unwrap_err().contains("every device would refuse it"));
    let refused = house.publish("v3", &[]).await.unwrap_err();
    assert!(refused.contains("golden-mismatch") && refused.contains("check-failed"), "{refused}");
    house.publish("v3", &["--override-checks", "--reason", "to show it"]).await.unwrap();
    let audit: serde_json::Value = house.client().get("/api/v1/audit?limit=1000").await.unwrap();
    let notes = audit["items"].as_array().unwrap().iter().filter(|entry| entry["note"] == "to show it");
    assert_eq!(notes.count(), 1);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_moves_on_by_files_and_the_registry_follows() {
    let house = Running::start(&fake::verdict_script(true, "")).await;
    let (request, copy) = (house.path("request"), house.path("copy"));
    let key = |name: &str| house.data().join("keys").join(name).to_str().unwrap().to_owned();
    let (trust, publisher) = (key("trust.pk8"), key("publisher.pk8"));
    let current = house.data().join("trust/1.json").to_str().unwrap().to_owned();
    house.run(&["trust", "propose", "--floor", "digits=2", "--out", &request]).await.unwrap();
    let early = house.run(&["trust", "merge", &request]).await.unwrap_err();
    assert!(early.contains("0 of 1 signatures by the present trust keys"), "{early}");
    let sign = |keys: &[&str]| {
        let mut args = vec!["edgefleet", "trust", "sign", &request, "--current", &current, "--out", &copy];
        keys.iter().for_each(|key| args.extend(["--key", key]));
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let args = sign(&[&trust]);
    type_in(&args.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    let half = house.run(&["trust", "merge", &copy]).await.unwrap_err();
    assert!(half.contains("0 of 1 by the present publishers"), "{half}");
    let args = sign(&[&trust, &publisher]);
    type_in(&args.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    house.run(&["trust", "merge", &copy]).await.unwrap();
    let trust: TrustSummary = house.client().get("/api/v1/trust").await.unwrap();
    assert_eq!((trust.version, trust.floors.len()), (2, 1));
    let old = house.publish("v1", &[]).await.unwrap_err();
    assert!(old.contains("below-floor"), "{old}");
    house.publish("v2", &[]).await.unwrap();
    // The same request again follows nothing any more.
    assert!(house.run(&["trust", "merge", &copy]).await.is_err());
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_are_not_what_they_say_leave_nothing() {
    use edgefleet_shared::digest::BlobDigest;
    let house = Running::start("exit 1").await;
    let client = house.client();
    let digest = BlobDigest::of(b"hello");
    let path = format!("/api/v1/blobs/{digest}");
    let body = |text: &'static [u8]| futures::stream::iter([Ok(bytes::Bytes::from_static(text))]);
    let wrong = client.upload::<serde_json::Value>(&path, 5, body(b"hullo")).await;
    let Err(ClientError::Problem(problem)) = wrong else { panic!("{wrong:?}") };
    assert_eq!(problem.code, "digest-mismatch");
    let asked = serde_json::json!({"digests": [digest, digest]});
    let missing: serde_json::Value = client.post("/api/v1/blobs/missing", &asked).await.unwrap();
    assert_eq!(missing["digests"].as_array().unwrap().len(), 1);
    client.upload::<serde_json::Value>(&path, 5, body(b"hello")).await.unwrap();
    let missing: serde_json::Value = client.post("/api/v1/blobs/missing", &asked).await.unwrap();
    assert_eq!(missing["digests"].as_array().unwrap().len(), 0);
    let many = serde_json::json!({"digests": vec![digest; 1_025]});
    let too_many = client.post::<_, serde_json::Value>("/api/v1/blobs/missing", &many).await;
    assert!(matches!(too_many, Err(ClientError::Problem(_))));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_authority_a_wrong_token_and_a_stopped_controller_are_told_apart() {
    let house = Running::start("exit 1").await;
    let other = Running::start("exit 1").await;
    let ca = |house: &Running| fs::read(house.data().join("ca/ca.pem")).unwrap();
    let base = house.client().base().to_owned();
    let fails = async |token: &str, ca: &[u8]| -> Failure {
        let client = ApiClient::new(&base, token, ca).unwrap();
        client.get::<serde_json::Value>("/api/v1/models").await.unwrap_err().into()
    };
    let stranger = fails("x", &ca(&other)).await;
    assert!(stranger.hint.as_ref().unwrap().contains("--ca"), "{stranger}");
    let token = fails("x", &ca(&house)).await;
    assert_eq!(token.code.as_deref(), Some("token-refused"), "{token}");
    let authority = ca(&house);
    house.stop().await;
    let stopped = fails("x", &authority).await;
    assert!(stopped.hint.as_ref().unwrap().contains("is it running"), "{stopped}");
    assert!(ApiClient::new("http://127.0.0.1:1", "x", &authority).is_err(), "never in the clear");
    assert!(ApiClient::new(&base, "x", b"no pem").is_err());
    other.stop().await;
}

#[test]
fn failures_are_printed_with_causes_and_a_hint() {
    let error = crate::signing::key_file::read_private(Path::new("/nowhere/key")).unwrap_err();
    let text = Failure::from(error).hint("look elsewhere").to_string();
    assert!(text.starts_with("error: could not read key `/nowhere/key`\n  caused by: "), "{text}");
    assert!(text.ends_with("\nhint: look elsewhere"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cohorts_and_retention_are_chosen_shown_and_audited() {
    let house = Running::start(&fake::verdict_script(true, "")).await;
    house.publish("v1", &[]).await.unwrap();
    house.run(&["monitor", "cohorts", "digits", "--by", "site, board"]).await.unwrap();
    let facts = house.run(&["monitor", "cohorts", "digits", "--by", "hardware"]).await.unwrap_err();
    assert!(facts.contains("taken by an attribute"), "{facts}");
    house.run(&["monitor", "retention", "--five-minutes", "7"]).await.unwrap();
    let short = house.run(&["monitor", "retention", "--hours", "5"]).await.unwrap_err();
    assert!(short.contains("each no shorter than the one before"), "{short}");
    for args in [
        &["monitor", "cohorts"][..],
        &["monitor", "retention"],
        &["monitor", "show", "digits"],
        &["monitor", "show", "digits@1", "--since", "7d", "--step", "6h", "--cohort", "site=berlin,board=-"],
        &["monitor", "show", "digits@1", "--since", "2026-11-01T00:00:00Z", "--step", "1d", "--shadow"],
    ] {
        house.run(args).await.unwrap();
        house.run(&[args, &["--output", "json"]].concat()).await.unwrap();
    }
    let fine = house.run(&["monitor", "show", "digits", "--since", "30d", "--step", "5m"]).await.unwrap_err();
    assert!(fine.contains("2016 are allowed"), "{fine}");
    assert!(house.run(&["monitor", "show", "nobody"]).await.is_err());
    let settings: serde_json::Value = house.client().get("/api/v1/monitor").await.unwrap();
    assert_eq!(settings["cohorts"]["digits"]["by"], serde_json::json!(["site", "board"]));
    assert_eq!(
        settings["retention"],
        serde_json::json!({"five_minutes": 7, "hours": 90, "days": 730}),
        "what was not named stays"
    );
    let audit: serde_json::Value = house.client().get("/api/v1/audit").await.unwrap();
    let actions = audit["items"].as_array().unwrap().iter().filter_map(|entry| entry["action"].as_str());
    let ours: Vec<_> = actions.filter(|action| action.starts_with("monitor.")).collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    house.stop().await;
}
