//! The ports of the use cases besides the store: clock, cipher, HTTP, and the bus.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use crate::domain::{
    interfaces::OutboxRow,
    values::{SealedSecrets, Timestamp},
};

use super::{client_identity::ClientIdentity, event_view::EventView, oauth::Grant};

/// Time, ids and randomness.
pub trait Clock: Send + Sync {
    /// Now, in whole milliseconds.
    fn now(&self) -> Timestamp;
    /// Now by the store's clock, which all workers share: what leases and due times are counted in.
    /// [`Self::now`] while the store has told no time.
    fn store_now(&self) -> Timestamp {
        self.now()
    }
    /// Learns what the store's clock shows at this moment.
    fn set_store_time(&self, shown: Timestamp) {
        let _ = shown;
    }
    /// A new UUIDv7.
    fn new_id(&self) -> Uuid;
    /// Uniform in 0..1.
    fn random(&self) -> f64;
    /// Bytes for keys and secrets, from the system's secure source.
    fn secret_bytes(&self, length: usize) -> Vec<u8>;
}

/// Seals and opens secrets.
pub trait Cipher: Send + Sync {
    /// Encrypts with the first key of the ring; `context` (an entity's id) is authenticated with it.
    fn seal(&self, plain: &[u8], context: &str) -> Result<SealedSecrets, CipherError>;
    /// Decrypts what was sealed with the same `context`.
    fn open(&self, sealed: &SealedSecrets, context: &str) -> Result<Vec<u8>, CipherError>;
}

/// A secret could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The ring lacks the key.
    #[error("the encryption key {0:?} is not in the key ring (ENCRYPTION_KEYS_FILE)")]
    UnknownKey(String),
    /// Wrong key, wrong context, or changed bytes.
    #[error("a stored secret does not open with its key: it was changed or belongs elsewhere")]
    Broken,
}

/// What an expression may speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// An event: `id`, `type`, `source`, `subject`, `time`, `tenantId`, `data`, `metadata`.
    Event,
    /// An event, and the answer of an endpoint: `response` too.
    Answer,
}

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionFault {
    /// What is wrong, for people.
    pub message: String,
    /// Line and column (in characters), each from 1; `None` when it is the text as a whole.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for ExpressionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.position {
            Some((line, column)) => write!(f, " (line {line}, column {column})"),
            None => Ok(()),
        }
    }
}

/// Compiles expressions (CEL) over events.
pub trait Expressions: Send + Sync + fmt::Debug {
    /// Reads the text; its names, functions, size and nesting are checked here.
    fn compile(&self, text: &str, scope: Scope) -> Result<Arc<dyn Expression>, ExpressionFault>;
}

/// A compiled expression. An evaluation has a bound in time, memory and result; it never panics. Its
/// error says what is wrong and where in the expression, and never holds a value of the event.
pub trait Expression: Send + Sync + fmt::Debug {
    /// What it yields whatever the event, as far as its text alone tells: `a boolean`, `a number`, `a
    /// text`, `a list`, `a map`, `bytes` or `null`.
    fn always(&self) -> Option<&'static str>;
    /// For filters; any other value than true or false is an error.
    fn is_true(&self, view: &EventView<'_>) -> Result<bool, String>;
    /// For ordering keys: a text, number (as written) or boolean, of at most 1 KiB.
    fn text(&self, view: &EventView<'_>) -> Result<String, String>;
    /// For transforms: JSON text of at most 1 MiB.
    fn json(&self, view: &EventView<'_>) -> Result<Bytes, String>;
}

/// A request to an endpoint, ready to be sent. The query of its URL may hold a secret.
#[derive(Clone)]
pub struct OutboundRequest {
    /// Where to.
    pub uri: http::Uri,
    /// How.
    pub method: http::Method,
    /// All headers; sensitive ones are marked so.
    pub headers: http::HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Connecting, sending and reading the capped answer.
    pub timeout: Duration,
    /// Up to how many bytes the answer is wanted as a whole; `None` where its beginning is enough.
    pub whole_up_to: Option<usize>,
    /// The certificate to connect with, if the endpoint asks for one.
    pub identity: Option<Arc<ClientIdentity>>,
    /// What gets a token for it, if the endpoint asks for one (see [`super::oauth`]).
    pub grant: Option<Arc<Grant>>,
}

impl fmt::Debug for OutboundRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboundRequest")
            .field("method", &self.method)
            .field("host", &self.uri.host())
            .field("body", &self.body.len())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// An answer, its body cut at [`HttpAnswer::MAX_BODY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// `Retry-After`, as a wait from now.
    pub retry_after: Option<Duration>,
    /// The first bytes of the body, as text (invalid UTF-8 replaced).
    pub body: String,
    /// The body as it came, where it was wanted as a whole.
    pub whole: Option<Result<Bytes, CutAnswer>>,
}

/// Why an answer is not there as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CutAnswer {
    /// It is longer than that many bytes.
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    /// The connection broke, or the time was up.
    #[error("the answer broke off")]
    BrokenOff,
}

impl HttpAnswer {
    /// How much of an answer is kept, and read where it is not wanted as a whole: 2 KiB.
    pub const MAX_BODY: usize = 2048;
}

/// Why there was no answer. Never holds the URL's query or a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The address is refused by the egress policy.
    #[error("{0}")]
    Refused(String),
    /// Nothing within the timeout.
    #[error("timeout after {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection could not be made: `connection refused`, `name not found`, `TLS: …`.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// No name could be looked up, which says nothing about the endpoint.
    #[error("cannot connect: {0}")]
    Lookup(String),
    /// There is no token to show to the endpoint, so nothing was sent to it.
    #[error("cannot get a token: {reason}")]
    Token {
        /// Why, for people; never a secret.
        reason: String,
        /// What it says about the partner.
        fault: TokenFault,
    },
    /// The connection broke.
    #[error("connection lost: {0}")]
    Broken(String),
}

