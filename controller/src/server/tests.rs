//! The controller as it is put together: every route it serves, who may call each, and how it stops.

use super::{Addresses, BrokerChoice, ServeOptions, serve};
use crate::{
    alerts::AlertSettings,
    api::access::{Access, RouteRule, rules_of},
    fleet::roles::{Permission, Role},
    transfer::Limits,
};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write as _, time::Duration};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
/// What people and systemd are promised, with room for a machine that does other things.
const STOP_LIMIT: Duration = Duration::from_secs(5);

struct Served {
    _dir: tempfile::TempDir,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    client: Client,
    url: String,
    admin: String,
}

impl Served {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let local = "127.0.0.1:0".parse().unwrap();
        let options = ServeOptions {
            data: data.clone(),
            https: local,
            mqtt: local,
            public_url: None,
            agent_bin: None,
            ort_lib: None,
            limits: Limits::default(),
            broker: BrokerChoice::Embedded,
            alerts: AlertSettings::default(),
            otlp: None,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(options, stop.clone()));
        let begun = Instant::now();
        let addresses = loop {
            assert!(!task.is_finished() && begun.elapsed() < DEADLINE, "the controller did not start");
            match Addresses::read(&data) {
                Ok(addresses) => break addresses,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let ca = std::fs::read(data.join("ca/ca.pem")).unwrap();
        let client = Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
            .build()
            .unwrap();
        let admin = std::fs::read_to_string(data.join("admin-token")).unwrap().trim().to_owned();
        Self { _dir: dir, stop, task, client, url: format!("https://{}", addresses.https), admin }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.admin).send().await.unwrap()
    }

    async fn token(&self, role: Role) -> String {
        let made = self
            .client
            .post(format!("{}/api/v1/tokens", self.url))
            .bearer_auth(&self.admin)
            .json(&json!({"name": role.as_str(), "role": role}))
            .send()
            .await
            .unwrap();
        made.json::<Value>().await.unwrap()["text"].as_str().unwrap().to_owned()
    }

    /// Asks for a path that leads to the route and to nothing that exists.
    async fn ask(&self, rule: &RouteRule, token: Option<&str>) -> (StatusCode, Value) {
        let digest = format!("sha256:{}", "0".repeat(64));
        let path = rule.path.replace("{digest}", &digest);
        let path: String = path
            .split('/')
            .map(|part| match part {
                "{counter}" | "{version}" => "9",
                part if part.starts_with('{') => "none-1",
                part => part,
            })
            .collect::<Vec<_>>()
            .join("/");
        let mut request = self.client.request(rule.method.clone(), format!("{}{path}", self.url));
        if !matches!(rule.method.as_str(), "GET" | "DELETE") {
            request = request.header("content-type", "application/json").body("{}");
        }
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap_or_default())
    }

    async fn stop(self) {
        let begun = Instant::now();
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
        assert!(begun.elapsed() < STOP_LIMIT, "it took {:?} to stop", begun.elapsed());
    }
}

fn roles_with(permission: Permission) -> String {
    let roles = Role::ALL.iter().filter(|role| role.has(permission)).map(|role| role.as_str());
    roles.collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_described_and_answers_exactly_the_roles_of_its_rule() {
    let server = Served::start().await;
    let text = server.get("/openapi.json").await.text().await.unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert_eq!(operation["responses"]["default"]["$ref"], "#/components/responses/Problem", "{what}");
            assert!(operation["summary"].is_string(), "{what}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{what}");
            let tag = &operation["tags"][0];
            let known = document["tags"].as_array().unwrap().iter().any(|one| one["name"] == *tag);
            assert!(known, "{what} has the tag {tag}");
        }
    }
    insta::assert_snapshot!("openapi", text);

    let rules = rules_of(&serde_json::from_str(&text).unwrap()).unwrap();
    let mut table = String::new();
    for rule in &rules {
        let what = format!("{:<7}{}", rule.method.as_str(), rule.path);
        let who = match rule.access {
            Access::Public => "anybody".to_owned(),
            Access::Device => "the device itself".to_owned(),
            Access::Token(permission) => roles_with(permission),
        };
        writeln!(table, "{what:<62}{who}").unwrap();
    }
    table.push('\n');
    for permission in Permission::ALL {
        writeln!(table, "{:<62}{}", permission.to_string(), roles_with(*permission)).unwrap();
    }
    insta::assert_snapshot!("matrix", table);

    let mut tokens = Vec::new();
    for role in Role::ALL {
        tokens.push((*role, server.token(*role).await));
    }
    for rule in &rules {
        let stranger = server.ask(rule, None).await;
        for (role, token) in &tokens {
            let (status, body) = server.ask(rule, Some(token)).await;
            let what = format!("{} {} as {role}: {status} {body}", rule.method, rule.path);
            match rule.access {
                Access::Public => assert_ne!(status, StatusCode::UNAUTHORIZED, "{what}"),
                Access::Device => assert_eq!(body["code"], "device-certificate-required", "{what}"),
                Access::Token(permission) if role.has(permission) => {
                    assert!(!matches!(status.as_u16(), 401 | 403 | 500..), "{what}");
                    assert_eq!(stranger.1["code"], "token-missing", "{what}");
                }
                Access::Token(_) => assert_eq!(body["code"], "permission-denied", "{what}"),
            }
        }
    }
    assert_eq!(server.get("/readyz").await.status(), StatusCode::OK);
    server.stop().await;
}

/// Every metric in a dashboard's queries.
fn queried(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if matches!(key.as_str(), "expr" | "query") => {
                        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
                        let words = text.split(word).filter(|word| word.starts_with("edgefleet_"));
                        found.extend(words.map(str::to_owned));
                    }
                    _ => queried(value, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|one| queried(one, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_asks_for_metrics_that_there_are() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana/edgefleet.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut wanted = BTreeSet::new();
    queried(&dashboard, &mut wanted);
    assert!(wanted.len() > 10, "{wanted:?}");
    let server = Served::start().await;
    let text = server.get("/metrics").await.text().await.unwrap();
    let mut there = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        match line.split_once(' ').unwrap() {
            (name, "histogram") => {
                there.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")))
            }
            (name, _) => there.extend([name.to_owned()]),
        }
    }
    let missing: Vec<_> = wanted.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?}");
    server.stop().await;
}
