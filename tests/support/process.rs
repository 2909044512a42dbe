//! A child process that never outlives its test, and everything that it prints.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) output: Output,
}

/// The lines of standard output and standard error, as they came.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many there are so far; tells who waits for more.
    pub(crate) count: watch::Sender<usize>,
    /// How many pipes may still bring some.
    open: watch::Sender<usize>,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let output = Output::new();
        output.collect(child.stdout.take().expect("it is piped"));
        output.collect(child.stderr.take().expect("it is piped"));
        Self { child, output }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by its name, `TERM`; nothing happens where the process has ended.
    pub(crate) fn signal(&mut self, name: &str) {
        if self.is_running() {
            // The shell's own `kill`: slim systems have no program of that name.
            let script = format!("kill -{name} {}", self.id());
            Command::new("sh")
                .args(["-c", &script])
                .status()
                .expect("there is a shell");
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Fails where it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Waits for its end without a runtime; kills it where it goes on.
    pub(crate) fn join_or_kill(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.is_running() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// Waits for its end and the last of its output; panics with what it printed where it goes on.
    pub(crate) async fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let output = self.output.clone();
        let child = &mut self.child;
        let ended = async {
            loop {
                if let Some(status) = child.try_wait().expect("a child can be waited for") {
                    output.closed().await;
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(timeout, ended)
            .await
            .unwrap_or_else(|_| {
                let printed = output.text();
                panic!(
                    "it still runs after {timeout:?}; it printed
{printed}"
                )
            })
    }
}

impl Drop for Process {
    #[expect(
        clippy::print_stdout,
        reason = "the test runner shows it with the failure"
    )]
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let text = self.output.text();
            println!("---- printed by process {} ----\n{text}", self.id());
        }
    }
}

impl Output {
    fn new() -> Self {
        let lines = Arc::default();
        Self {
            lines,
            count: watch::Sender::new(0),
            open: watch::Sender::new(0),
        }
    }

    fn collect(&self, pipe: impl Read + Send + 'static) {
        let output = self.clone();
        self.open.send_modify(|open| *open += 1);
        // It ends with the process, which closes the pipe.
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let mut lines = output.lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push(text);
                output.count.send_replace(lines.len());
            }
            output.open.send_modify(|open| *open -= 1);
        });
    }

    /// Waits until nothing more can come: a process may be gone before its last lines are read.
    async fn closed(&self) {
        let mut open = self.open.subscribe();
        let nothing = open.wait_for(|open| *open == 0).await;
        nothing.expect("this holds a sender");
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn text(&self) -> String {
        self.lines().join("\n")
    }
}
