//! An HTTP receiver that records what it is sent and answers as it is told: well, late, wrongly
//! or not at all.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit, State, connect_info::Connected},
    http::{HeaderMap, Method, Response, Uri},
    serve::{IncomingStream, Listener},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

/// One request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// When the body was complete.
    pub(crate) at: Instant,
    /// Counts connections from 1, over restarts.
    pub(crate) connection: usize,
}

impl Received {
    /// A header as text; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or_default())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// What the receiver does with a request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    delay: Duration,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Response {
        status: u16,
        headers: Vec<(String, String)>,
        body: Bytes,
    },
    Hang,
    Close,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self {
            delay: Duration::ZERO,
            kind: Kind::Response {
                status,
                headers,
                body,
            },
        }
    }

    /// Reads the request and never answers.
    pub(crate) fn hang() -> Self {
        Self {
            delay: Duration::ZERO,
            kind: Kind::Hang,
        }
    }

    /// Reads the request and closes the connection.
    pub(crate) fn close() -> Self {
        Self {
            delay: Duration::ZERO,
            kind: Kind::Close,
        }
    }

    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        if let Kind::Response { headers, .. } = &mut self.kind {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) fn body(mut self, content: impl Into<Bytes>) -> Self {
        if let Kind::Response { body, .. } = &mut self.kind {
            *body = content.into();
        }
        self
    }

    async fn give(self) -> Response<Body> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        match self.kind {
            Kind::Response {
                status,
                headers,
                body,
            } => {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                response
                    .body(Body::from(body))
                    .expect("the test's answer is valid HTTP")
            }
            Kind::Hang => std::future::pending().await,
            // Unwinds the connection's task, which drops its socket; the panic hook stays quiet.
            Kind::Close => std::panic::resume_unwind(Box::new("close the connection")),
        }
    }
}

/// Chooses the answer from the request and how many came to its path before it.
type Script = Arc<dyn Fn(&Received, usize) -> Answer + Send + Sync>;

#[derive(Default)]
struct Board {
    requests: Vec<Received>,
    per_path: HashMap<String, usize>,
    scripts: BTreeMap<String, Script>,
    connections: usize,
}

struct Shared {
    board: Mutex<Board>,
    count: watch::Sender<usize>,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers 200 to everything until told otherwise; it is stopped when it is dropped.
pub(crate) struct Receiver {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared {
            board: Mutex::default(),
            count: watch::Sender::new(0),
        });
        let (address, running) = Running::start(&shared, ([127, 0, 0, 1], 0).into());
        Self {
            shared,
            address,
            running: Some(running),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Closes the port and every open connection; what was recorded stays.
    pub(crate) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    /// Listens again on the port that it had; stops first where it runs.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.running = Some(Running::start(&self.shared, self.address).1);
    }

    /// From now on, every request to the path is answered so.
    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.answer_with(path, move |_, _| answer.clone());
    }

    /// The first request to the path gets the first answer, and so on; the last one stays.
    pub(crate) fn answer_in_turn(&self, path: &str, answers: Vec<Answer>) {
        self.answer_with(path, move |_, before| {
            let last = answers.last().expect("there are answers");
            answers.get(before).unwrap_or(last).clone()
        });
    }

    /// The answer is chosen from the request and how many came to its path before it.
    pub(crate) fn answer_with(
        &self,
        path: &str,
        script: impl Fn(&Received, usize) -> Answer + Send + Sync + 'static,
    ) {
        self.shared
            .board()
            .scripts
            .insert(path.to_owned(), Arc::new(script));
    }

    pub(crate) fn requests(&self) -> Vec<Received> {
        self.shared.board().requests.clone()
    }

    pub(crate) fn requests_to(&self, path: &str) -> Vec<Received> {
        let board = self.shared.board();
        board
            .requests
            .iter()
            .filter(|request| request.path == path)
            .cloned()
            .collect()
    }

    /// Waits until at least so many requests have come in, and gives back all.
    pub(crate) async fn wait_for(&self, count: usize, timeout: Duration) -> Vec<Received> {
        self.wait_until(timeout, |requests| requests.len() >= count)
            .await
    }

    /// Waits until what has come in satisfies the condition, and gives back all.
    pub(crate) async fn wait_until(
        &self,
        timeout: Duration,
        condition: impl Fn(&[Received]) -> bool,
    ) -> Vec<Received> {
        let mut count = self.shared.count.subscribe();
        let held = count.wait_for(|_| condition(&self.shared.board().requests));
        let held = tokio::time::timeout(timeout, held).await.is_ok();
        assert!(
            held,
            "not received within {timeout:?}; what came: {}",
            self.summary()
        );
        self.requests()
    }

    fn summary(&self) -> String {
        let board = self.shared.board();
        let mut paths: Vec<_> = board.per_path.iter().collect();
        paths.sort();
        format!("{} requests, by path {paths:?}", board.requests.len())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    /// In a runtime of its own: dropping that closes every connection, and a busy test does not
    /// slow the receiver down.
    fn start(shared: &Arc<Shared>, address: SocketAddr) -> (SocketAddr, Self) {
        let listener = std::net::TcpListener::bind(address).expect("the port is free");
        listener
            .set_nonblocking(true)
            .expect("a socket may be told so");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(shared);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("it does not block");
                let router = Router::new()
                    .fallback(record)
                    .layer(DefaultBodyLimit::disable())
                    .with_state(Arc::clone(&shared));
                let service = router.into_make_service_with_connect_info::<Connection>();
                let listener = Counting { listener, shared };
                tokio::select! {
                    served = axum::serve(listener, service) => served.expect("it serves"),
                    _ = stopped => {}
                }
            });
        });
        (address, Self { stop, thread })
    }

    fn stop(self) {
        drop(self.stop);
        self.thread.join().expect("the receiver did not panic");
    }
}

async fn record(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(Connection(connection)): ConnectInfo<Connection>,
    (method, uri, headers): (Method, Uri, HeaderMap),
    body: Bytes,
) -> Response<Body> {
    let received = Received {
        method,
        path: uri.path().to_owned(),
        query: uri.query().map(str::to_owned),
        headers,
        body,
        at: Instant::now(),
        connection,
    };
    shared.take(received).give().await
}

impl Shared {
    /// Records the request and chooses its answer.
    fn take(&self, received: Received) -> Answer {
        let mut board = self.board();
        let counter = board.per_path.entry(received.path.clone()).or_default();
        let before = *counter;
        *counter += 1;
        let script = board.scripts.get(&received.path).cloned();
        let answer = script.map_or_else(|| Answer::status(200), |script| script(&received, before));
        board.requests.push(received);
        let count = board.requests.len();
        // Whoever is woken looks at the board.
        drop(board);
        self.count.send_replace(count);
        answer
    }
}

/// The number of the connection that a request came over.
#[derive(Debug, Clone, Copy)]
struct Connection(usize);

struct Counting {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Listener for Counting {
    type Io = TcpStream;
    type Addr = Connection;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, _) = Listener::accept(&mut self.listener).await;
        let mut board = self.shared.board();
        board.connections += 1;
        (stream, Connection(board.connections))
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(Connection(0))
    }
}

impl Connected<IncomingStream<'_, Counting>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Counting>) -> Self {
        *stream.remote_addr()
    }
}
