//! Downloads from a real HTTPS server with ranges, and from one that misbehaves.

use super::*;
use crate::update::{
    fetch::{Fetcher, Meter},
    part::SYNC_BYTES,
    transfer::{BlockLink, Blocks, LinkDown},
};
use edgefleet_shared::{
    reported::RefusalCode,
    transfer::{
        BlockAnswer, BlockFrame, BlockHeader, FetchObject, FetchRequest, TRANSFER_SCHEMA, block_length,
    },
};
use parking_lot::Mutex;
use std::sync::{Arc, atomic::Ordering};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// How the server answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Good,
    /// Closes after this many bytes of a body.
    Cuts(usize),
    Status(u16),
    /// Answers from the start whatever was asked.
    IgnoresRange,
    /// Sends bytes of another blob.
    Lies,
}

struct Server {
    base: String,
    tls: rustls::ClientConfig,
    manner: Arc<Mutex<Manner>>,
    /// First byte of each range that was asked for.
    asked: Arc<Mutex<Vec<u64>>>,
}

async fn serve(data: Vec<u8>) -> Server {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (manner, asked) = (Arc::new(Mutex::new(Manner::Good)), Arc::new(Mutex::new(vec![])));
    let server = Server { base, tls, manner: manner.clone(), asked: asked.clone() };
    let data = Arc::new(data);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, data, manner, asked) =
                (acceptor.clone(), data.clone(), *manner.lock(), asked.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match tls.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                let path = format!("/api/v1/device/blobs/{}", BlobDigest::of(&data));
                assert!(head.starts_with(&format!("get {path} ")), "{head}");
                let range = head.split("range: bytes=").nth(1).unwrap().split("\r\n").next().unwrap();
                let (from, to) = range.split_once('-').unwrap();
                let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
                assert_eq!(to, data.len() as u64 - 1, "up to the last byte");
                asked.lock().push(from);
                let (status, start) = match manner {
                    Manner::Status(status) => (status, data.len()),
                    Manner::IgnoresRange => (206, 0),
                    _ => (206, from as usize),
                };
                let mut body = data[start..].to_vec();
                if manner == Manner::Lies {
                    body.iter_mut().for_each(|byte| *byte ^= 1);
                }
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{to}/{}\r\nconnection: close\r\n\r\n",
                    body.len(),
                    data.len()
                );
                if let Manner::Cuts(at) = manner {
                    body.truncate(at);
                }
                let _ = tls.write_all(head.as_bytes()).await;
                let _ = tls.write_all(&body).await;
                let _ = tls.shutdown().await;
            });
        }
    });
    server
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 17 + n / 253) as u8).collect()
}

#[tokio::test]
async fn a_blob_comes_over_https_and_goes_on_after_a_cut() {
    let data = content(3 << 20);
    let server = serve(data.clone()).await;
    let source = HttpsSource::new(server.tls.clone(), &server.base);
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("blob");
    let (digest, size) = (BlobDigest::of(&data), data.len() as u64);
    *server.manner.lock() = Manner::Cuts(1_600_000);
    let error = blob(&source, digest, size, &target, &()).await.unwrap_err();
    assert_eq!(error.code(), RefusalCode::TransferTimeout, "{error}");
    *server.manner.lock() = Manner::Good;
    blob(&source, digest, size, &target, &()).await.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), data);
    let asked = server.asked.lock().clone();
    assert_eq!(asked[0], 0);
    assert!(asked[1] + SYNC_BYTES > 1_600_000 && asked[1] <= 1_600_000, "went on at {}", asked[1]);
}

