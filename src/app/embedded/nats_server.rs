//! A nats-server as a child that never outlives this process, however that ends.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    net::TcpStream,
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep, timeout},
};

use crate::app::error::RunError;

use super::version::{self, Binary};

/// How long it may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it listens.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How much of its log is shown when it does not start.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 16 * 1024;

const SETTINGS: &str = "host: 127.0.0.1
jetstream: enabled
max_payload: 8MB
";

/// Runs the server for as long as somebody holds the other end of standard input. The system closes
/// that end whatever this process dies of, SIGKILL too, and no process can be told more reliably.
const KEEPER: &str = r#"exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
{ cat <&3 >/dev/null; kill "$server"; } 2>/dev/null &
keeper=$!
exec 3<&-
wait "$server"
code=$?
kill "$keeper" 2>/dev/null
exit "$code""#;

/// It ends when this is dropped; [`NatsServer::stop`] also waits for that.
#[derive(Debug)]
pub(super) struct NatsServer {
    address: SocketAddr,
    version: String,
    child: Child,
    lifeline: Option<ChildStdin>,
}

impl NatsServer {
    /// Starts one on a free port of this machine, with its store and its log in the folder.
    ///
    /// # Errors
    /// Why there is none, with the end of its log where it has written one.
    pub(super) async fn start(folder: &Path) -> Result<Self, RunError> {
        let binary = version::find().await?;
        let log = folder.join("nats-server.log");
        let ports = folder.join("ports");
        let mut child = spawn(&binary, folder, &ports, &log)
            .map_err(|error| failed(&format!("nats-server cannot be started: {error}"), &log))?;
        let lifeline = child.stdin.take();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(address) = address_in(&ports)
                && TcpStream::connect(address).await.is_ok()
            {
                return Ok(Self {
                    address,
                    version: binary.version,
                    child,
                    lifeline,
                });
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(
                    &format!("nats-server ended at once ({status})"),
                    &log,
                ));
            }
            if Instant::now() > deadline {
                return Err(failed("nats-server does not listen", &log));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Where it listens.
    pub(super) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Its version, as `2.10.29`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Ends it and waits until it is gone.
    pub(super) async fn stop(mut self) {
        drop(self.lifeline.take());
        if timeout(PATIENCE, self.child.wait()).await.is_err() {
            tracing::warn!("nats-server does not end");
        }
    }
}

fn spawn(binary: &Binary, folder: &Path, ports: &Path, log: &Path) -> io::Result<Child> {
    // What a former server has left tells of its port, not of this one's.
    match fs::remove_dir_all(ports) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir(ports)?,
    }
    let settings = folder.join("nats-server.conf");
    fs::write(&settings, SETTINGS)?;
    let output = File::create(log)?;
    Command::new("sh")
        .args(["-c", KEEPER, "nats-server"])
        .arg(&binary.program)
        .args(["--port", "-1", "--config"])
        .arg(&settings)
        .arg("--store_dir")
        .arg(folder.join("jetstream"))
        .arg("--ports_file_dir")
        .arg(ports)
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C is for the worker, which still needs the server to stop in order.
        .process_group(0)
        .spawn()
}

/// `None` while the file is not there or not whole; its name has the program's name and id.
fn address_in(ports: &Path) -> Option<SocketAddr> {
    let mut files = fs::read_dir(ports).ok()?.flatten();
    let file = files.find(|file| file.path().extension().is_some_and(|end| end == "ports"))?;
    read_address(&fs::read(file.path()).ok()?)
}

/// `{"nats":["nats://127.0.0.1:41003"],…}`
fn read_address(file: &[u8]) -> Option<SocketAddr> {
    let ports: Value = serde_json::from_slice(file).ok()?;
    let url = ports.get("nats")?.get(0)?.as_str()?;
    url.strip_prefix("nats://")?.parse().ok()
}

fn failed(problem: &str, log: &Path) -> RunError {
    let lines = tail(log).unwrap_or_default();
    RunError::Embedded(if lines.is_empty() {
        problem.to_owned()
    } else {
        format!("{problem}; its log ends with\n{lines}")
    })
}

/// The last lines of a file.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().rev().take(TAIL_LINES).collect();
    lines.reverse();
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_file_is_read_once_it_is_whole() {
        let whole =
            br#"{"nats":["nats://127.0.0.1:41003"],"monitoring":["http://127.0.0.1:8222"]}"#;
        assert_eq!(read_address(whole), Some(([127, 0, 0, 1], 41_003).into()));
        let ipv6 = br#"{"nats":["nats://[::1]:4222"]}"#;
        assert!(read_address(ipv6).is_some_and(|address| address.is_ipv6()));
        for broken in [
            "",
            "{",
            "{}",
            r#"{"nats":[]}"#,
            r#"{"nats":["nats://127.0.0.1"]}"#,
        ] {
            assert_eq!(read_address(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn a_failed_start_shows_the_end_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        assert_eq!(failed("it ended", &log).to_string(), "it ended");
        let lines: Vec<String> = (1..=5_000).map(|number| format!("line {number}")).collect();
        fs::write(&log, lines.join("\n")).unwrap();
        let text = failed("it ended", &log).to_string();
        assert!(
            text.starts_with("it ended; its log ends with\nline "),
            "{text}"
        );
        assert!(text.ends_with("line 4999\nline 5000"), "{text}");
        assert_eq!(text.lines().count(), 1 + TAIL_LINES);
    }
}
