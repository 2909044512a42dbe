//! `demo` and `dev`, which bring their own servers.

use std::{fs, net::SocketAddr, path::Path};

use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    eventually, nats,
    worker::{Environment, Worker},
};

/// With a folder of its own for temporary files.
fn environment(temporary: &TempDir) -> Environment {
    Environment::default()
        .with("NATS_SERVER_BIN", nats::binary())
        .with("TMPDIR", &temporary.path().to_string_lossy())
        .with("OPS_ADDR", "127.0.0.1:0")
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder)
        .expect("it can be read")
        .next()
        .is_none()
}

/// A `dev` that is up: its NATS and its receiver.
async fn up(dev: &Worker) -> (SocketAddr, String) {
    let word_after = |line: &str, name: &str| {
        let rest = line.trim_start().strip_prefix(name)?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    let output = dev.output();
    let nats = output
        .wait_for(PATIENCE, |line| word_after(line, "NATS "))
        .await;
    let receiver = output
        .wait_for(PATIENCE, |line| word_after(line, "receiver "))
        .await;
    output
        .wait_for(PATIENCE, |line| {
            line.contains("nats micro info").then_some(())
        })
        .await;
    let address = nats
        .strip_prefix("nats://")
        .and_then(|address| address.parse().ok());
    (address.expect("an address"), receiver)
}

#[tokio::test]
async fn the_demo_sees_everything_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    // What leads elsewhere is none of its business.
    let environment = environment(&temporary)
        .with("NATS_URL", "nats://127.0.0.1:1")
        .with("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
        .with("NATS_SUBJECT_PREFIX", "other");
    let mut demo = Worker::command(&["demo"], &environment);

    let code = demo.exit_code(PATIENCE * 2).await;

    let text = demo.output().text();
    assert_eq!(code, 0, "{text}");
    for part in [
        "✓ an event is delivered, and its signature is right",
        "\"totalNet\": 18450.00",
        "attempt 3: HTTP 200",
        "✓ an endpoint that answers 410 is disabled",
        "Integration-Reason: empty",
        "webhook.triggered    v3  inventory.goods.received → Goods",
        "integration_events_total{result=\"accepted\"} 9",
        "14 of 14 seen",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    for unwanted in ["✗", "\u{1b}", "INFO", "WARN"] {
        assert!(!text.contains(unwanted), "{unwanted} in\n{text}");
    }
    assert!(!text.replace("whsec_…", "").contains("whsec_"), "{text}");
    assert!(is_empty(temporary.path()), "{text}");
}

#[tokio::test]
async fn dev_delivers_to_its_receiver_until_it_is_told_to_stop() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let dev = Worker::command(&["dev"], &environment(&temporary));
    let (address, receiver) = up(&dev).await;
    let erp = Erp::connect(&format!("nats://{address}")).await;
    erp.webhook(&format!("{receiver}orders"), &["sales.>"], json!({}))
        .await;
    let refusing = format!("{receiver}status/503");
    erp.webhook(&refusing, &["sales.>"], json!({})).await;

    erp.publish("sales.order.created", order("o-1")).await;

    let line = |path: &'static str| move |line: &str| line.contains(path).then(|| line.to_owned());
    let taken = dev
        .output()
        .wait_for(PATIENCE, line("POST /orders → 200"))
        .await;
    assert!(
        taken.contains("  signed  ") && taken.contains("18450.00"),
        "{taken}"
    );
    dev.output()
        .wait_for(PATIENCE, line("POST /status/503 → 503"))
        .await;
    assert_eq!(dev.terminate().await, 0);
    assert!(is_empty(temporary.path()));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn dev_keeps_what_it_has_in_a_given_folder_which_has_one_user_at_a_time() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let environment = environment(&temporary);
    let data = temporary.path().join("data");
    let arguments = ["dev", "--data", &*data.to_string_lossy()];
    let dev = Worker::command(&arguments, &environment);
    let (address, receiver) = up(&dev).await;
    let erp = Erp::connect(&format!("nats://{address}")).await;
    erp.webhook(&receiver, &["sales.>"], json!({})).await;

    let mut second = Worker::command(&arguments, &environment);
    assert_eq!(second.exit_code(PATIENCE).await, 1);
    let refusal = second.output().text();
    assert!(
        refusal.contains("is in use by another process"),
        "{refusal}"
    );
    assert_eq!(dev.terminate().await, 0);

    let dev = Worker::command(&arguments, &environment);
    let (address, _) = up(&dev).await;
    let erp = Erp::connect(&format!("nats://{address}")).await;
    let webhooks = erp.ask("webhook.list", json!({})).await;
    assert_eq!(webhooks["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(erp.read_stream("INTEGRATION_EVENTS").await.len(), 2);
    assert_eq!(dev.terminate().await, 0);
}

#[tokio::test]
async fn dev_ends_in_order_when_its_terminal_is_closed() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let mut dev = Worker::command(&["dev"], &environment(&temporary));
    let (address, _) = up(&dev).await;

    // The shell and the system may each send one.
    dev.signal("HUP");
    dev.signal("HUP");

    assert_eq!(dev.exit_code(PATIENCE).await, 0, "{}", dev.output().text());
    assert!(is_empty(temporary.path()));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_nats_server_ends_with_a_process_that_is_killed() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let dev = Worker::command(&["dev"], &environment(&temporary));
    let (address, _) = up(&dev).await;
    assert!(TcpStream::connect(address).await.is_ok());

    dev.kill9();

    eventually(PATIENCE, async || TcpStream::connect(address).await.err()).await;
}

#[tokio::test]
async fn without_a_nats_server_it_says_what_helps() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    for (program, problem) in [
        (
            "/nowhere/nats-server",
            "there is no /nowhere/nats-server (NATS_SERVER_BIN)",
        ),
        ("true", "true (NATS_SERVER_BIN) is no nats-server"),
    ] {
        let environment = environment(&temporary).with("NATS_SERVER_BIN", program);
        for command in ["demo", "dev"] {
            let mut ended = Worker::command(&[command], &environment);
            assert_eq!(ended.exit_code(PATIENCE).await, 1, "{command}");
            let text = ended.output().text();
            assert!(
                text.contains(problem) && text.contains("`make demo`"),
                "{text}"
            );
        }
    }
    assert!(is_empty(temporary.path()));
}
