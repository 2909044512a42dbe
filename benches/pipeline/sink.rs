//! The endpoint of all webhooks: the least HTTP server there can be, in a process of its own, so
//! that what it costs can be told apart.
//!
//! `/hang` never answers; `/gone` answers 410 while it is told to; all else answers 200. A second
//! port takes one command a line and answers one line.

use std::{cell::RefCell, io, net::SocketAddr, process::ExitCode, rc::Rc, time::UNIX_EPOCH};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use crate::report::progress;

/// The argument with which this program is the sink.
pub(crate) const ARGUMENT: &str = "__sink";

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const GONE: &[u8] = b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";

/// Nanoseconds since 1970: a clock that two processes share.
#[expect(
    clippy::disallowed_methods,
    reason = "the sink and the bench compare times, and no worker is near"
)]
pub(crate) fn wall_nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

/// What came so far.
#[derive(Debug, Default)]
struct State {
    served: u64,
    hung: u64,
    first: u64,
    last: u64,
    is_gone: bool,
    /// For bodies that tell when they were sent.
    latencies: Vec<u64>,
}

impl State {
    /// The answer to a request; `None` is none ever.
    fn take(&mut self, request: &Request<'_>) -> Option<&'static [u8]> {
        if request.path == b"/hang" {
            self.hung += 1;
            return None;
        }
        let now = wall_nanos();
        if self.served == 0 {
            self.first = now;
        }
        self.served += 1;
        self.last = now;
        match request.path {
            b"/gone" if self.is_gone => return Some(GONE),
            b"/latency" => {
                let sent = number_after(request.body, b"\"sentAt\":");
                self.latencies
                    .extend(sent.map(|sent| now.saturating_sub(sent)));
            }
            _ => {}
        }
        Some(OK)
    }

    fn obey(&mut self, command: &str) -> String {
        match command {
            "reset" => {
                *self = Self {
                    is_gone: self.is_gone,
                    ..Self::default()
                }
            }
            "gone" => self.is_gone = true,
            "back" => self.is_gone = false,
            "latencies" => {
                let all: Vec<String> = self.latencies.iter().map(u64::to_string).collect();
                return all.join(" ");
            }
            _ => {}
        }
        format!("{} {} {} {}", self.served, self.hung, self.first, self.last)
    }
}

struct Request<'a> {
    path: &'a [u8],
    body: &'a [u8],
    length: usize,
}

impl<'a> Request<'a> {
    /// `None` while it is not whole.
    fn parse(buffer: &'a [u8]) -> Option<Self> {
        let end = position(buffer, b"\r\n\r\n")?;
        let head = buffer.get(..end)?;
        let mut lines = head.split(|byte| *byte == b'\n');
        let path = lines.next()?.split(|byte| *byte == b' ').nth(1)?;
        // A query tells webhooks apart that mean the same here.
        let path = path.split(|byte| *byte == b'?').next()?;
        let body_length = lines.find_map(content_length).unwrap_or(0);
        let length = end + 4 + body_length;
        let body = buffer.get(end + 4..length)?;
        Some(Self { path, body, length })
    }
}

fn content_length(line: &[u8]) -> Option<usize> {
    let (name, value) = line.split_at_checked("content-length:".len())?;
    if !name.eq_ignore_ascii_case(b"content-length:") {
        return None;
    }
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

fn position(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}

fn number_after(text: &[u8], name: &[u8]) -> Option<u64> {
    let rest = text.get(position(text, name)? + name.len()..)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()
}

/// The sink's process: it tells both addresses in its first line and runs until it is killed.
pub(crate) fn serve() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = runtime.and_then(|runtime| LocalSet::new().block_on(&runtime, accept()));
    if let Err(error) = ended {
        progress(&format!("the sink: {error}"));
    }
    ExitCode::FAILURE
}

async fn accept() -> io::Result<()> {
    let requests = TcpListener::bind(("127.0.0.1", 0)).await?;
    let commands = TcpListener::bind(("127.0.0.1", 0)).await?;
    let addresses = (requests.local_addr()?, commands.local_addr()?);
    progress(&format!("sink {} {}", addresses.0, addresses.1));
    let state = Rc::new(RefCell::new(State::default()));
    loop {
        // Each ends with its connection, and the process with its parent.
        tokio::select! {
            accepted = requests.accept() => {
                tokio::task::spawn_local(answer(accepted?.0, Rc::clone(&state)));
            }
            accepted = commands.accept() => {
                tokio::task::spawn_local(obey(accepted?.0, Rc::clone(&state)));
            }
        }
    }
}

async fn answer(mut stream: TcpStream, state: Rc<RefCell<State>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        while let Some(request) = Request::parse(&buffer) {
            let (answer, length) = (state.borrow_mut().take(&request), request.length);
            buffer.advance(length);
            // Without one this waits until the other side gives up.
            if let Some(answer) = answer {
                stream.write_all(answer).await?;
            }
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn obey(stream: TcpStream, state: Rc<RefCell<State>>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(command) = lines.next_line().await? {
        let answer = state.borrow_mut().obey(&command);
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

/// What the sink has seen, as the bench asks for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) served: u64,
    pub(crate) hung: u64,
    /// When, in nanoseconds since 1970; 0 where nothing came.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// The addresses in the sink's first line.
pub(crate) fn addresses_in(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (requests, commands) = line.strip_prefix("sink ")?.split_once(' ')?;
    Some((requests.parse().ok()?, commands.parse().ok()?))
}

/// Sends one command to a sink: its answer.
pub(crate) async fn command(address: SocketAddr, command: &str) -> io::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    Ok(answer.trim_end().to_owned())
}

pub(crate) fn seen_in(answer: &str) -> Option<Seen> {
    let mut numbers = answer.split(' ').map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(Seen {
        served: next()?,
        hung: next()?,
        first: next()?,
        last: next()?,
    })
}
