//! The one connection to NATS. It is made in the background and kept for ever.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Client, Event, connection::State};
use tokio::sync::watch;

use crate::application::ports::Clock;

use super::settings::{NatsSettings, NatsSettingsError, prepare};

/// How long a request to the server may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long making one connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent for two of these is given up.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// The longest wait between two tries, before jitter.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
const SHORTEST_DELAY: Duration = Duration::from_millis(50);

/// A client, and whether it is connected now.
#[derive(Clone)]
pub struct Connection {
    /// Cheap to clone; what is published while the connection is away waits in it.
    pub client: Client,
    /// Follows the connection; false until it is made for the first time.
    pub connected: watch::Receiver<bool>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("connected", &*self.connected.borrow())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Waits until the server is there; for ever if need be.
    pub async fn established(&self) {
        let mut connected = self.connected.clone();
        // An error means that the client is gone, and with it whoever waits.
        drop(connected.wait_for(|connected| *connected).await);
    }
}

/// Starts a connection: at once a client, whose connection is made, and remade, in the background
/// for ever, with growing waits.
///
/// # Errors
/// [`NatsSettingsError`] when a setting can never work. A server that is away, or refuses us, is
/// no error here: it is logged, once, and tried again.
pub async fn connect(
    settings: &NatsSettings,
    clock: Arc<dyn Clock>,
) -> Result<Connection, NatsSettingsError> {
    let (addresses, options) = prepare(settings).await?;
    let hosts: Vec<String> = addresses
        .iter()
        .map(|a| format!("{}:{}", a.host(), a.port()))
        .collect();
    let (sender, connected) = watch::channel(false);
    let log = Arc::new(ConnectionLog {
        servers: hosts.join(","),
        connected: sender,
        last_fault: Mutex::default(),
    });
    let client = options
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(move |attempt| reconnect_delay(attempt, clock.random()))
        .event_callback(move |event| {
            log.note(&event);
            std::future::ready(())
        })
        .connect(addresses)
        .await
        .map_err(|error| NatsSettingsError {
            setting: "NATS_URL",
            problem: error.to_string(),
        })?;
    Ok(Connection { client, connected })
}

/// The first try is made at once, or nearly: many workers lose the same server at the same time.
fn reconnect_delay(attempt: usize, random: f64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
    let delay = SHORTEST_DELAY
        .saturating_mul(2_u32.saturating_pow(doublings.min(16)))
        .min(LONGEST_DELAY);
    if attempt <= 1 {
        delay.mul_f64(random)
    } else {
        delay.mul_f64(0.5 + random)
    }
}

/// Tells each change of the connection once.
#[derive(Debug)]
struct ConnectionLog {
    servers: String,
    connected: watch::Sender<bool>,
    last_fault: Mutex<String>,
}

impl ConnectionLog {
    fn note(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.set_fault(String::new());
                if self.set_connected(true) {
                    tracing::info!(servers = self.servers, "connected to NATS");
                }
            }
            Event::Disconnected | Event::Closed => {
                if self.set_connected(false) {
                    tracing::warn!(servers = self.servers, "the connection to NATS is lost");
                }
            }
            Event::ClientError(error) => self.fault(&error.to_string()),
            Event::ServerError(error) => self.fault(&error.to_string()),
            Event::SlowConsumer(subscription) => tracing::error!(
                subscription,
                "messages from NATS were dropped: a subscription is full"
            ),
            Event::LameDuckMode => tracing::info!("a NATS server is about to stop"),
            Event::Draining => {}
        }
    }

    /// Whether that is a change.
    fn set_connected(&self, now: bool) -> bool {
        let was = self.connected.send_replace(now);
        was != now
    }

    /// The same fault repeats with every try.
    fn fault(&self, text: &str) {
        if self.set_fault(text.to_owned()) {
            tracing::warn!(
                servers = self.servers,
                error = text,
                "NATS does not take the connection or what was sent; trying again"
            );
        }
    }

    fn set_fault(&self, text: String) -> bool {
        let mut last = self
            .last_fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let changed = *last != text;
        *last = text;
        changed
    }
}

/// Whether the client is connected, as it says itself.
pub(super) fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_a_bound_and_is_never_the_same_for_all() {
        assert_eq!(reconnect_delay(1, 0.0), Duration::ZERO);
        assert!(reconnect_delay(1, 0.99) < SHORTEST_DELAY);
        assert_eq!(reconnect_delay(2, 0.5), SHORTEST_DELAY * 2);
        for attempt in [8, 100, usize::MAX] {
            assert_eq!(reconnect_delay(attempt, 0.0), LONGEST_DELAY / 2);
            assert_eq!(reconnect_delay(attempt, 0.5), LONGEST_DELAY);
        }
    }

    #[test]
    fn a_change_is_told_once() {
        let (connected, watch) = watch::channel(false);
        let log = ConnectionLog {
            servers: String::new(),
            connected,
            last_fault: Mutex::default(),
        };
        log.note(&Event::Connected);
        assert!(*watch.borrow());
        assert!(!log.set_connected(true));
        assert!(log.set_fault("refused".to_owned()));
        assert!(!log.set_fault("refused".to_owned()));
        log.note(&Event::Disconnected);
        assert!(!*watch.borrow());
    }
}
