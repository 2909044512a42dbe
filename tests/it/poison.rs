//! Messages whose headers the client library cannot read.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::support::{
    PATIENCE,
    erp::Erp,
    eventually,
    nats::NatsServer,
    receiver::{Received, Receiver},
    worker::{Environment, Worker},
};

const POISONS: [&[u8]; 5] = [
    b"NATS/1.0\r\nX-Name: M\xfcller\r\n\r\n",
    b"NATS/1.0\r\nX Name: a\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/9.0\r\nA: b\r\n\r\n",
    b"NATS/1.0\r\nX-Name: a\rb\r\n\r\n",
];

/// Publishes bytes as they are, and waits until the server has them.
async fn publish_raw(url: &str, subject: &str, head: &[u8]) {
    let address = url.trim_start_matches("nats://");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let start = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n";
    stream.write_all(start).await.expect("it reads");
    let line = format!("HPUB {subject} {} {}\r\n", head.len(), head.len() + 2);
    let message = [line.as_bytes(), head, b"{}\r\nPING\r\n"].concat();
    stream.write_all(&message).await.expect("it reads");
    let mut answer = Vec::new();
    while !answer.windows(4).any(|four| four == b"PONG") {
        let read = stream.read_buf(&mut answer).await.expect("it answers");
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn what_the_client_cannot_read_becomes_a_dead_letter_and_holds_up_nothing() {
    let server = NatsServer::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("it.db").display());
    let environment = Environment::new(&server.url(), &database).with("ERP_ACK_WAIT", "5s");
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    for poison in POISONS {
        publish_raw(&server.url(), "sales.order.created", poison).await;
        publish_raw(&server.url(), "integration.commands.webhook.create", poison).await;
    }
    for n in 0..10 {
        erp.order_created(&format!("e-{n}")).await;
    }
    let end = Instant::now() + PATIENCE.max(Duration::from_mins(1));
    let distinct = |all: &[Received]| {
        let ids = all.iter().map(|one| one.header("webhook-id").to_owned());
        ids.collect::<BTreeSet<_>>().len()
    };
    let mut restarts = 0;
    loop {
        let mut stream = erp
            .jetstream
            .get_stream("INTEGRATION_DEAD_LETTERS")
            .await
            .expect("it is there");
        let letters = stream.info().await.expect("its info").state.messages;
        let arrived = distinct(&receiver.requests());
        if letters == 10 && arrived == 10 {
            break;
        }
        assert!(
            Instant::now() < end,
            "{letters} letters, {arrived} events, {restarts} restarts"
        );
        // As a supervisor does.
        let ended = worker.exit_code(Duration::from_millis(500));
        let ended = tokio::time::timeout(Duration::from_millis(300), ended).await;
        if ended.is_ok() {
            restarts += 1;
            assert!(restarts <= 3, "it dies again and again");
            worker = Worker::start(&environment);
        }
    }
    erp.wait_all_settled(PATIENCE).await;
    let told = erp
        .wait_event("deadletter.added", |event| {
            let reason = event["data"]["reason"].as_str().unwrap_or_default();
            reason.starts_with("malformed_headers: ")
        })
        .await;
    assert!(told["data"]["originSequence"].is_u64());
}

#[tokio::test]
async fn a_request_that_the_client_cannot_read_costs_only_the_connection_for_requests() {
    let server = NatsServer::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let database = format!("sqlite://{}", folder.path().join("it.db").display());
    let environment = Environment::new(&server.url(), &database);
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    let mut events = 0;
    for subject in ["integration.api.webhook.create", "$SRV.PING"] {
        for poison in POISONS {
            publish_raw(&server.url(), subject, poison).await;
            events += 1;
            erp.order_created(&format!("e-{events}")).await;
            let wanted = events;
            receiver
                .wait_until(PATIENCE, move |all| all.len() == wanted)
                .await;
            eventually(PATIENCE, async || {
                let body = json!({}).to_string();
                let asked = erp
                    .client
                    .request("integration.api.webhook.list", body.into());
                asked.await.ok()
            })
            .await;
            let (ready, why) = worker.ops("/ready").await;
            assert_eq!(ready, 200, "{why}");
        }
    }
    assert_eq!(receiver.requests().len(), events, "nothing came again");
    assert_eq!(worker.terminate().await, 0);
}
