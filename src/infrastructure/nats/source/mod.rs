//! The source of messages: one durable pull consumer that all workers share.
//!
//! The client library's own streams either prefetch, so that messages age unseen, or give up what
//! was on its way when they end. Here one inbox lives as long as the source; each pull is one
//! request into it, and what arrives after a pull has ended is what the next one starts with.

mod inbox;
mod message;
mod poison;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::{self, Context},
};
use async_trait::async_trait;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    application::ports::{BusError, MessageSource, Settle, SourceMessage},
    shared::error_chain::Chain,
};

use super::{
    connect::{Connection, is_connected},
    topology::{ConsumerSpec, ResumePoint, Topology},
};

use inbox::{Ending, Inbox};

pub use poison::Burial;
pub(super) use poison::{parsed, readable};

/// Most messages of one pull; more are never under way to one source.
const MAX_PULL: usize = 5_000;
/// How long a pull that gets nothing waits while the connection is away.
const PATIENCE: Duration = Duration::from_secs(1);
/// The shortest time between two pulls that could not be served.
const PACE: Duration = Duration::from_millis(100);
/// How long the server may take to say how far the consumer is.
const API_TIMEOUT: Duration = Duration::from_secs(3);
/// How old the knowledge of what was settled may be: so much is done again after somebody has
/// deleted the consumer.
const RESUME_AGE: Duration = Duration::from_secs(1);
/// So often the search for unreadable messages may fail on a connection before pulls go on without.
const MAX_FAILED_SEARCHES: u32 = 3;

/// Messages of one durable pull consumer, which is made again where somebody deletes it.
pub struct PullSource {
    client: Arc<Client>,
    context: Context,
    connected: watch::Receiver<bool>,
    topology: Arc<Topology>,
    spec: ConsumerSpec,
    burial: Option<Burial>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inbox: Option<Inbox>,
    resume: Option<ResumePoint>,
    resume_read: Option<Instant>,
    /// The connection that was looked after; a new one may mean that a message ended the last.
    cleared: Option<u64>,
    /// Searches that failed on one connection.
    failed_searches: (u64, u32),
}