#[tokio::test]
async fn wrong_answers_are_typed_errors() {
    let data = content(100_000);
    let server = serve(data.clone()).await;
    let source = HttpsSource::new(server.tls.clone(), &server.base);
    let (digest, size) = (BlobDigest::of(&data), data.len() as u64);
    for (manner, code, said) in [
        (Manner::Status(503), RefusalCode::TransferTimeout, "503"),
        (Manner::Status(404), RefusalCode::TransferTimeout, "404"),
        (Manner::Lies, RefusalCode::DigestMismatch, "removed"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        *server.manner.lock() = manner;
        let error = blob(&source, digest, size, &dir.path().join("blob"), &()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    // A server that does not know ranges must not be taken for one that went on.
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("blob");
    *server.manner.lock() = Manner::Cuts(60_000);
    blob(&source, digest, size, &target, &()).await.unwrap_err();
    *server.manner.lock() = Manner::IgnoresRange;
    let error = blob(&source, digest, size, &target, &()).await.unwrap_err();
    assert!(error.to_string().contains("another range"), "{error}");
}

#[tokio::test]
async fn a_server_with_another_certificate_gets_no_question() {
    let data = content(1_000);
    let (server, stranger) = (serve(data.clone()).await, serve(data.clone()).await);
    let source = HttpsSource::new(server.tls.clone(), &stranger.base);
    let dir = tempfile::tempdir().unwrap();
    let found = blob(&source, BlobDigest::of(&data), 1_000, &dir.path().join("blob"), &()).await;
    assert!(matches!(found, Err(TransferError::Https { .. })), "{found:?}");
    assert!(stranger.asked.lock().is_empty());
}

/// Answers every request at once from one blob.
struct Mqtt {
    data: Vec<u8>,
    blocks: Mutex<Option<Arc<Blocks>>>,
}
#[async_trait]
impl BlockLink for Mqtt {
    async fn send(&self, request: FetchRequest) -> Result<(), LinkDown> {
        let blocks = self.blocks.lock().clone().ok_or(LinkDown)?;
        for index in request.blocks.iter().flat_map(|(from, to)| *from..*to) {
            let (size, total) = (request.block_bytes, self.data.len() as u64);
            let start = (index * u64::from(size)) as usize;
            let end = start + block_length(index, size, total) as usize;
            blocks.deliver(BlockFrame {
                header: BlockHeader {
                    schema: TRANSFER_SCHEMA,
                    id: request.id.clone(),
                    object: FetchObject::Blob(BlobDigest::of(&self.data)),
                    answer: BlockAnswer::Block { index, block_bytes: size, total_bytes: total },
                },
                payload: Bytes::copy_from_slice(&self.data[start..end]),
            });
        }
        Ok(())
    }
}

#[tokio::test]
async fn big_blobs_prefer_https_and_fall_back_to_mqtt_where_it_stopped() {
    let data = content(2 << 20);
    for (transport, limit, manner, questions, over_both) in [
        (Transport::Auto, 1 << 20, Manner::Good, 1, false),
        (Transport::Auto, 8 << 20, Manner::Good, 0, false),
        (Transport::Https, u64::MAX, Manner::Good, 1, false),
        (Transport::Mqtt, 0, Manner::Good, 0, false),
        (Transport::Auto, 1 << 20, Manner::Cuts(1_200_000), 1, true),
        (Transport::Auto, 1 << 20, Manner::Status(500), 1, false),
    ] {
        let server = serve(data.clone()).await;
        *server.manner.lock() = manner;
        let mqtt = Arc::new(Mqtt { data: data.clone(), blocks: Mutex::new(None) });
        let blocks = Blocks::new(mqtt.clone(), "dev-1".parse().unwrap(), "r");
        *mqtt.blocks.lock() = Some(blocks.clone());
        let dir = tempfile::tempdir().unwrap();
        let store = crate::update::BundleStore::open(dir.path()).unwrap();
        let source = Arc::new(HttpsSource::new(server.tls.clone(), &server.base));
        let fetcher = Fetcher::new(store.clone(), blocks, Some(source), "x".into(), 0);
        let settings =
            edgefleet_shared::desired::Settings { transport, https_above_bytes: limit, ..Default::default() };
        let meter = Meter { progress: Box::new(|_, _| {}), received: Default::default() };
        let (digest, size) = (BlobDigest::of(&data), data.len() as u64);
        let path = store.blob_path(digest);
        fetcher.fetch(digest, size, path.clone(), Some(&settings), &meter).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), data);
        assert_eq!(server.asked.lock().len(), questions, "{transport:?} above {limit}");
        let received = meter.received.load(Ordering::Relaxed);
        assert!(received < size + SYNC_BYTES, "{received} bytes for {size}");
        assert!(!over_both || received >= size);
    }
}
