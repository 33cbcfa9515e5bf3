//! A connection, whatever it runs over, and which protocol it speaks.

use super::authority::Authority;
use bytes::{Buf, Bytes};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

/// What a client of HTTP/2 sends first, and one of HTTP/1 never does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A request of more bytes may come in several segments, the last of which waits for the others.
const LARGE: usize = 1 << 10;

/// One type for all, so that the protocols are compiled once.
pub(super) enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection whose first bytes were looked at.
pub(super) struct Stream {
    first: Bytes,
    io: Io,
    /// HTTP/2 over a socket file.
    authority: Option<Authority>,
    /// Bytes that came since the last ones were sent.
    unanswered: usize,
    writes: Writes,
}

/// How long the other side has taken nothing.
struct Writes {
    patience: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Writes {
    /// What became of a write; an error once none went on for the whole patience.
    fn judge<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = None;
            return done;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        match stalled.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

impl Stream {
    /// Waits for as many bytes as tell the protocol; `None` if the client goes or sends nothing for `patience`. A client
    /// that takes no byte for `write_patience` gets no more.
    pub(super) async fn tell(
        mut io: Io,
        patience: Duration,
        write_patience: Duration,
    ) -> Option<(Self, Protocol)> {
        let mut first = [0; PREFACE.len()];
        let mut filled = 0;
        let telling = async {
            loop {
                let read = io.read(&mut first[filled..]).await.ok().filter(|read| *read > 0)?;
                filled += read;
                if first[..filled] != PREFACE[..filled] {
                    return Some(Protocol::Http1);
                }
                if filled == PREFACE.len() {
                    return Some(Protocol::Http2);
                }
            }
        };
        let protocol = tokio::time::timeout(patience, telling).await.ok()??;
        let by_file = matches!((&io, protocol), (Io::Unix(_), Protocol::Http2));
        let authority = by_file.then(Authority::new);
        let first = Bytes::copy_from_slice(&first[..filled]);
        let writes = Writes { patience: write_patience, stalled: None };
        Some((Self { first, io, authority, unanswered: 0, writes }, protocol))
    }
}

impl Stream {
    /// Now, not within the 40 ms that the system may take: a client that did not switch Nagle's algorithm off, the
    /// stock one for HTTP among them, sends the end of a large body only then. Costs latency if it fails.
    fn acknowledge(&self) {
        let tcp = match &self.io {
            Io::Tcp(tcp) => tcp,
            Io::Tls(tls) => tls.get_ref().0,
            Io::Unix(_) => return,
        };
        let _ = tcp.set_quickack(true);
    }
}

/// Does the same with whichever it is.
macro_rules! each {
    ($io:expr, $stream:ident => $do:expr) => {
        match $io {
            Io::Tcp($stream) => $do,
            Io::Unix($stream) => $do,
            Io::Tls($stream) => $do,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.has_remaining() {
            let taken = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..taken]);
            self.first.advance(taken);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if let Some(authority) = &mut self.authority {
            authority.pass(&mut buffer.filled_mut()[before..]);
        }
        self.unanswered = self.unanswered.saturating_add(buffer.filled().len() - before);
        if read.is_pending() && self.unanswered > LARGE {
            self.acknowledge();
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(context, data))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(context, data))
    }
    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(context))
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(context))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.unanswered = 0;
        let written = Pin::new(&mut stream.io).poll_write(context, data);
        stream.writes.judge(context, written)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.unanswered = 0;
        let written = Pin::new(&mut stream.io).poll_write_vectored(context, data);
        stream.writes.judge(context, written)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let flushed = Pin::new(&mut stream.io).poll_flush(context);
        stream.writes.judge(context, flushed)
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let done = Pin::new(&mut stream.io).poll_shutdown(context);
        stream.writes.judge(context, done)
    }
}
