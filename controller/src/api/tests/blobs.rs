//! Blobs over HTTPS, for enrolled devices only.

use super::server::{Answer, Identity, TestServer};
use crate::{
    fleet::testing::{TestDevice, TestFleet},
    registry::{BUNDLE_BLOB, SharedBlob},
    store::{Expect, Transaction},
};
use bytes::Bytes;
use edgefleet_shared::digest::BlobDigest;
use reqwest::StatusCode;

/// Stores a blob as part of an accepted bundle.
async fn offer(server: &TestServer, content: Bytes) -> BlobDigest {
    let stored = server.blobs.put(content).await.unwrap();
    let (id, shared) = (stored.digest.to_hex(), SharedBlob { size: stored.size });
    let transaction = Transaction::new().put_json(BUNDLE_BLOB, id, Expect::Any, &shared).unwrap();
    server.test.fleet.store().commit(transaction).await.unwrap();
    stored.digest
}

#[tokio::test]
async fn what_is_no_part_of_an_accepted_bundle_is_not_given_to_devices() {
    let server = TestServer::start().await;
    let (device, enrolled) = server.test.enrolled().await;
    let client = server.client(Some(Identity::of(&device, &enrolled)));
    let digest = server.blobs.put(Bytes::from_static(b"uploaded, not accepted")).await.unwrap().digest;
    let url = server.url(&format!("/api/v1/device/blobs/{digest}"));
    let answer = Answer::of(client.get(url).send().await.unwrap()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::NOT_FOUND, "blob-unknown"));
}

#[tokio::test]
async fn a_blob_arrives_whole_in_ranges_and_resumed() {
    let server = TestServer::start().await;
    let (device, enrolled) = server.test.enrolled().await;
    let client = server.client(Some(Identity::of(&device, &enrolled)));
    let content: Vec<u8> = (0..3_000_001u32).map(|n| (n * 7 % 251) as u8).collect();
    let digest = offer(&server, Bytes::from(content.clone())).await;
    let url = server.url(&format!("/api/v1/device/blobs/{digest}"));

    let whole = client.get(&url).send().await.unwrap();
    assert_eq!((whole.status(), whole.content_length()), (StatusCode::OK, Some(3_000_001)));
    assert_eq!(whole.headers()["etag"], format!("\"{digest}\""));
    assert_eq!(BlobDigest::of(&whole.bytes().await.unwrap()), digest);

    let mut joined = Vec::new();
    for (range, shown) in [
        ("bytes=0-999999", "bytes 0-999999/3000001"),
        ("bytes=1000000-1000000", "bytes 1000000-1000000/3000001"),
        ("bytes=1000001-", "bytes 1000001-3000000/3000001"),
    ] {
        let part = client.get(&url).header("range", range).send().await.unwrap();
        assert_eq!(
            (part.status(), part.headers()["content-range"].to_str().unwrap()),
            (StatusCode::PARTIAL_CONTENT, shown)
        );
        joined.extend_from_slice(&part.bytes().await.unwrap());
    }
    assert!(joined == content);

    let outside = client.get(&url).header("range", "bytes=3000001-").send().await.unwrap();
    let outside = Answer::of(outside).await;
    assert_eq!((outside.status.as_u16(), outside.code()), (416, "range-not-satisfiable"));
    assert_eq!(outside.header("content-range"), "bytes */3000001");
    let head = client.head(&url).send().await.unwrap();
    assert_eq!(
        (head.status(), head.headers()["content-length"].to_str().unwrap()),
        (StatusCode::OK, "3000001")
    );
    let empty = offer(&server, Bytes::new()).await;
    let empty = client.get(server.url(&format!("/api/v1/device/blobs/{empty}"))).send().await.unwrap();
    assert_eq!((empty.status(), empty.content_length()), (StatusCode::OK, Some(0)));
    for (path, code) in
        [(BlobDigest::of(b"other").to_string(), "blob-unknown"), ("sha256:x".into(), "path-invalid")]
    {
        let answer = client.get(server.url(&format!("/api/v1/device/blobs/{path}"))).send().await.unwrap();
        assert_eq!(Answer::of(answer).await.code(), code);
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_ends_the_handshake() {
    let server = TestServer::start().await;
    let other = TestFleet::new().await;
    let (device, enrolled) = other.enrolled().await;
    let foreign = server.client(Some(Identity::of(&device, &enrolled)));
    assert!(foreign.get(server.url("/healthz")).send().await.is_err());
    // A client that is shown our authority as the only hint and has no fitting certificate sends none.
    let bare = server.client(None).get(server.url("/healthz")).send().await.unwrap();
    assert_eq!(bare.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_certificate_of_ours_that_nobody_enrolled_is_refused() {
    let server = TestServer::start().await;
    let fleet = &server.test.fleet;
    let ca = fleet.ca();
    // One of the controller's own, and one for an id the store has never seen.
    let ghost = TestDevice::new();
    let key = crate::fleet::certificate::key_of_request(&ghost.csr()).unwrap();
    let issued = ca.issue_device(&"dev-ghost".parse().unwrap(), &key, fleet.now()).unwrap();
    let (_, enrolled) = server.test.enrolled().await;
    let ghost =
        Identity::of(&ghost, &edgefleet_shared::enroll::Enrolled { certificate: issued.pem, ..enrolled });
    let controller = ca.controller().clone();
    let controller = Identity { chain: controller.chain, key: controller.key };
    for identity in [ghost, controller] {
        let url = server.url(&format!("/api/v1/device/blobs/{}", BlobDigest::of(b"x")));
        let answer = Answer::of(server.client(Some(identity)).get(url).send().await.unwrap()).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "device-refused"));
    }
}
