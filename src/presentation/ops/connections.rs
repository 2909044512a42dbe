//! Connections to the ops server: so many at once, and none that is silent or slow for long.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

/// Connections at once; others wait in the system's queue.
const MOST: usize = 256;
/// A connection that sends and takes nothing for so long is closed: whoever looks after the worker must
/// not wait for who forgot about it.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a request's header may take, from the connection's beginning or the former answer on: a byte
/// now and then is no silence, and must not hold a place for long.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// No connection is older.
const LIFETIME: Duration = Duration::from_mins(1);

/// What a connection may take.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Connections at once.
    pub(super) most: usize,
    /// Without a byte in either direction.
    pub(super) silence: Duration,
    /// For a whole header.
    pub(super) header: Duration,
    /// In all.
    pub(super) lifetime: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            most: MOST,
            silence: SILENCE,
            header: HEADER_DEADLINE,
            lifetime: LIFETIME,
        }
    }
}

/// Accepts connections within the bounds.
pub(super) struct Connections {
    listener: TcpListener,
    address: SocketAddr,
    permits: Arc<Semaphore>,
    bounds: Bounds,
}

impl Connections {
    pub(super) fn new(listener: TcpListener, address: SocketAddr, bounds: Bounds) -> Self {
        Self {
            listener,
            address,
            permits: Arc::new(Semaphore::new(bounds.most)),
            bounds,
        }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let (bounds, now) = (self.bounds, Instant::now());
        let connection = Connection {
            stream,
            patience: Box::pin(sleep(bounds.silence.min(bounds.header))),
            bounds,
            header_by: now + bounds.header,
            end: now + bounds.lifetime,
            _permit: permit,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    patience: Pin<Box<Sleep>>,
    bounds: Bounds,
    /// The next answer begins before this: a request is answered as soon as its header is there.
    header_by: Instant,
    end: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// Passes on what the stream answered; a silence or a header that is too long is an error.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        answer: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let now = Instant::now();
        let end = self.end.min(self.header_by);
        if answer.is_ready() && now < end {
            let silence = now + self.bounds.silence;
            self.patience.as_mut().reset(end.min(silence));
            return answer;
        }
        ready!(self.patience.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(context, answer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.header_by = Instant::now() + self.bounds.header;
        let answer = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, answer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