/// What it says about the partner that there is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// A request to the token endpoint failed, and nobody has been told of it before.
    Partner,
    /// The same, because the token endpoint's address is refused by the egress policy.
    Address,
    /// Nothing: there is none yet, or somebody else has been told why, or it is this worker's own fault.
    None,
}

/// Sends requests to endpoints: no redirects, no proxies, addresses checked, connections kept alive.
#[async_trait]
pub trait HttpSender: Send + Sync {
    /// Sends one request.
    async fn send(&self, request: OutboundRequest) -> Result<HttpAnswer, SendError>;
}

/// The bus could not take something.
#[derive(Debug, thiserror::Error)]
#[error("the bus did not take {what}")]
pub struct BusError {
    /// What was to be published or done.
    pub what: String,
    /// The client's error.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A message that could not be understood.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// `commands` or `events`.
    pub kind: &'static str,
    /// `<code>: <text>`.
    pub reason: String,
    /// The tenant, where it is known.
    pub tenant: String,
    /// Where it came from.
    pub subject: String,
    /// The stream that it came from.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// When the stream took it.
    pub published_at: Timestamp,
    /// Its headers, in order.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
}

/// An event that the bus did not take, though it took or could have taken others.
#[derive(Debug)]
pub struct Refusal {
    /// The event's.
    pub id: Uuid,
    /// Where it was to go.
    pub subject: String,
    /// The client's error.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Publishes to the bus and waits for the acknowledgements.
#[async_trait]
pub trait EventPublisher: Send + Sync {
    /// Publishes events, pipelined; answers when all are acknowledged.
    async fn publish(&self, rows: &[OutboxRow]) -> Result<(), BusError>;
    /// Publishes events of which none waits for another; answers those that were refused, all others are
    /// taken. An error where the bus is away.
    async fn publish_each(&self, rows: &[OutboxRow]) -> Result<Vec<Refusal>, BusError> {
        self.publish(rows).await.map(|()| Vec::new())
    }
    /// Publishes a dead letter, under a message id derived from where it came from.
    async fn dead_letter(&self, letter: &DeadLetter) -> Result<(), BusError>;
}

/// Publishes replies to subjects that users name.
#[async_trait]
pub trait ReplyPublisher: Send + Sync {
    /// Publishes without waiting for anybody to have it; refuses a subject that is no plain one, or
    /// the worker's or the server's own.
    async fn publish_plain(&self, subject: &str, body: Bytes) -> Result<(), BusError>;
}

/// A message of the source stream, as it was published.
#[derive(Debug, Clone)]
pub struct SourceMessage {
    /// The subject that it was published on.
    pub subject: String,
    /// Its headers, in order, names as written.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the stream took it.
    pub published_at: Timestamp,
    /// 1 for the first time.
    pub deliveries: i64,
}

impl SourceMessage {
    /// The first header of this name, without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

/// A message with the handle to settle it.
#[async_trait]
pub trait Settle: Send + Sync {
    /// Done: never again.
    async fn ack(&self) -> Result<(), BusError>;
    /// Still working on it.
    async fn progress(&self) -> Result<(), BusError>;
    /// Again, after a while.
    async fn nak(&self, delay: Duration) -> Result<(), BusError>;
    /// Never again, and it was not understood.
    async fn terminate(&self) -> Result<(), BusError>;
}

/// The source of messages: one durable pull consumer that all workers share.
#[async_trait]
pub trait MessageSource: Send + Sync {
    /// Up to `max` messages: waits for the first, then takes what is there. An empty answer means that
    /// there is nothing now. Reconnects by itself.
    async fn pull(&self, max: usize) -> Result<Vec<(SourceMessage, Box<dyn Settle>)>, BusError>;
}

/// How far the source stream is settled.
#[async_trait]
pub trait SourceFloor: Send + Sync {
    /// The sequence up to which every message of the source stream is settled, and so everything that
    /// it brought is recorded. It never falls while the stream stays what it is.
    async fn floor(&self) -> Result<i64, BusError>;

    /// The highest sequence that the source stream, as it is now, has given out; 0 before the first.
    async fn last(&self) -> Result<i64, BusError>;
}
