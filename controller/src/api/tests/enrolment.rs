//! A device's first contact, as it goes over the wire.

use super::server::{Answer, Identity, TestServer};
use crate::fleet::{
    certificate::DeviceCertificate,
    roles::Role,
    testing::{DAY, TestDevice, actor},
};
use edgefleet_shared::{
    digest::BlobDigest,
    enroll::{ENROLL_SCHEMA, EnrollRequest, EnrollResponse, Enrolled, JoinCode, RenewRequest, RenewResponse},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

impl TestServer {
    async fn post(&self, path: &str, body: &impl serde::Serialize) -> Answer {
        Answer::of(self.client(None).post(self.url(path)).json(body).send().await.unwrap()).await
    }

    async fn invite_over_http(&self, body: Value) -> JoinCode {
        let made = self.call(Role::Operator, Method::POST, "/api/v1/invites", Some(body)).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.json);
        made.json["code"].as_str().unwrap().parse().unwrap()
    }
}

fn enrolled(answer: &Answer) -> Enrolled {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.json);
    match serde_json::from_value(answer.json.clone()).unwrap() {
        EnrollResponse::Enrolled(enrolled) => *enrolled,
        EnrollResponse::Pending { .. } => panic!("pending"),
    }
}

#[tokio::test]
async fn from_join_code_to_certificate_to_device_route_to_removal() {
    let server = TestServer::start().await;
    let code =
        server.invite_over_http(json!({"labels": {"site": "plant-7"}, "uses": 1, "ttl_secs": 60})).await;

    // The agent's side of the pin: the authority that the server shows is the one in the code.
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(server.tls_client(None)));
    let socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let session = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
    let shown = session.get_ref().1.peer_certificates().unwrap();
    assert_eq!(shown.len(), 2, "leaf and authority");
    assert_eq!(BlobDigest::of(&shown[1]), code.ca_pin);

    let device = TestDevice::new();
    let enrolled = enrolled(&server.post("/api/v1/enroll", &device.request(&code)).await);
    let client = server.client(Some(Identity::of(&device, &enrolled)));
    let renew = RenewRequest { schema: ENROLL_SCHEMA, csr: device.csr(), certificate: None };
    let send = || async {
        let request = client.post(server.url("/api/v1/device/renew")).json(&renew);
        Answer::of(request.send().await.unwrap()).await
    };
    let renewed: RenewResponse = serde_json::from_value(send().await.json).unwrap();
    let ca = server.test.fleet.ca().certificate();
    assert_eq!(DeviceCertificate::issued_by(&renewed.certificate, ca).unwrap().device, enrolled.device);

    let path = format!("/api/v1/devices/{}", enrolled.device);
    let gone = server.call(Role::Operator, Method::DELETE, &path, None).await;
    assert_eq!((gone.status, &gone.json["device"]["state"]), (StatusCode::OK, &json!("removed")));
    // On the same connection as before: asked at every request.
    let refused = send().await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "device-refused"));
    server.test.fleet.audit_log().verify().await.unwrap();
}

