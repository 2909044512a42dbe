//! A nats-server with JetStream, one for each test that asks.

use std::{path::Path, process::Command, sync::OnceLock, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{PATIENCE, output::until_ready, process::Process, variable};

/// Killed when it is dropped; its port and its store last as long as this does.
#[derive(Debug)]
pub(crate) struct NatsServer {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl NatsServer {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further settings in the server's own configuration format, `max_payload: 8MB`.
    pub(crate) async fn start_with(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        let configuration = format!(
            "host: 127.0.0.1\njetstream {{ store_dir: \"{}\" }}\nports_file_dir: \"{}\"\n{settings}\n",
            path.join("store").display(),
            path.display(),
        );
        std::fs::write(path.join("nats.conf"), configuration).expect("the folder is writable");
        // -1: the server chooses a free port and tells it in a file.
        let mut server = Self {
            folder,
            port: 0,
            process: None,
        };
        server.process = Some(server.spawn("-1"));
        server.port = server.chosen_port().await;
        server.wait_until_it_listens().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends it as an administrator would, and waits.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("TERM");
            process.wait(PATIENCE).await;
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again with the port and the store that it had; stops it first where it runs.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.process = Some(self.spawn(&self.port.to_string()));
        self.wait_until_it_listens().await;
    }

    fn spawn(&self, port: &str) -> Process {
        Process::spawn(
            Command::new(binary())
                .arg("--config")
                .arg(self.folder.path().join("nats.conf"))
                .args(["--port", port]),
        )
    }

    async fn chosen_port(&mut self) -> u16 {
        let process = self.process.as_mut().expect("it was started");
        let folder = self.folder.path();
        until_ready(process, PATIENCE, async || port_in(folder)).await
    }

    async fn wait_until_it_listens(&mut self) {
        let port = self.port;
        let process = self.process.as_mut().expect("it was started");
        until_ready(process, PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
    }
}

/// `None` while the file is not there or not whole; its name has the program's name and id.
fn port_in(folder: &Path) -> Option<u16> {
    let mut files = std::fs::read_dir(folder).ok()?.flatten();
    let file = files.find(|file| file.path().extension().is_some_and(|end| end == "ports"))?;
    let ports: Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    ports["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

/// `$NATS_SERVER_BIN`, else what `.ci/nats-server` finds or fetches.
pub(crate) fn binary() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        variable("NATS_SERVER_BIN").unwrap_or_else(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/nats-server");
            let found = Command::new(script).output().expect("the script runs");
            let complaint = String::from_utf8_lossy(&found.stderr);
            assert!(found.status.success(), "no nats-server: {complaint}");
            String::from_utf8_lossy(&found.stdout).trim().to_owned()
        })
    })
}

/// A client whose requests wait no longer than a test would.
pub(crate) async fn client(url: &str) -> async_nats::Client {
    async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .request_timeout(Some(Duration::from_secs(10)))
        .connect(url)
        .await
        .expect("a client that connects later if need be")
}
