//! Downloads against a block server in this process, over a lossy channel, in virtual time.

use super::*;
use edgefleet_shared::transfer::{BlockHeader, block_length};
use std::sync::atomic::AtomicBool;

/// What goes wrong on the way down.
#[derive(Clone, Copy, Default)]
struct Faults {
    /// Every n-th frame is lost; 0 is never.
    lose: u64,
    duplicate: u64,
    /// Each answer is sent backwards.
    reverse: bool,
    /// Every n-th block has a flipped bit.
    corrupt: u64,
    /// The session goes down after this many frames, once, for a minute.
    cut_after: u64,
    /// Every n-th request is answered with "later".
    later: u64,
}

/// Serves blobs by blocks; counts what was asked of it.
struct Server {
    blobs: HashMap<BlobDigest, Vec<u8>>,
    trust: HashMap<u64, Vec<u8>>,
    faults: Faults,
    requests: AtomicU64,
    frames: AtomicU64,
    asked_bytes: AtomicU64,
    largest_ask: AtomicU64,
    mute: AtomicBool,
    /// Frames sent before the server falls silent for good.
    stop_after: AtomicU64,
    down: Mutex<Option<Instant>>,
    to: Mutex<Option<Arc<Blocks>>>,
}

impl Server {
    fn new(faults: Faults, blobs: &[&[u8]]) -> Arc<Self> {
        Arc::new(Self {
            blobs: blobs.iter().map(|b| (BlobDigest::of(b), b.to_vec())).collect(),
            trust: HashMap::new(),
            faults,
            requests: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            asked_bytes: AtomicU64::new(0),
            largest_ask: AtomicU64::new(0),
            mute: AtomicBool::new(false),
            stop_after: AtomicU64::new(u64::MAX),
            down: Mutex::new(None),
            to: Mutex::new(None),
        })
    }
    fn client(self: &Arc<Self>) -> Arc<Blocks> {
        let blocks = Blocks::new(self.clone(), "dev-1".parse().unwrap(), "run1");
        *self.to.lock() = Some(blocks.clone());
        blocks
    }

    fn answers(&self, request: &FetchRequest) -> Vec<BlockFrame> {
        let frame = |answer, payload: &[u8]| BlockFrame {
            header: BlockHeader {
                schema: TRANSFER_SCHEMA,
                id: request.id.clone(),
                object: request.object,
                answer,
            },
            payload: Bytes::copy_from_slice(payload),
        };
        let data = match request.object {
            FetchObject::Blob(digest) => self.blobs.get(&digest),
            FetchObject::Trust(version) => self.trust.get(&version),
        };
        let Some(data) = data else { return vec![frame(BlockAnswer::NotFound, b"")] };
        let (size, total) = (request.block_bytes, data.len() as u64);
        let indexes = request.blocks.iter().flat_map(|(from, to)| *from..*to);
        indexes
            .map(|index| {
                let len = block_length(index, size, total);
                self.asked_bytes.fetch_add(len, Ordering::SeqCst);
                let start = (index * u64::from(size)) as usize;
                let answer = BlockAnswer::Block { index, block_bytes: size, total_bytes: total };
                frame(answer, &data[start..start + len as usize])
            })
            .collect()
    }
}

#[async_trait]
impl BlockLink for Server {
    async fn send(&self, request: FetchRequest) -> Result<(), LinkDown> {
        if self.down.lock().is_some_and(|until| Instant::now() < until) {
            return Err(LinkDown);
        }
        // What the controller would refuse must never be sent.
        FetchRequest::parse(&serde_json::to_vec(&request).unwrap()).expect("a valid request");
        let n = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if self.mute.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut answers = self.answers(&request);
        let bytes = answers.iter().map(|f| f.payload.len() as u64).sum();
        self.largest_ask.fetch_max(bytes, Ordering::SeqCst);
        let f = self.faults;
        if n.is_multiple_of(f.later) {
            answers.truncate(1);
            answers[0].payload = Bytes::new();
            answers[0].header.answer = BlockAnswer::Later { retry_after_ms: 7_000 };
        }
        if f.reverse {
            answers.reverse();
        }
        let to = self.to.lock().clone().unwrap();
        let mut out = vec![];
        for mut frame in answers {
            let n = self.frames.fetch_add(1, Ordering::SeqCst) + 1;
            if n > self.stop_after.load(Ordering::SeqCst) || n.is_multiple_of(f.lose) {
                continue;
            }
            if f.cut_after > 0 && n == f.cut_after {
                *self.down.lock() = Some(Instant::now() + Duration::from_secs(60));
                break;
            }
            if n.is_multiple_of(f.corrupt) && !frame.payload.is_empty() {
                let mut bad = frame.payload.to_vec();
                bad[0] ^= 1;
                frame.payload = bad.into();
            }
            if n.is_multiple_of(f.duplicate) {
                out.push(frame.clone());
            }
            out.push(frame);
        }
        tokio::spawn(async move {
            for frame in out {
                tokio::time::sleep(Duration::from_millis(20)).await; // a link of 1.6 MB/s
                to.deliver(BlockFrame::parse(&frame.to_bytes().into()).unwrap());
            }
        });
        Ok(())
    }
}