#[tokio::test]
async fn refusals_have_their_own_codes() {
    let server = TestServer::start().await;
    let fleet = &server.test.fleet;
    let device = TestDevice::new();
    let good = server.test.invite(1).await.code;
    let revoked = server.test.invite(1).await.code;
    fleet.revoke_invite(&actor(), &revoked.invite).await.unwrap();
    let used = server.test.invite(1).await.code;
    server.post("/api/v1/enroll", &TestDevice::new().request(&used)).await;
    let unknown = JoinCode { invite: "inv-x".parse().unwrap(), ..good.clone() };
    let wrong = JoinCode { secret: "x".into(), ..good.clone() };
    let request = device.request(&good);
    for (request, status, code) in [
        (device.request(&unknown), 403, "invite-refused"),
        (device.request(&wrong), 403, "invite-refused"),
        (device.request(&revoked), 403, "invite-revoked"),
        (device.request(&used), 403, "invite-used-up"),
        (EnrollRequest { csr: "garbage".into(), ..request.clone() }, 400, "csr-malformed"),
        (
            EnrollRequest { csr: include_str!("../../fleet/tests/rsa.csr.pem").into(), ..request.clone() },
            400,
            "csr-not-p256",
        ),
        (EnrollRequest { csr: "x".repeat(9_000), ..request.clone() }, 400, "csr-too-large"),
        (EnrollRequest { csr: "x".repeat(70_000), ..request.clone() }, 413, "body-too-large"),
        (EnrollRequest { schema: 9, ..request.clone() }, 400, "unknown-schema"),
    ] {
        let answer = server.post("/api/v1/enroll", &request).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{}", answer.json);
    }
    server.test.clock.advance(DAY);
    let answer = server.post("/api/v1/enroll", &request).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (403, "invite-expired"));
    let client = server.client(None);
    for (kind, body, status, code) in [
        ("application/json", "{", 400, "json-invalid"),
        ("application/json", "[]", 400, "json-invalid"),
        ("application/json", "", 400, "json-invalid"),
        ("text/plain", "{}", 415, "not-json"),
    ] {
        let request = client.post(server.url("/api/v1/enroll")).header("content-type", kind).body(body);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{}", answer.json);
    }
    for _ in 0..30 {
        server.post("/api/v1/enroll", &device.request(&wrong)).await;
    }
    let answer = server.post("/api/v1/enroll", &device.request(&wrong)).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (429, "too-many-failures"));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() <= 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_use_is_redeemed_once_over_many_connections() {
    let server = std::sync::Arc::new(TestServer::start().await);
    let code = server.test.invite(1).await.code;
    let tries: Vec<_> = (0..10)
        .map(|_| {
            let (server, request) = (std::sync::Arc::clone(&server), TestDevice::new().request(&code));
            tokio::spawn(async move { server.post("/api/v1/enroll", &request).await.status })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        match one.await.unwrap() {
            StatusCode::OK => won += 1,
            status => assert_eq!(status, StatusCode::FORBIDDEN),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_pending_device_is_told_to_wait_and_comes_in_after_approval() {
    let server = TestServer::start().await;
    let code = server.invite_over_http(json!({"uses": 1, "ttl_secs": 60, "approval": true})).await;
    let device = TestDevice::new();
    let waiting = server.post("/api/v1/enroll", &device.request(&code)).await;
    assert_eq!((waiting.status, &waiting.json["outcome"]), (StatusCode::ACCEPTED, &json!("pending")));
    let list = server.call(Role::Viewer, Method::GET, "/api/v1/devices?state=pending", None).await;
    let id = list.json["items"][0]["id"].as_str().unwrap();
    let approve = format!("/api/v1/devices/{id}/approve");
    let approved = server.call(Role::Approver, Method::POST, &approve, None).await;
    assert_eq!(approved.json["state"], "enrolled");
    let again = server.call(Role::Approver, Method::POST, &approve, None).await;
    assert_eq!((again.status, again.code()), (StatusCode::CONFLICT, "device-not-pending"));
    assert_eq!(enrolled(&server.post("/api/v1/enroll", &device.request(&code)).await).device.as_str(), id);
}

#[tokio::test]
async fn an_expired_certificate_opens_nothing_but_renewal_with_its_key() {
    let server = TestServer::start().await;
    let (device, enrolled) = server.test.enrolled().await;
    server.test.clock.advance(91 * DAY);
    let renew = RenewRequest { schema: ENROLL_SCHEMA, csr: device.csr(), certificate: None };
    let expired = server.client(Some(Identity::of(&device, &enrolled)));
    let refused = expired.post(server.url("/api/v1/device/renew")).json(&renew).send().await;
    assert!(refused.is_err(), "the handshake takes no expired certificate");
    let with_old = RenewRequest { certificate: Some(enrolled.certificate.clone()), ..renew.clone() };
    let thief = RenewRequest { csr: TestDevice::new().csr(), ..with_old.clone() };
    let answer = server.post("/api/v1/renew-expired", &thief).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "other-key"));
    let answer = server.post("/api/v1/renew-expired", &with_old).await;
    let renewed: RenewResponse = serde_json::from_value(answer.json).unwrap();
    let fresh = Enrolled { certificate: renewed.certificate, ..enrolled };
    let client = server.client(Some(Identity::of(&device, &fresh)));
    let answer = client.post(server.url("/api/v1/device/renew")).json(&renew).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}
