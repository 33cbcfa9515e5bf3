//! The listener under clients that misbehave, and at its end.

use super::server::{Answer, TestServer};
use crate::api::https::{self, HttpsLimits};
use crate::fleet::{roles::Role, server_names::ServerNames, testing::DAY};
use hyper::body::Bytes;
use reqwest::{Method, StatusCode};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const DEADLINE: Duration = Duration::from_secs(10);

async fn connect(server: &TestServer, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut config = server.tls_client(None);
    config.alpn_protocols = vec![protocol.to_vec()];
    let socket = TcpStream::connect(server.address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), socket).await.unwrap()
}

/// True once the other side has closed.
async fn closes<S: AsyncReadExt + Unpin>(stream: &mut S) -> bool {
    let mut bytes = [0; 1024];
    let read = async {
        loop {
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap_or(false)
}

#[tokio::test]
async fn clients_that_say_nothing_are_dropped_and_keep_nobody_else_waiting() {
    let limits = HttpsLimits {
        handshake: Duration::from_millis(300),
        head: Duration::from_millis(300),
        ..HttpsLimits::default()
    };
    let server = TestServer::with(limits).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut slow_head = connect(&server, b"http/1.1").await;
    slow_head.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let answer = server.client(None).get(server.url("/healthz")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    for socket in &mut silent {
        assert!(closes(socket).await);
    }
    assert!(closes(&mut slow_head).await);
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let server = TestServer::with(HttpsLimits { connections_per_address: 2, ..HttpsLimits::default() }).await;
    let held = [connect(&server, b"http/1.1").await, connect(&server, b"http/1.1").await];
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert!(closes(&mut third).await);
    drop(held);
    // The places are free once the server has noticed.
    let client = server.client(None);
    let answered = async {
        while client.get(server.url("/healthz")).send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.unwrap();
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let server = TestServer::start().await;
    let client = server.client(None);
    let large = client.get(server.url("/healthz")).header("x-large", "x".repeat(100_000)).send().await;
    assert!(large.is_err() || large.is_ok_and(|answer| answer.status().is_client_error()));
    assert_eq!(client.get(server.url("/healthz")).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn http2_is_spoken_too() {
    let server = TestServer::start().await;
    let stream = connect(&server, b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request =
        hyper::Request::get(server.url("/healthz")).body(http_body_util::Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_renewed_server_certificate_is_shown_from_the_next_handshake_on() {
    let server = TestServer::start().await;
    let ca = server.test.fleet.ca();
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let before = shown(&connect(&server, b"http/1.1").await);
    let later = server.test.clock.now() + 600 * DAY;
    assert!(ca.renew_server(&ServerNames::default(), later).unwrap());
    let config = https::server_config(&ca.server(), ca, server.test.clock.clock()).unwrap();
    server.tls.store(Arc::new(config));
    assert_ne!(shown(&connect(&server, b"http/1.1").await), before);
}

#[tokio::test]
async fn at_the_end_requests_under_way_are_answered_and_new_ones_are_not() {
    let mut server = TestServer::start().await;
    let mut idle = connect(&server, b"http/1.1").await;
    // Half a request: the head is there, the body is not.
    let mut busy = connect(&server, b"http/1.1").await;
    let body = br#"{"name": "late", "role": "viewer"}"#;
    let token = server.token(Role::Admin).await;
    let head = format!(
        "POST /api/v1/tokens HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    busy.write_all(head.as_bytes()).await.unwrap();
    // "100 Continue" says that the handler is waiting for the body.
    let mut bytes = vec![0; 4096];
    let read = busy.read(&mut bytes).await.unwrap();
    assert!(bytes[..read].starts_with(b"HTTP/1.1 100"));
    let address = server.address;
    let finish = async {
        assert!(closes(&mut idle).await, "idle connections end at once");
        busy.write_all(body).await.unwrap();
        let read = busy.read(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    };
    let ((), answer) = tokio::join!(server.stop(), finish);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn answers_carry_the_headers_browsers_are_told_to_obey() {
    let server = TestServer::start().await;
    let answer = server.call(Role::Viewer, Method::GET, "/api/v1/devices", None).await;
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert!(answer.header("strict-transport-security").starts_with("max-age="));
    let client = server.client(None);
    // A request id from outside is not believed: it would let strangers write into the log.
    let forged = client.get(server.url("/nothing")).header("x-request-id", "forged").send().await.unwrap();
    assert_ne!(Answer::of(forged).await.header("x-request-id"), "forged");
}
