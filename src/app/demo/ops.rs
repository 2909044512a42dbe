//! What the ops server tells, asked as a monitor would.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

use super::missed::{Missed, check, in_time};

/// Longest answer that is read.
const MOST: u64 = 1 << 20;
/// How often a worker that starts is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// `GET` on the ops server: the body of an answer of 200.
pub(super) async fn get(ops: SocketAddr, path: &str) -> Result<String, Missed> {
    let (status, body) = in_time(&format!("GET {path}"), ask(ops, path)).await?;
    check(
        status == 200,
        format!("GET {path}: {status}: {}", body.trim()),
    )?;
    Ok(body)
}

/// Waits until the worker is ready.
pub(super) async fn wait_ready(ops: SocketAddr) -> Result<(), Missed> {
    in_time("a worker that is ready", async {
        loop {
            if matches!(ask(ops, "/ready").await, Ok((200, _))) {
                return Ok(());
            }
            sleep(ASK_EVERY).await;
        }
    })
    .await
}

async fn ask(ops: SocketAddr, path: &str) -> Result<(u16, String), Missed> {
    let failed = |error: std::io::Error| Missed(format!("GET {path}: {error}"));
    let mut stream = TcpStream::connect(ops).await.map_err(failed)?;
    // 1.0: the answer ends with the connection and comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {ops}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = String::new();
    let mut limited = stream.take(MOST);
    limited.read_to_string(&mut answer).await.map_err(failed)?;
    read(&answer).ok_or_else(|| Missed(format!("GET {path}: no HTTP")))
}

fn read(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// The value of a metric, its labels as they are written.
pub(super) fn value_of(metrics: &str, name: &str) -> Option<f64> {
    let mut lines = metrics.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
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

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let metrics = "# TYPE a counter\na_total{x=\"1\"} 3\na_total{x=\"2\"} 0.5\n";
        assert_eq!(value_of(metrics, "a_total{x=\"1\"}"), Some(3.0));
        assert_eq!(value_of(metrics, "a_total{x=\"2\"}"), Some(0.5));
        assert_eq!(value_of(metrics, "a_total"), None);
        assert_eq!(value_of(metrics, "b"), None);
    }
}
