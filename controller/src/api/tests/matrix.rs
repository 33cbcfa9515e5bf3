//! The fleet's routes with every role and with a device, as the OpenAPI document promises and as the server
//! answers. All routes with every role: `server/tests.rs`.

use super::server::{Answer, Identity, TestServer};
use crate::{
    api::access::{Access, RouteRule},
    fleet::roles::Role,
};
use reqwest::{Client, StatusCode};

/// A path that leads to the route and to nothing that exists.
fn path_of(rule: &RouteRule) -> String {
    rule.path.replace("{id}", "none-1").replace("{digest}", &format!("sha256:{}", "0".repeat(64)))
}

async fn ask(server: &TestServer, client: &Client, rule: &RouteRule, token: Option<&str>) -> Answer {
    let mut request = client.request(rule.method.clone(), server.url(&path_of(rule)));
    if !matches!(rule.method.as_str(), "GET" | "DELETE") {
        request = request.header("content-type", "application/json").body("{}");
    }
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Answer::of(request.send().await.unwrap()).await
}

#[tokio::test]
async fn each_route_answers_exactly_the_roles_of_its_rule() {
    let server = TestServer::start().await;
    let bare = server.client(None);
    let (device, enrolled) = server.test.enrolled().await;
    let device = server.client(Some(Identity::of(&device, &enrolled)));
    let mut tokens = Vec::new();
    for role in Role::ALL {
        tokens.push((*role, server.token(*role).await));
    }
    assert!(server.rules.len() > 20);
    for rule in &server.rules {
        let what = format!("{} {}", rule.method, rule.path);
        let stranger = ask(&server, &bare, rule, None).await;
        let forged = ask(&server, &bare, rule, Some("eft_aaaaaaaaaaaa_aaaa")).await;
        let by_device = ask(&server, &device, rule, None).await;
        match rule.access {
            Access::Public => {
                for answer in [stranger, forged, by_device] {
                    assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{what}");
                }
            }
            Access::Token(_) => {
                assert_eq!(stranger.code(), "token-missing", "{what}");
                assert_eq!(by_device.code(), "token-missing", "{what}");
                assert_eq!(
                    (forged.status, forged.code()),
                    (StatusCode::UNAUTHORIZED, "token-refused"),
                    "{what}"
                );
                assert_eq!(forged.header("www-authenticate"), "Bearer");
            }
            Access::Device => {
                assert_eq!(stranger.code(), "device-certificate-required", "{what}");
                assert!(!matches!(by_device.status.as_u16(), 401 | 403), "{what}: {}", by_device.json);
            }
        }
        for (role, token) in &tokens {
            let answer = ask(&server, &bare, rule, Some(token)).await;
            let what = format!("{what} as {role}: {} {}", answer.status, answer.json);
            match rule.access {
                Access::Public => assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{what}"),
                Access::Device => assert_eq!(answer.code(), "device-certificate-required", "{what}"),
                Access::Token(permission) if role.has(permission) => {
                    assert!(!matches!(answer.status.as_u16(), 401 | 403 | 500..), "{what}");
                }
                Access::Token(_) => assert_eq!(answer.code(), "permission-denied", "{what}"),
            }
        }
    }
}
