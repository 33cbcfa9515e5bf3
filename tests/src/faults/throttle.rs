//! A TCP relay on the way to the broker: as slow as asked, and cut when asked.

use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
};

const CHUNK: usize = 8 * 1024;

pub struct Throttle {
    pub address: SocketAddr,
    open: watch::Sender<bool>,
    rate: Arc<AtomicU64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Throttle {
    /// Relays to `target`, open, at `bytes_per_second` towards whoever connects; the other direction is free.
    ///
    /// # Errors
    /// If there is no free port.
    pub async fn start(target: SocketAddr, bytes_per_second: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let open = watch::Sender::new(true);
        let rate = Arc::new(AtomicU64::new(bytes_per_second));
        let (gate, speed) = (open.clone(), rate.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *gate.borrow() {
                    tokio::spawn(relay(near, target, gate.subscribe(), speed.clone()));
                }
            }
        });
        Ok(Self { address, open, rate, accepting })
    }

    pub fn set_rate(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Ends all connections; new ones are closed at once.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn relay(near: TcpStream, target: SocketAddr, mut open: watch::Receiver<bool>, rate: Arc<AtomicU64>) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
    }
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::select! {
        () = pump(near_in, far_out, None) => {}
        () = pump(far_in, near_out, Some(rate)) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}

/// Until either end closes; dropping both halves then closes the other side as well.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, rate: Option<Arc<AtomicU64>>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if let Some(rate) = &rate {
            let per_second = rate.load(Ordering::Relaxed).max(1);
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / per_second as f64)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
