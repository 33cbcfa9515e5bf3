//! What people do over HTTP.

use super::server::{Answer, TestServer};
use crate::fleet::{
    roles::Role,
    testing::{ADDRESS, TestDevice, actor},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

#[tokio::test]
async fn of_two_people_who_change_one_device_the_second_is_told() {
    let server = TestServer::start().await;
    let (_, enrolled) = server.test.enrolled().await;
    let path = format!("/api/v1/devices/{}", enrolled.device);
    let seen = server.call(Role::Viewer, Method::GET, &path, None).await;
    let tag = seen.header("etag").to_owned();
    let token = server.token(Role::Operator).await;
    let client = server.client(None);
    let change = |tag: &str, body: serde_json::Value| {
        let request = client.patch(server.url(&path)).bearer_auth(&token).header("if-match", tag).json(&body);
        async { Answer::of(request.send().await.unwrap()).await }
    };
    let first = change(&tag, json!({"labels": {"line": "3", "site": null}})).await;
    assert_eq!((first.status, &first.json["labels"]), (StatusCode::OK, &json!({"line": "3"})));
    assert_ne!(first.header("etag"), tag);
    let second = change(&tag, json!({"name": "mine"})).await;
    assert_eq!((second.status, second.code()), (StatusCode::PRECONDITION_FAILED, "stale-revision"));
    for (tag, body, code) in [
        ("7", json!({}), "if-match-invalid"),
        ("*", json!({"labels": {"id": "x"}}), "label-invalid"),
        ("*", json!({"label": {}}), "json-invalid"),
        ("*", json!({"name": "two words"}), "label-invalid"),
    ] {
        assert_eq!(change(tag, body).await.code(), code);
    }
    let named = change(first.header("etag"), json!({"name": "press-7"})).await;
    assert_eq!(named.json["name"], "press-7");
    let request = client.delete(server.url(&path)).bearer_auth(&token).header("if-match", &tag);
    let stale = Answer::of(request.send().await.unwrap()).await;
    assert_eq!(stale.code(), "stale-revision");
}

#[tokio::test]
async fn lists_come_in_pages_and_strange_questions_are_refused() {
    let server = TestServer::start().await;
    let code = server.test.invite(5).await.code;
    for _ in 0..5 {
        server.test.fleet.enroll(&TestDevice::new().request(&code), ADDRESS).await.unwrap();
    }
    let token = server.token(Role::Admin).await;
    let client = server.client(None);
    let get = |path: String| {
        let request = client.get(server.url(&path)).bearer_auth(&token);
        async { Answer::of(request.send().await.unwrap()).await }
    };
    for (list, total) in [("devices", 5), ("audit", 7), ("tokens", 1), ("invites", 1)] {
        let (mut seen, mut next) = (Vec::new(), String::new());
        loop {
            let page = get(format!("/api/v1/{list}?limit=2{next}")).await.json;
            seen.extend(page["items"].as_array().unwrap().iter().cloned());
            let Some(cursor) = page["next"].as_str() else { break };
            next = format!("&cursor={cursor}");
        }
        let ids: std::collections::BTreeSet<_> =
            seen.iter().map(|one| one.get("id").unwrap_or(&one["seq"]).to_string()).collect();
        assert_eq!((seen.len(), ids.len()), (total, total), "{list}");
    }
    for (query, found) in [
        ("selector=site%3Dplant-7%2Ccores%3E3", 5),
        ("selector=site%3Dx", 0),
        ("selector=site%3Dx&selector=arch", 5),
    ] {
        let page = get(format!("/api/v1/devices?{query}")).await;
        assert_eq!(page.json["items"].as_array().unwrap().len(), found, "{query}");
    }
    for (path, code) in [
        ("devices?selector=a%20b", "query-invalid"),
        ("devices?sellector=a", "query-invalid"),
        ("devices?limit=0", "query-invalid"),
        ("devices?limit=1001", "query-invalid"),
        ("devices?limit=2&limit=3", "query-invalid"),
        ("devices?state=lost", "query-invalid"),
        ("devices?cursor=%21", "cursor-invalid"),
        ("devices/Not-an-id", "path-invalid"),
        ("devices/dev-unknown", "device-unknown"),
        ("invites/inv-unknown", "invite-unknown"),
        ("nothing", "route-unknown"),
    ] {
        let answer = get(format!("/api/v1/{path}")).await;
        assert_eq!(answer.code(), code, "{path}: {}", answer.json);
    }
    let wrong = client.put(server.url("/api/v1/devices")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(Answer::of(wrong).await.code(), "method-not-allowed");
}

#[tokio::test]
async fn a_token_is_made_used_revoked_and_leaves_its_traces() {
    let server = TestServer::start().await;
    server.test.fleet.ensure_admin(&server.test.dir.path().join("admin-token")).await.unwrap();
    let made = server
        .call(Role::Admin, Method::POST, "/api/v1/tokens", Some(json!({"name": "ci", "role": "operator"})))
        .await;
    assert_eq!((made.status, made.header("cache-control")), (StatusCode::CREATED, "no-store"));
    let (text, id) = (made.json["text"].as_str().unwrap(), made.json["token"]["id"].as_str().unwrap());
    let client = server.client(None);
    let whoami = || async {
        Answer::of(client.get(server.url("/api/v1/whoami")).bearer_auth(text).send().await.unwrap()).await
    };
    assert_eq!(whoami().await.json["name"], "ci");
    let bad = json!({"name": "x", "role": "king"});
    assert_eq!(
        server.call(Role::Admin, Method::POST, "/api/v1/tokens", Some(bad)).await.code(),
        "json-invalid"
    );
    let path = format!("/api/v1/tokens/{id}");
    server.call(Role::Admin, Method::DELETE, &path, None).await;
    assert_eq!(whoami().await.code(), "token-refused");
    let audit = server.call(Role::Operator, Method::GET, "/api/v1/audit", None).await;
    let entries = audit.json["items"].as_array().unwrap();
    let revoked = entries.iter().find(|entry| entry["action"] == "token.revoke").unwrap();
    assert_eq!(revoked["subject"], format!("token/{id}"));
    assert!(revoked["who"].as_str().unwrap().starts_with("token:"), "{revoked}");
    assert!(!audit.json.to_string().contains(text.rsplit_once('_').unwrap().1));
    server.test.fleet.audit_log().verify().await.unwrap();
}

#[tokio::test]
async fn health_readiness_and_metrics_tell_the_truth() {
    let server = TestServer::start().await;
    let (_, enrolled) = server.test.enrolled().await;
    server.test.fleet.record_presence(&enrolled.device, true, "connected").await.unwrap();
    server.test.fleet.remove_device(&actor(), &server.test.enrolled().await.1.device, None).await.unwrap();
    let client = server.client(None);
    let get = |path: &str| client.get(server.url(path)).send();
    assert_eq!(get("/healthz").await.unwrap().status(), StatusCode::OK);
    assert_eq!(get("/readyz").await.unwrap().status(), StatusCode::OK);
    get("/nowhere/at/all").await.unwrap();
    let token = server.token(Role::Viewer).await;
    let odd = Method::from_bytes(b"BREW").unwrap();
    client.request(odd, server.url("/healthz")).send().await.unwrap();
    let metrics =
        client.get(server.url("/metrics")).bearer_auth(&token).send().await.unwrap().text().await.unwrap();
    for line in [
        "edgefleet_devices{state=\"enrolled\"} 1",
        "edgefleet_devices{state=\"removed\"} 1",
        "edgefleet_devices_online 1",
        "edgefleet_enrolments_total{outcome=\"enrolled\"} 2",
        "edgefleet_http_requests_total{route=\"/healthz\",method=\"GET\",status=\"200\"} 1",
        "edgefleet_http_requests_total{route=\"unmatched\",method=\"GET\",status=\"404\"} 1",
        "edgefleet_http_requests_total{route=\"/healthz\",method=\"other\",status=\"405\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    server.test.fleet.store().close().await.unwrap();
    let down = Answer::of(get("/readyz").await.unwrap()).await;
    assert_eq!((down.status, down.code()), (StatusCode::SERVICE_UNAVAILABLE, "not-ready"));
    assert_eq!(get("/healthz").await.unwrap().status(), StatusCode::OK);
    let body = json!({"uses": 1, "ttl_secs": 60});
    let admin = client.post(server.url("/api/v1/invites")).bearer_auth(&token).json(&body);
    assert_eq!(admin.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}
