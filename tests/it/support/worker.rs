//! The worker as its users have it: a process with an environment, logs and an ops address.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    PATIENCE,
    output::until_ready,
    process::{Output, Process},
};

/// The variables that a worker is started with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// What a worker of a test needs: JSON logs, an ops port that it chooses, a fixed encryption
    /// key, and webhooks to this machine allowed.
    pub(crate) fn new(nats_url: &str, database_url: &str) -> Self {
        Self::default()
            .with("NATS_URL", nats_url)
            .with("DATABASE_URL", database_url)
            .with(
                "ENCRYPTION_KEYS",
                &format!("test:{}", STANDARD.encode([7_u8; 32])),
            )
            .with("OPS_ADDR", "127.0.0.1:0")
            .with("LOG_FORMAT", "json")
            .with("RUST_LOG", "info")
            .with("EGRESS_ALLOW_CIDRS", "127.0.0.0/8")
            // Whoever tests no breaker waits for none.
            .with("BREAKER_WAIT", "500ms")
            .with("BREAKER_MAX_WAIT", "1s")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    process: Process,
    ops: Option<SocketAddr>,
}

impl Worker {
    /// `integration-worker run`.
    pub(crate) fn start(environment: &Environment) -> Self {
        Self::command(&["run"], environment)
    }

    /// Any command of the binary, with nothing in its environment but what is given.
    pub(crate) fn command(arguments: &[&str], environment: &Environment) -> Self {
        let inherited = ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"];
        let inherited =
            std::env::vars_os().filter(|(name, _)| inherited.iter().any(|kept| name == kept));
        let mut command = Command::new(env!("CARGO_BIN_EXE_integration-worker"));
        command
            .args(arguments)
            .env_clear()
            .envs(inherited)
            .envs(&environment.0);
        Self {
            process: Process::spawn(&mut command),
            ops: None,
        }
    }

    pub(crate) fn output(&self) -> &Output {
        self.process.output()
    }

    /// Where its ops server listens, as its log tells.
    pub(crate) async fn ops_address(&mut self) -> SocketAddr {
        if let Some(ops) = self.ops {
            return ops;
        }
        let ops = self.output().wait_for(PATIENCE, ops_address_in).await;
        *self.ops.insert(ops)
    }

    /// Waits until `/ready` answers 200.
    pub(crate) async fn wait_ready(&mut self) {
        let ops = self.ops_address().await;
        until_ready(&mut self.process, PATIENCE, async || {
            let (status, _) = get(ops, "/ready").await?;
            (status == 200).then_some(())
        })
        .await;
    }

    /// `GET` on the ops server: the status and the body.
    pub(crate) async fn ops(&mut self, path: &str) -> (u16, String) {
        let ops = self.ops_address().await;
        get(ops, path)
            .await
            .unwrap_or_else(|| panic!("no answer to GET {path}"))
    }

    /// SIGTERM, and waits for its end: the exit code, -1 where a signal ended it.
    pub(crate) async fn terminate(mut self) -> i32 {
        self.process.signal("TERM");
        self.exit_code(PATIENCE).await
    }

    /// Waits for an end that it comes to by itself: the exit code, -1 where a signal ended it.
    pub(crate) async fn exit_code(&mut self, timeout: Duration) -> i32 {
        self.process.wait(timeout).await.code().unwrap_or(-1)
    }

    pub(crate) fn signal(&mut self, name: &str) {
        self.process.signal(name);
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill9(mut self) {
        self.process.kill();
    }
}

/// The field `ops_addr` of a JSON log line, at its top or among its `fields`.
fn ops_address_in(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let field = line
        .get("ops_addr")
        .or_else(|| line.get("fields")?.get("ops_addr"));
    field?.as_str()?.parse().ok()
}

/// `None` where nobody answers.
async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    // 1.0: the answer ends with the connection and comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
