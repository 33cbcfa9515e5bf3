//! A TCP proxy between two parties, for faults of the line: cut, refuse, throttle, delay.

use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Small pieces keep a throttled line even.
const PIECE: usize = 16 * 1024;

struct Line {
    target: SocketAddr,
    refuses: AtomicBool,
    /// In each direction of each connection; 0 is no limit.
    bytes_per_sec: AtomicU64,
    delay_ms: AtomicU64,
    to_target: AtomicU64,
    from_target: AtomicU64,
    connections: AtomicU64,
    cuts: watch::Sender<u64>,
}

/// Ends with its connections when dropped.
pub struct Proxy {
    pub address: SocketAddr,
    line: Arc<Line>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on `listen` (port 0 takes a free one) and passes on to `target`.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start(listen: SocketAddr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let line = Arc::new(Line {
            target,
            refuses: AtomicBool::new(false),
            bytes_per_sec: AtomicU64::new(0),
            delay_ms: AtomicU64::new(0),
            to_target: AtomicU64::new(0),
            from_target: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            cuts: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, line.clone()));
        Ok(Self { address, line, task })
    }

    /// Breaks all connections now.
    pub fn cut(&self) {
        self.line.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// While set, new connections are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.line.refuses.store(refuse, Relaxed);
    }

    pub fn throttle(&self, bytes_per_sec: u64) {
        self.line.bytes_per_sec.store(bytes_per_sec, Relaxed);
    }

    /// Each piece takes this much longer, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.line.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn bytes_to_target(&self) -> u64 {
        self.line.to_target.load(Relaxed)
    }

    pub fn bytes_from_target(&self) -> u64 {
        self.line.from_target.load(Relaxed)
    }

    /// Connections passed on so far.
    pub fn connections(&self) -> u64 {
        self.line.connections.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, line: Arc<Line>) {
    while let Ok((client, _)) = listener.accept().await {
        if line.refuses.load(Relaxed) {
            continue; // dropped: closed
        }
        line.connections.fetch_add(1, Relaxed);
        let mut cuts = line.cuts.subscribe();
        let line = line.clone();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(line.target).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true)); // only slower without
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                _ = pump(from_client, to_server, &line, &line.to_target) => {}
                _ = pump(from_server, to_client, &line, &line.from_target) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    line: &Line,
    count: &AtomicU64,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let len = from.read(&mut piece).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        let mut wait = Duration::from_millis(line.delay_ms.load(Relaxed));
        if let rate @ 1.. = line.bytes_per_sec.load(Relaxed) {
            wait += Duration::from_secs_f64(len as f64 / rate as f64);
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        to.write_all(&piece[..len]).await?;
        count.fetch_add(len as u64, Relaxed);
    }
}
