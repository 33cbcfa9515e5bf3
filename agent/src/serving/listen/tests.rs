//! Ways in: a socket file for both protocols, TLS for both, and clients that say nothing.

use super::*;
use crate::serving::{
    grpc::tests::{Client, frame, inference},
    http::{
        access::admit,
        tests::{Function, Server, bundle, echo, echo_bundle, json_infer, manifest, pool, spec},
    },
    oip::protobuf::Writer,
    state::ServingConfig,
};
use axum::http::{HeaderMap, Version, header};
use bytes::Bytes;
use edgefleet_shared::tensor::{Datatype, Tensor};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1 as client1, http2 as client2};
use rustls::pki_types::ServerName;
use std::sync::{Arc, atomic::AtomicUsize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

/// More listeners for the state of a server.
fn also(server: &Server, listener: Listener) -> JoinHandle<()> {
    tokio::spawn(serve(vec![listener], server.state.clone(), server.stop.clone()))
}

async fn http1(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> u16 {
    let (mut sender, connection) = client1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::get("/v2/models/echo-fp32").header("host", "localhost").body(Full::<Bytes>::default());
    sender.send_request(request.unwrap()).await.unwrap().status().as_u16()
}

async fn ready_over_grpc(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Vec<u8> {
    let (mut sender, connection) =
        client2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://localhost/inference.GRPCInferenceService/ServerReady")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from_static(&[0; 5])));
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    answer.into_body().collect().await.unwrap().to_bytes().to_vec()
}

/// `ServerReadyResponse { ready: true }` in its frame.
const READY: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

#[tokio::test]
async fn a_socket_file_speaks_both_protocols_and_goes_with_the_agent() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let socket = SocketFile::listen(&path, 0o600).await.unwrap();
    let serving = also(&server, socket.into());
    assert_eq!(http1(UnixStream::connect(&path).await.unwrap()).await, 200);
    assert_eq!(ready_over_grpc(UnixStream::connect(&path).await.unwrap()).await, READY);
    assert_eq!(
        ready_over_grpc(TcpStream::connect(server.address).await.unwrap()).await,
        READY,
        "every port too"
    );
    server.stop.cancel();
    serving.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn tls_carries_both_protocols_and_nothing_else_gets_in() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    also(&server, Listener::with_tls(tcp, acceptor(&certificate, &key).unwrap()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let connect = async |protocol: &[u8]| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
        stream
    };
    assert_eq!(http1(connect(b"http/1.1").await).await, 200);
    assert_eq!(ready_over_grpc(connect(b"h2").await).await, READY);
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = vec![];
    plain.read_to_end(&mut answer).await.ok(); // the connection may also be reset
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    for (certificate, key) in
        [(&key, &key), (&certificate, &certificate), (&folder.path().join("none"), &key)]
    {
        assert!(acceptor(certificate, key).is_err(), "{certificate:?} {key:?}");
    }
}

#[tokio::test]
async fn whoever_says_nothing_or_half_of_something_is_shown_the_door() {
    let config = ServingConfig { header_timeout: Duration::from_millis(200), ..ServingConfig::default() };
    let server = Server::with(config, pool(1, 1), vec![]).await;
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET /v2 HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = vec![];
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "{said:?} keeps its connection");
    }
}

#[test]
fn other_machines_need_the_token_and_programs_here_do_not() {
    let token = Some("0123456789abcdef".to_owned());
    let config = ServingConfig { remote_token: token, ..ServingConfig::default() };
    let [here, there] = ["10.0.0.1:1", "10.0.0.2:2"].map(|text| text.parse().unwrap());
    let uri = "/v2".parse().unwrap();
    for (came, bearer, wanted) in [
        (Came::by_tcp(here, there), None, 401),
        (Came::by_tcp(here, there), Some("Bearer wrong"), 403),
        (Came::by_tcp(here, there), Some("Basic 0123456789abcdef"), 401),
        (Came::by_tcp(here, there), Some("Bearer 0123456789abcdef"), 200),
        (Came::by_tcp(here, here), None, 200),
        (Came::Socket { user: None }, None, 200),
    ] {
        let mut headers = HeaderMap::from_iter([(header::HOST, "10.0.0.1:8443".parse().unwrap())]);
        bearer.map(|bearer| headers.insert(header::AUTHORIZATION, bearer.parse().unwrap()));
        let found = admit(&config, &headers, &uri, Version::HTTP_11, &came);
        assert_eq!(found.map_or_else(|e| e.status.as_u16(), |()| 200), wanted, "{came:?} {bearer:?}");
    }
}

/// Echoes numbers, as many as come.
fn any_length(datatype: Datatype) -> Arc<crate::serving::ServedBundle> {
    let specs = [spec("x", datatype, &[1, -1]), spec("y", datatype, &[1, -1])];
    bundle(manifest("big", 1, &specs[..1], &specs[1..]), echo())
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// More than the system holds for a connection.
const MANY: usize = 24 << 20;

#[tokio::test]
async fn answers_that_nobody_reads_count_and_end_with_their_connection() {
    let config = ServingConfig { write_timeout: Duration::from_secs(2), ..ServingConfig::default() };
    let server = Server::with(config, pool(1, 1), vec![any_length(Datatype::Fp32)]).await;
    let held = || server.state.0.body_bytes.load(Ordering::SeqCst);
    let open = || server.state.0.connections.load(Ordering::SeqCst);
    // HTTP/1
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /v2/models/big/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {MANY}\r\n\
         inference-header-content-length: 0\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&vec![0; MANY]).await.unwrap();
    let answered = || server.state.slots().lease("big").unwrap().stats.totals().success.count;
    until("the model has answered", || answered() == 1).await;
    assert!(held() >= MANY, "{} bytes of an answer that is not read", held());
    until("the connection is cut", || open() == 0).await;
    until("its memory is free", || held() == 0).await;
    // HTTP/2: the connection lives and answers pings, but opens no window.
    let (mut sender, ended) = small_window(server.address).await;
    let message = inference("big", "FP32", &[1, MANY as i64 / 4], &vec![0; MANY]);
    let request = Request::post("http://localhost/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from(frame(&message))));
    let unread = sender.send_request(request.unwrap()).await.unwrap();
    assert!(held() >= MANY, "{} bytes of an answer that is not read", held());
    until("the connection is cut", || open() == 0).await;
    drop(unread);
    ended.await.unwrap().ok();
    until("its memory is free", || held() == 0).await;
}

/// An HTTP/2 connection whose streams may bring 64 KiB before they are read, and its end.
async fn small_window(
    address: std::net::SocketAddr,
) -> (client2::SendRequest<Full<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = client2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 16)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

#[tokio::test]
async fn a_stream_that_nobody_reads_ends_too() {
    let config = ServingConfig { write_timeout: Duration::from_millis(500), ..ServingConfig::default() };
    let server = Server::with(config, pool(1, 1), vec![any_length(Datatype::Fp32)]).await;
    let (mut sender, ended) = small_window(server.address).await;
    let message = frame(&inference("big", "FP32", &[1, 1 << 18], &vec![0; 1 << 20]));
    let request = Request::post("http://localhost/inference.GRPCInferenceService/ModelStreamInfer")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from(message.repeat(10))));
    let unread = sender.send_request(request.unwrap()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it is cut").unwrap().ok();
    drop(unread);
    until("its memory is free", || server.state.0.body_bytes.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_connection_without_calls_is_closed_and_gives_its_window_back() {
    let config = ServingConfig { idle_timeout: Duration::from_millis(300), ..ServingConfig::default() };
    let server = Server::with(config, pool(1, 1), vec![echo_bundle(Datatype::Fp32)]).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        client2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(connection);
    let request: Request<Full<Bytes>> =
        Request::get("http://localhost/v2/models/echo-fp32").body(Full::default()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    assert!(server.state.0.window_bytes.load(Ordering::SeqCst) > 0);
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it is closed").unwrap().ok();
    until("the window is given back", || server.state.0.window_bytes.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn what_a_few_bytes_decode_to_counts_before_it_is_there() {
    let config = ServingConfig { body_budget_bytes: 700_000, ..ServingConfig::default() };
    let runs = Arc::new(AtomicUsize::new(0));
    let counting = runs.clone();
    let specs = [spec("x", Datatype::Int64, &[1, -1]), spec("y", Datatype::Fp32, &[1])];
    let model = Function(move |_: &[Tensor]| {
        counting.fetch_add(1, Ordering::SeqCst);
        Ok(vec![Tensor::new("y", Datatype::Fp32, vec![1], Bytes::from_static(&[0; 4])).unwrap()])
    });
    let model = bundle(manifest("big", 1, &specs[..1], &specs[1..]), Arc::new(model));
    let server = Server::with(config, pool(1, 1), vec![model]).await;
    let count = 100_000;
    let json = json_infer("x", Datatype::Int64, &[1, count], &serde_json::json!(vec![0; count]));
    let answer = server.post("/v2/models/big/infer", &json).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    let mut writer = Writer::new();
    writer.text(1, "big");
    writer.message(5, |input| {
        input.text(1, "x").text(2, "INT64").numbers(3, [1, count as i64].into_iter());
        input.message(5, |contents| {
            contents.numbers(3, std::iter::repeat_n(0, count));
        });
    });
    let told = Client::connect(&server).await.call("ModelInfer", &writer.finish()).await;
    assert_eq!(told.code, 14, "{told:?}");
    let totals = server.state.slots().lease("big").unwrap().stats.totals();
    assert_eq!((totals.rejected, runs.load(Ordering::SeqCst)), (2, 0), "the model was not asked");
    until("the budget is given back", || server.state.0.body_bytes.load(Ordering::SeqCst) == 0).await;
}
