use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    application::health::{DATABASE, MIGRATIONS, NATS},
    domain::values::Timestamp,
    shared::lifecycle::Alarm,
};

use super::*;

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn new_id(&self) -> uuid::Uuid {
        uuid::Uuid::nil()
    }

    fn random(&self) -> f64 {
        0.5
    }

    fn secret_bytes(&self, length: usize) -> Vec<u8> {
        vec![0; length]
    }
}

struct Server {
    group: Group,
    address: SocketAddr,
    health: Arc<Health>,
}

impl Server {
    async fn start() -> Self {
        Self::start_within(Bounds::default()).await
    }

    async fn start_within(bounds: Bounds) -> Self {
        let group = Group::new("ops", &Alarm::default());
        let health = Arc::new(Health::default());
        let server = OpsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let address = server.address();
        let ops = Ops {
            health: Arc::clone(&health),
            clock: Arc::new(Still),
            metrics: Arc::new(|| "integration_up 1\n".to_owned()),
        };
        server.spawn_within(bounds, &group, ops);
        Self {
            group,
            address,
            health,
        }
    }

    /// Sends this and reads until the connection ends.
    async fn raw(&self, request: &str) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        tokio::time::timeout(Duration::from_secs(10), exchange)
            .await
            .unwrap()
    }

    /// A connection that has been answered once, and so has a place.
    async fn kept(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        assert_eq!(ask_again(&mut stream).await, "HTTP/1.1 200 OK");
        stream
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.raw(&format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }
}

#[tokio::test]
async fn it_answers_while_the_worker_still_waits() {
    let server = Server::start().await;
    assert_eq!(server.get("/live").await, (200, "live\n".to_owned()));
    server.health.starting(DATABASE, "postgresql://db:5432/erp");
    let (status, reasons) = server.get("/ready").await;
    assert_eq!(status, 503);
    assert!(
        reasons.contains("database: waits for postgresql://db:5432/erp\n"),
        "{reasons}"
    );

    for dependency in [NATS, DATABASE, MIGRATIONS] {
        server.health.up(dependency);
    }
    server.health.started();
    assert_eq!(server.get("/ready").await, (200, "ready\n".to_owned()));
    let (status, report) = server.get("/health").await;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((status, &report["status"]), (200, &"ready".into()));
    assert_eq!(
        server.get("/metrics").await,
        (200, "integration_up 1\n".to_owned())
    );
    assert!(server.group.shut_down(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn other_paths_methods_and_overlong_requests_are_refused() {
    let server = Server::start().await;
    assert_eq!(server.get("/").await.0, 404);
    assert_eq!(server.get("/live/").await.0, 404);
    let with = |line: &str| format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let head = server.raw(&with("HEAD /metrics")).await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = server.raw(&with(&format!("{method} /live"))).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    }
    let long = format!("GET /live HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(2_000_000));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // It hangs up on us before all is sent.
    drop(stream.write_all(long.as_bytes()).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

/// One more request on a connection; answers the first line.
async fn ask_again(stream: &mut TcpStream) -> String {
    let request = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nlive\n") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "it ended");
    }
    let answer = String::from_utf8(answer).unwrap();
    answer.lines().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_header_that_comes_byte_by_byte_ends_at_its_deadline_and_a_kept_connection_does_not() {
    const HEADER: Duration = Duration::from_millis(400);
    let server = Server::start_within(Bounds {
        header: HEADER,
        ..Bounds::default()
    })
    .await;
    let mut steps = tokio::time::interval(HEADER / 10);
    let mut kept = server.kept().await;
    let begin = tokio::time::Instant::now();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /live HTTP/1.1\r\nX: ").await.unwrap();
    let mut answer = [0; 1];
    let ended = async {
        loop {
            tokio::select! {
                read = slow.read(&mut answer) => return matches!(read, Ok(0) | Err(_)),
                _ = steps.tick() => {
                    assert_eq!(ask_again(&mut kept).await, "HTTP/1.1 200 OK");
                    if slow.try_write(b"a").is_err() {
                        return true;
                    }
                }
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
    assert!(ended.unwrap(), "it was answered");
    assert!(begin.elapsed() >= HEADER);
    assert_eq!(ask_again(&mut kept).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn who_finds_every_place_taken_waits_until_one_is_free() {
    let server = Server::start_within(Bounds {
        most: 2,
        ..Bounds::default()
    })
    .await;
    let (first, mut second) = (server.kept().await, server.kept().await);
    let mut third = Box::pin(server.kept());
    let answered = tokio::time::timeout(Duration::from_millis(200), &mut third).await;
    assert!(answered.is_err(), "a third one has a place");
    assert_eq!(ask_again(&mut second).await, "HTTP/1.1 200 OK");

    drop(first);

    let third = tokio::time::timeout(Duration::from_secs(10), third).await;
    drop(third.expect("it has the place that is free"));
}

#[tokio::test]
async fn a_kept_connection_does_not_hold_the_shutdown_up() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 15];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    assert!(server.group.shut_down(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_in_the_error() {
    let server = Server::start().await;
    let error = OpsServer::bind(server.address).await.unwrap_err();
    assert!(
        error.to_string().contains(&server.address.to_string()),
        "{error}"
    );
    assert!(error.to_string().contains("OPS_ADDR"), "{error}");
}
