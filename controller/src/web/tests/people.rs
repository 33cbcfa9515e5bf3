//! Who gets in, and what they may do.

use super::filled::{House, device_id};
use crate::{
    api::access::Access,
    fleet::roles::{Permission, Role},
    web,
};
use axum::http::Method;
use reqwest::StatusCode;
use std::fmt::Write as _;

/// A path that leads to the route.
fn path_of(rule: &crate::api::access::RouteRule) -> String {
    let id = match rule.path.split('/').nth(1) {
        Some("devices") => device_id(1).to_string(),
        Some("models") => "digits".into(),
        Some("rollouts") => "r-0mibjsxda-1f20".into(),
        _ => "none-1".into(),
    };
    rule.path.replace("{id}", &id).replace("{name}", &id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_for_exactly_the_roles_of_its_rule() {
    let mut table = String::new();
    for rule in web::rules() {
        let what = format!("{:<7}{}", rule.method.as_str(), rule.path);
        let who = match rule.access {
            Access::Token(permission) => {
                let roles = Role::ALL.iter().filter(|role| role.has(permission)).map(|role| role.as_str());
                roles.collect::<Vec<_>>().join(" ")
            }
            Access::Public | Access::Device => "anybody".to_owned(),
        };
        writeln!(table, "{what:<62}{who}").unwrap();
    }
    insta::assert_snapshot!("pages", table);

    let house = House::with(60).await;
    let mut people = Vec::new();
    for role in Role::ALL {
        people.push((*role, house.person(role.as_str()).await));
    }
    for rule in web::rules() {
        let Access::Token(permission) = rule.access else { continue };
        // Ends the session it is sent in; it has a test of its own.
        if rule.path == "/sign-out" {
            continue;
        }
        // Its body does not end.
        let is_stream = rule.path == "/events";
        let path = path_of(&rule);
        let is_form = rule.method == Method::POST;
        let stranger = match is_form {
            true => house.post(&path, "", String::new()).await,
            false => house.get(&path, None).await,
        };
        assert_eq!(stranger.status(), StatusCode::SEE_OTHER, "{path}");
        let to = stranger.headers()["location"].to_str().unwrap().to_owned();
        assert!(to.starts_with("/sign-in"), "{path}: {to}");
        for (role, person) in &people {
            let what = format!("{} {path} as {role}", rule.method);
            if is_form {
                let forged = house.post(&path, &person.cookie, "csrf=guessed&order=pause".into()).await;
                assert_eq!(forged.status(), StatusCode::FORBIDDEN, "{what}");
            }
            let answer = match is_form {
                true => house.post(&path, &person.cookie, format!("csrf={}", person.csrf)).await,
                false => house.get(&path, Some(&person.cookie)).await,
            };
            let status = answer.status();
            let text =
                if is_stream && status.is_success() { String::new() } else { answer.text().await.unwrap() };
            match role.has(permission) {
                true => assert!(!matches!(status.as_u16(), 401 | 403 | 500..), "{what}: {status} {text}"),
                false => {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
                    assert!(text.contains(&format!("lacks `{permission}`")), "{what}: {text}");
                }
            }
        }
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_begins_with_a_token_and_ends_with_it() {
    let house = House::with(3).await;
    let refused = house.sign_in("eft_nobody_nothing").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(refused.headers().get("set-cookie").is_none());

    let token = house.token("viewer").await;
    let entered = house.sign_in(&token).await;
    assert_eq!(entered.headers()["location"], "/fleet");
    let cookie = entered.headers()["set-cookie"].to_str().unwrap();
    for word in ["__Host-edgefleet=", "Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    assert!(!cookie.contains(&token));

    let person = house.person("operator").await;
    assert_eq!(house.get("/fleet", Some(&person.cookie)).await.status(), StatusCode::OK);
    // A browser that sends the form from another site says so.
    let other = house.client.post(format!("{}/sign-out", house.url)).header("cookie", &person.cookie);
    let other = other.header("sec-fetch-site", "cross-site").body(format!("csrf={}", person.csrf));
    assert_eq!(other.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let left = house.post("/sign-out", &person.cookie, format!("csrf={}", person.csrf)).await;
    assert_eq!(left.status(), StatusCode::SEE_OTHER);
    assert!(left.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(house.get("/fleet", Some(&person.cookie)).await.status(), StatusCode::SEE_OTHER);

    // Revoking the token ends its sessions at once.
    let person = house.person("viewer").await;
    let tokens =
        house.client.get(format!("{}/api/v1/tokens", house.url)).bearer_auth(&house.admin).send().await;
    let tokens: serde_json::Value = tokens.unwrap().json().await.unwrap();
    for one in tokens["items"].as_array().unwrap().iter().filter(|one| one["name"] == "viewer") {
        let path = format!("{}/api/v1/tokens/{}", house.url, one["id"].as_str().unwrap());
        house.client.delete(path).bearer_auth(&house.admin).send().await.unwrap();
    }
    assert_eq!(house.get("/fleet", Some(&person.cookie)).await.status(), StatusCode::SEE_OTHER);
    assert!(!Role::Viewer.has(Permission::RolloutsWrite));
    house.stop().await;
}