#[derive(Default)]
struct Count {
    received: AtomicU64,
    written: AtomicU64,
}
impl Watch for Count {
    fn written(&self, len: u64) {
        let before = self.written.swap(len, Ordering::SeqCst);
        assert!(before <= len, "progress went back from {before} to {len}");
    }
    fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::SeqCst);
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + n / 255 * 7) as u8).collect()
}

async fn fetch(server: &Arc<Server>, data: &[u8], dir: &Path) -> Result<Count, TransferError> {
    let watch = Count::default();
    let target = dir.join("blob");
    server.client().blob(BlobDigest::of(data), data.len() as u64, &target, &watch).await?;
    assert_eq!(std::fs::read(&target).unwrap(), data);
    Ok(watch)
}

#[tokio::test(start_paused = true)]
async fn blobs_of_every_size_arrive_whole() {
    for len in [1, 4_095, 32_768, 32_769, 16 * 32_768, 17 * 32_768 + 1, 3_000_000] {
        let data = content(len);
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(Faults::default(), &[&data]);
        let watch = fetch(&server, &data, dir.path()).await.unwrap();
        assert_eq!(watch.received.load(Ordering::SeqCst), len as u64, "nothing is asked twice");
        assert_eq!(server.asked_bytes.load(Ordering::SeqCst), len as u64);
        assert!(server.largest_ask.load(Ordering::SeqCst) <= WINDOW_BYTES);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_link_costs_time_and_not_content() {
    let data = content(2_500_000);
    for (what, faults) in [
        ("every 7th frame lost", Faults { lose: 7, ..Faults::default() }),
        ("every 3rd frame lost", Faults { lose: 3, ..Faults::default() }),
        ("every 2nd frame twice", Faults { duplicate: 2, ..Faults::default() }),
        ("answers backwards", Faults { reverse: true, ..Faults::default() }),
        ("cut for a minute", Faults { cut_after: 20, ..Faults::default() }),
        ("often told to come later", Faults { later: 3, ..Faults::default() }),
        ("all of it", Faults { lose: 11, duplicate: 5, reverse: true, cut_after: 33, later: 5, corrupt: 0 }),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(faults, &[&data]);
        let done = fetch(&server, &data, dir.path()).await;
        assert!(done.is_ok(), "{what}: {:?}", done.err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_block_is_noticed_and_everything_is_removed() {
    let data = content(1_000_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(Faults { corrupt: 9, ..Faults::default() }, &[&data]);
    let error = fetch(&server, &data, dir.path()).await.err().unwrap();
    assert_eq!(error.code(), RefusalCode::DigestMismatch);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_after_three_deadlines_with_a_typed_error() {
    let data = content(100_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(Faults::default(), &[&data]);
    server.mute.store(true, Ordering::SeqCst);
    let start = Instant::now();
    let error = fetch(&server, &data, dir.path()).await.err().unwrap();
    assert!(matches!(error, TransferError::Timeout { .. }), "{error}");
    assert_eq!(start.elapsed().as_secs(), 90);
    assert_eq!(server.requests.load(Ordering::SeqCst), 3, "asked at 0, 30 and 60 s");
}

#[tokio::test(start_paused = true)]
async fn being_offline_is_no_failed_try() {
    let data = content(100_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(Faults::default(), &[&data]);
    *server.down.lock() = Some(Instant::now() + Duration::from_secs(8 * 3_600));
    fetch(&server, &data, dir.path()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_asks_again_at_once() {
    let data = content(400_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(Faults::default(), &[&data]);
    server.stop_after.store(5, Ordering::SeqCst);
    let blocks = server.client();
    let target = dir.path().join("blob");
    let start = Instant::now();
    let pull = blocks.blob(BlobDigest::of(&data), data.len() as u64, &target, &());
    let reconnect = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.stop_after.store(u64::MAX, Ordering::SeqCst);
        blocks.reconnected();
    };
    let (done, ()) = tokio::join!(pull, reconnect);
    done.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_the_controller_does_not_have_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(Faults::default(), &[]);
    let error = fetch(&server, b"unknown", dir.path()).await.err().unwrap();
    assert_eq!(error.code(), RefusalCode::NotFound);
    let error = server.client().trust(2).await.unwrap_err();
    assert_eq!(error.to_string(), "the controller does not have trust document 2");
}

#[tokio::test(start_paused = true)]
async fn another_size_than_announced_is_refused_before_it_is_written() {
    let data = content(100_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(Faults::default(), &[&data]);
    let target = dir.path().join("blob");
    for announced in [99_999, 100_001, 1] {
        let error = server.client().blob(BlobDigest::of(&data), announced, &target, &()).await.unwrap_err();
        assert!(matches!(error, TransferError::Size { found: 100_000, .. }), "{announced}: {error}");
        assert_eq!(std::fs::metadata(target.with_extension("part")).unwrap().len(), 0);
    }
}

/// The figure of the kill matrix: at most 1 MiB is asked again per kill, whenever it strikes.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_block_asks_at_most_a_mebibyte_again() {
    let data = content(8 << 20);
    let blocks = data.len().div_ceil(32_768) as u64;
    let mut worst = 0;
    for n in 0..20u64 {
        let kill_at = 1 + (n * 37 + 11) % blocks;
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("blob");
        let server = Server::new(Faults::default(), &[&data]);
        server.stop_after.store(kill_at, Ordering::SeqCst);
        // The kill: the transfer is dropped where it stands, synced or not.
        let client = server.client();
        let pull = client.blob(BlobDigest::of(&data), data.len() as u64, &target, &());
        assert!(tokio::time::timeout(Duration::from_secs(25), pull).await.is_err());
        server.stop_after.store(u64::MAX, Ordering::SeqCst);
        fetch(&server, &data, dir.path()).await.unwrap();
        let again = server.asked_bytes.load(Ordering::SeqCst) - data.len() as u64;
        worst = worst.max(again);
        assert!(again <= 1 << 20, "killed at block {kill_at}: {again} bytes asked again");
    }
    assert!(worst > 0, "no kill cost anything: the test kills nothing");
}

#[tokio::test(start_paused = true)]
async fn a_part_of_another_block_size_is_gone_on_with() {
    let data = content(3 << 20);
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("blob");
    let server = Server::new(Faults::default(), &[&data]);
    server.stop_after.store(41, Ordering::SeqCst);
    let client = server.client();
    let pull = client.blob(BlobDigest::of(&data), data.len() as u64, &target, &());
    assert!(tokio::time::timeout(Duration::from_secs(25), pull).await.is_err());
    server.stop_after.store(u64::MAX, Ordering::SeqCst);
    for bytes in [5_000, 100_000] {
        let client = server.client();
        client.set_block_bytes(bytes);
        client.blob(BlobDigest::of(&data), data.len() as u64, &target, &()).await.unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), data);
        std::fs::remove_file(&target).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn frames_nobody_asked_for_fill_nothing() {
    let data = content(200_000);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(Faults::default(), &[&data]);
    let client = server.client();
    let stray = |id: &str, index| BlockFrame {
        header: BlockHeader {
            schema: TRANSFER_SCHEMA,
            id: id.parse().unwrap(),
            object: FetchObject::Blob(BlobDigest::of(&data)),
            answer: BlockAnswer::Block { index, block_bytes: 32_768, total_bytes: 200_000 },
        },
        payload: vec![0; 32_768].into(),
    };
    let target = dir.path().join("blob");
    let pull = client.blob(BlobDigest::of(&data), data.len() as u64, &target, &());
    let noise = async {
        for n in 0..1_000 {
            // Another run of this device, another transfer, and far beyond the end.
            client.deliver(stray("run0-0-1", n));
            client.deliver(stray("run1-99-1", n));
            client.deliver(stray("run1-0-1", 100 + n));
            client.deliver(stray("x", n));
        }
    };
    let (done, ()) = tokio::join!(pull, noise);
    done.unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), data);
    assert!(client.routes.lock().is_empty(), "a finished transfer leaves no route");
}

#[tokio::test(start_paused = true)]
async fn a_trust_document_comes_in_one_block_and_not_larger() {
    let mut server = Server::new(Faults { lose: 1, ..Faults::default() }, &[]);
    let inner = Arc::get_mut(&mut server).unwrap();
    inner.trust.insert(2, content(100_000));
    inner.trust.insert(3, content(MAX_ENVELOPE_BYTES + 1));
    inner.faults.lose = 2; // the second frame, that is the first answer to version 3
    let client = server.client();
    assert_eq!(client.trust(2).await.unwrap(), content(100_000));
    let error = client.trust(3).await.unwrap_err();
    assert!(matches!(error, TransferError::Size { .. }), "{error}");
}