impl fmt::Debug for PullSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSource")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl PullSource {
    /// The business events of the ERP.
    pub fn erp(connection: &Connection, topology: &Arc<Topology>) -> Self {
        let spec = topology.erp_consumer.clone();
        Self::new(connection, topology, spec)
    }

    /// The durable commands.
    pub fn commands(connection: &Connection, topology: &Arc<Topology>) -> Self {
        let spec = topology.commands_consumer.clone();
        Self::new(connection, topology, spec)
    }

    fn new(connection: &Connection, topology: &Arc<Topology>, spec: ConsumerSpec) -> Self {
        Self {
            client: Arc::new(connection.client.clone()),
            context: jetstream::context::ContextBuilder::new()
                .timeout(API_TIMEOUT)
                .build(connection.client.clone()),
            connected: connection.connected.clone(),
            topology: Arc::clone(topology),
            spec,
            burial: None,
            state: Mutex::default(),
        }
    }

    /// With what puts messages aside that the client cannot read; without it each drops the
    /// connection again, or ends the client.
    #[must_use]
    pub fn with_burial(mut self, burial: Burial) -> Self {
        self.burial = Some(burial);
        self
    }

    /// Gives back what was pulled and not handed out, so that other workers get it at once. For
    /// the end of the process: the last pull may have been abandoned while messages were under way.
    ///
    /// # Errors
    /// [`BusError`] when the connection is away; they come again after the consumer's ack wait.
    pub async fn release(&self) -> Result<(), BusError> {
        let mut state = self.state.lock().await;
        let Some(mut inbox) = state.inbox.take() else {
            return Ok(());
        };
        inbox.gather(usize::MAX).await;
        for message in inbox.take(usize::MAX) {
            if let Some((_, handle)) = message::split(&self.client, message) {
                handle.nak(Duration::ZERO).await?;
            }
        }
        let flushed = self.client.flush().await;
        flushed.map_err(|error| self.error("the giving back of messages", error))
    }

    async fn is_connected(&self) -> bool {
        if !is_connected(&self.client) {
            let mut connected = self.connected.clone();
            drop(timeout(PATIENCE, connected.wait_for(|yes| *yes)).await);
        }
        is_connected(&self.client)
    }

    /// Remembers what is settled, and notices where the consumer is another one by now.
    async fn remember(&self, state: &mut State) -> Result<(), BusError> {
        if state
            .resume_read
            .is_some_and(|at| at.elapsed() < RESUME_AGE)
        {
            return Ok(());
        }
        let found = self
            .topology
            .progress_of(&self.context, &self.spec, state.resume.as_ref())
            .await;
        let point = found.map_err(|error| self.error("a pull", error))?;
        state.resume = Some(point);
        state.resume_read = Some(Instant::now());
        Ok(())
    }

    /// Before the first pull of each connection. A search that keeps failing on a connection that
    /// holds, perhaps for want of a permission, does not keep events from being pulled.
    async fn clear_poison(&self, state: &mut State) -> Result<(), BusError> {
        let connection = self.client.statistics().connects.load(Ordering::Relaxed);
        let Some(burial) = &self.burial else {
            return Ok(());
        };
        if state.cleared == Some(connection) {
            return Ok(());
        }
        if let Err(error) = poison::clear(&self.client, &self.spec, burial).await {
            let error = self.error("the search for unreadable messages", error);
            let failed = match state.failed_searches {
                (of, failed) if of == connection => failed + 1,
                _ => 1,
            };
            state.failed_searches = (connection, failed);
            if failed < MAX_FAILED_SEARCHES {
                return Err(error);
            }
            tracing::error!(error = %Chain(&error), "unreadable messages cannot be looked for");
        }
        state.cleared = Some(connection);
        Ok(())
    }

    async fn fill(&self, state: &mut State, max: usize) -> Result<Ending, BusError> {
        if let Some(inbox) = state.inbox.as_mut()
            && inbox.take_in_arrived()
        {
            return Ok(Ending::Served);
        }
        if !self.is_connected().await {
            return Ok(Ending::NotServed);
        }
        self.remember(state).await?;
        self.clear_poison(state).await?;
        if state.inbox.is_none() {
            let opened = Inbox::open(&self.client, &self.spec).await;
            state.inbox = Some(opened.map_err(|error| self.error("a pull", error))?);
        }
        let Some(inbox) = state.inbox.as_mut() else {
            return Ok(Ending::NotServed);
        };
        let asked = inbox.ask(&self.client, max.min(MAX_PULL)).await;
        asked.map_err(|error| self.error("a pull", error))?;
        Ok(inbox.gather(max).await)
    }

    fn error(
        &self,
        what: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> BusError {
        BusError {
            what: format!("{what} from the stream {}", self.spec.stream),
            source: source.into(),
        }
    }
}

#[async_trait]
impl MessageSource for PullSource {
    async fn pull(&self, max: usize) -> Result<Vec<(SourceMessage, Box<dyn Settle>)>, BusError> {
        let started = Instant::now();
        let mut state = self.state.lock().await;
        let filled = self.fill(&mut state, max.max(1)).await;
        let ending = match filled {
            Ok(ending) => ending,
            Err(error) => {
                sleep_until(started + PACE).await;
                return Err(error);
            }
        };
        match ending {
            Ending::Served => {}
            Ending::NotServed => sleep_until(started + PACE).await,
            Ending::ConsumerGone => {
                state.resume_read = None;
                sleep_until(started + PACE).await;
            }
            Ending::Closed => {
                state.inbox = None;
                sleep_until(started + PACE).await;
            }
        }
        let messages = state.inbox.as_mut().map(|inbox| inbox.take(max.max(1)));
        let split = |message| message::split(&self.client, message);
        Ok(messages.into_iter().flatten().filter_map(split).collect())
    }
}
