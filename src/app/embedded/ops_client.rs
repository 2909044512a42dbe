//! Asks the ops server, as a monitor would.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

/// Longest answer that is read.
const MOST: u64 = 1 << 20;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a worker that starts is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Status and body of a `GET`.
///
/// # Errors
/// When there is no answer that can be read.
pub(crate) async fn get(ops: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    timeout(PATIENCE, ask(ops, path)).await?
}

/// Waits until the worker is ready, however long that takes.
pub(crate) async fn wait_ready(ops: SocketAddr) {
    while !matches!(get(ops, "/ready").await, Ok((200, _))) {
        sleep(ASK_EVERY).await;
    }
}

async fn ask(ops: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(ops).await?;
    // 1.0: the answer ends with the connection and comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {ops}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer).await?;
    read(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP"))
}

fn read(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_read() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\nstarting\n";
        assert_eq!(read(answer), Some((503, "starting\n".to_owned())));
        for broken in ["", "HTTP/1.0 200 OK\r\n", "HTTP/1.0\r\n\r\n"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
