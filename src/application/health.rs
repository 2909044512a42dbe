//! How the worker is: what it depends on, whether its loops turn, and what waits.
//!
//! Everything here is told by others, cheap to tell and to ask, and never waits. Times come from the
//! monotonic clock, so that a step of the system's clock stalls nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metrics::gauge;
use serde::Serialize;

use crate::{
    domain::{interfaces::StoreStats, values::Timestamp},
    shared::metrics::UP,
};

/// The bus.
pub const NATS: &str = "nats";
/// The database answers.
pub const DATABASE: &str = "database";
/// The database has this program's tables.
pub const MIGRATIONS: &str = "migrations";

/// A loop that has not turned for so long is stalled.
pub const STALLED_AFTER: Duration = Duration::from_mins(1);

/// How something is that the worker depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting { waiting_for: String },
    Up,
    Down { reason: String, since: Instant },
}

#[derive(Debug)]
struct Inner {
    dependencies: BTreeMap<&'static str, State>,
    beats: BTreeMap<&'static str, Instant>,
    stats: Option<StoreStats>,
    events_pending: Option<u64>,
    started: bool,
    draining: bool,
}

/// How the worker is.
#[derive(Debug)]
pub struct Health {
    begun: Instant,
    inner: Mutex<Inner>,
}

/// What waits, as it was last measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Events in the source stream that were not delivered to any worker yet.
    pub events_pending: Option<u64>,
    /// Deliveries that wait in the database.
    pub deliveries_waiting: Option<i64>,
    /// For how long the longest-due of them has been due.
    pub oldest_waiting_seconds: Option<f64>,
    /// Committed events that wait to be published.
    pub outbox_waiting: Option<i64>,
    /// The age of the oldest of them.
    pub oldest_outbox_seconds: Option<f64>,
    /// Committed events made of answers that wait to be published.
    pub responses_waiting: Option<i64>,
    /// The age of the oldest of them.
    pub oldest_response_seconds: Option<f64>,
}

/// How the worker is, as `/health` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    /// In one word.
    pub status: Status,
    /// The program's version.
    pub version: &'static str,
    /// Since it was started.
    pub uptime_seconds: u64,
    /// Why it is not ready; empty when it is.
    pub not_ready: Vec<String>,
    /// What it depends on.
    pub dependencies: BTreeMap<&'static str, DependencyReport>,
    /// Its loops.
    pub loops: BTreeMap<&'static str, LoopReport>,
    /// What waits.
    #[serde(flatten)]
    pub figures: Figures,
}

/// How the worker is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It does not take work yet.
    Starting,
    /// All is well.
    Ready,
    /// It takes work, but a loop is stalled.
    Degraded,
    /// Something that it depends on is down.
    Down,
    /// It finishes what it has in hand.
    Draining,
}

/// How a dependency is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(
    tag = "state",
    rename_all = "lowercase",
    rename_all_fields = "camelCase"
)]
pub enum DependencyReport {
    /// Not there yet.
    Starting {
        /// What it waits for.
        waiting_for: String,
    },
    /// It answers.
    Up,
    /// It does not answer any more.
    Down {
        /// Why.
        reason: String,
        /// For how long.
        for_seconds: u64,
    },
}

/// How a loop is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoopReport {
    /// Whether it has not turned for [`STALLED_AFTER`].
    pub stalled: bool,
    /// How long ago it turned.
    pub last_beat_seconds: u64,
}

impl Default for Health {
    fn default() -> Self {
        let waiting_for = || State::Starting {
            waiting_for: "the first answer".to_owned(),
        };
        Self {
            begun: Instant::now(),
            inner: Mutex::new(Inner {
                dependencies: [NATS, DATABASE, MIGRATIONS]
                    .map(|name| (name, waiting_for()))
                    .into(),
                beats: BTreeMap::new(),
                stats: None,
                events_pending: None,
                started: false,
                draining: false,
            }),
        }
    }
}

impl Health {
    /// A dependency ([`NATS`], [`DATABASE`], [`MIGRATIONS`], or another one) is waited for at start.
    pub fn starting(&self, dependency: &'static str, waiting_for: impl Into<String>) {
        let waiting_for = waiting_for.into();
        self.set(dependency, State::Starting { waiting_for });
    }

    /// A dependency answers.
    pub fn up(&self, dependency: &'static str) {
        self.set(dependency, State::Up);
    }

    /// A dependency does not answer; `reason` is shown to whoever may reach the ops port, so it holds no
    /// secret.
    pub fn down(&self, dependency: &'static str, reason: impl Into<String>) {
        self.down_at(dependency, reason.into(), Instant::now());
    }

    fn down_at(&self, dependency: &'static str, reason: String, now: Instant) {
        let since = match self.lock().dependencies.get(dependency) {
            Some(State::Down { since, .. }) => *since,
            _ => now,
        };
        self.set(dependency, State::Down { reason, since });
    }

    fn set(&self, dependency: &'static str, state: State) {
        let is_up = state == State::Up;
        self.lock().dependencies.insert(dependency, state);
        gauge!(UP, "dependency" => dependency).set(if is_up { 1.0 } else { 0.0 });
    }

    /// A loop has turned. Its first beat makes it known.
    pub fn beat(&self, name: &'static str) {
        self.beat_at(name, Instant::now());
    }

    fn beat_at(&self, name: &'static str, now: Instant) {
        self.lock().beats.insert(name, now);
    }

    /// Everything runs that is to run.
    pub fn started(&self) {
        self.lock().started = true;
    }

    /// The worker takes nothing any more.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.lock().draining
    }

    /// Keeps what the store counted.
    pub fn set_stats(&self, stats: StoreStats) {
        self.lock().stats = Some(stats);
    }

    /// Keeps how many events wait in the source stream.
    pub fn set_events_pending(&self, pending: u64) {
        self.lock().events_pending = Some(pending);
    }

    /// Whether the worker takes work.
    ///
    /// # Errors
    /// Every reason why it does not.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let reasons = self.lock().not_ready();
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(reasons)
        }
    }

    /// How the worker is; ages are as of `time`.
    pub fn report(&self, time: Timestamp) -> HealthReport {
        self.report_at(Instant::now(), time)
    }

    fn report_at(&self, now: Instant, time: Timestamp) -> HealthReport {
        let inner = self.lock();
        let loops = inner.loops(now);
        let dependencies = inner.dependencies.iter();
        HealthReport {
            status: inner.status(&loops),
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: now.saturating_duration_since(self.begun).as_secs(),
            not_ready: inner.not_ready(),
            dependencies: dependencies
                .map(|(name, state)| (*name, state.report(now)))
                .collect(),
            loops,
            figures: inner.figures(time),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn figures(&self, time: Timestamp) -> Figures {
        let age = |since: Option<Timestamp>| {
            let seconds = since.and_then(|since| (time - since).to_std().ok());
            seconds.unwrap_or_default().as_secs_f64()
        };
        let stats = self.stats.as_ref();
        Figures {
            events_pending: self.events_pending,
            deliveries_waiting: stats.map(|stats| stats.parked),
            oldest_waiting_seconds: stats.map(|stats| age(stats.oldest_due)),
            outbox_waiting: stats.map(|stats| stats.outbox),
            oldest_outbox_seconds: stats.map(|stats| age(stats.oldest_outbox)),
            responses_waiting: stats.map(|stats| stats.responses),
            oldest_response_seconds: stats.map(|stats| age(stats.oldest_response)),
        }
    }

    fn not_ready(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self
            .dependencies
            .iter()
            .filter_map(|(name, state)| match state {
                State::Up => None,
                State::Starting { waiting_for } => Some(format!("{name}: waits for {waiting_for}")),
                State::Down { reason, .. } => Some(format!("{name}: {reason}")),
            })
            .collect();
        if self.draining {
            reasons.push("draining".to_owned());
        } else if !self.started {
            reasons.push("starting".to_owned());
        }
        reasons
    }

    fn status(&self, loops: &BTreeMap<&'static str, LoopReport>) -> Status {
        let is_down = |state: &State| matches!(state, State::Down { .. });
        if self.draining {
            Status::Draining
        } else if self.dependencies.values().any(is_down) {
            Status::Down
        } else if !self.not_ready().is_empty() {
            Status::Starting
        } else if loops.values().any(|report| report.stalled) {
            Status::Degraded
        } else {
            Status::Ready
        }
    }

    fn loops(&self, now: Instant) -> BTreeMap<&'static str, LoopReport> {
        let report = |beat: &Instant| {
            let ago = now.saturating_duration_since(*beat);
            LoopReport {
                // A loop that has ended with its group is not stalled.
                stalled: ago >= STALLED_AFTER && !self.draining,
                last_beat_seconds: ago.as_secs(),
            }
        };
        let beats = self.beats.iter();
        beats.map(|(name, beat)| (*name, report(beat))).collect()
    }
}

impl State {
    fn report(&self, now: Instant) -> DependencyReport {
        match self {
            Self::Starting { waiting_for } => DependencyReport::Starting {
                waiting_for: waiting_for.clone(),
            },
            Self::Up => DependencyReport::Up,
            Self::Down { reason, since } => DependencyReport::Down {
                reason: reason.clone(),
                for_seconds: now.saturating_duration_since(*since).as_secs(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(millis: i64) -> Timestamp {
        chrono::DateTime::from_timestamp_millis(millis).unwrap()
    }

    fn up() -> Health {
        let health = Health::default();
        for dependency in [NATS, DATABASE, MIGRATIONS] {
            health.up(dependency);
        }
        health
    }

    #[test]
    fn a_worker_is_ready_when_all_answer_and_it_has_started_and_does_not_drain() {
        let health = Health::default();
        assert_eq!(health.ready().unwrap_err().len(), 4);
        health.starting(DATABASE, "postgresql://db:5432/erp");
        health.up(NATS);
        health.up(MIGRATIONS);
        assert_eq!(
            health.ready().unwrap_err(),
            ["database: waits for postgresql://db:5432/erp", "starting"]
        );
        assert_eq!(health.report(time(0)).status, Status::Starting);

        let health = up();
        assert_eq!(health.ready().unwrap_err(), ["starting"]);
        health.started();
        assert_eq!(health.ready(), Ok(()));
        assert_eq!(health.report(time(0)).status, Status::Ready);

        health.down(NATS, "the connection is lost");
        assert_eq!(
            health.ready().unwrap_err(),
            ["nats: the connection is lost"]
        );
        assert_eq!(health.report(time(0)).status, Status::Down);

        health.up(NATS);
        health.drain();
        assert_eq!(health.ready().unwrap_err(), ["draining"]);
        assert_eq!(health.report(time(0)).status, Status::Draining);
        assert!(health.is_draining());
    }

    #[test]
    fn what_is_down_is_down_since_it_first_was() {
        let health = up();
        let now = Instant::now();
        health.down_at(NATS, "first".to_owned(), now);
        health.down_at(NATS, "second".to_owned(), now + Duration::from_secs(5));
        let report = health.report_at(now + Duration::from_secs(7), time(0));
        let expected = DependencyReport::Down {
            reason: "second".to_owned(),
            for_seconds: 7,
        };
        assert_eq!(report.dependencies.get(NATS), Some(&expected));
    }

    #[test]
    fn a_loop_without_a_beat_for_a_minute_is_stalled_unless_the_worker_drains() {
        let health = up();
        health.started();
        let now = Instant::now();
        health.beat_at("intake", now);
        health.beat_at("relay", now + Duration::from_secs(30));
        let stalled = |report: &HealthReport| {
            let loops = report.loops.iter();
            let stalled = loops.filter(|(_, report)| report.stalled);
            stalled.map(|(name, _)| *name).collect::<Vec<_>>()
        };
        let report = health.report_at(now + Duration::from_secs(59), time(0));
        assert_eq!((stalled(&report), report.status), (vec![], Status::Ready));
        let report = health.report_at(now + Duration::from_mins(1), time(0));
        assert_eq!(
            (stalled(&report), report.status),
            (vec!["intake"], Status::Degraded)
        );
        assert_eq!(health.ready(), Ok(()));
        health.drain();
        assert!(stalled(&health.report_at(now + Duration::from_secs(99), time(0))).is_empty());
    }

    #[test]
    fn the_report_shows_dependencies_loops_and_what_waits() {
        let health = up();
        health.down(NATS, "away");
        health.beat("intake");
        health.set_events_pending(12);
        health.set_stats(StoreStats {
            parked: 3,
            oldest_due: Some(time(997_500)),
            outbox: 1,
            oldest_outbox: Some(time(1_009_000)),
            responses: 2,
            oldest_response: Some(time(991_000)),
        });
        let report = serde_json::to_value(health.report(time(1_000_000))).unwrap();
        for (pointer, value) in [
            ("/status", serde_json::json!("down")),
            ("/dependencies/database/state", "up".into()),
            ("/dependencies/nats/reason", "away".into()),
            ("/dependencies/nats/forSeconds", 0.into()),
            ("/loops/intake/stalled", false.into()),
            ("/eventsPending", 12.into()),
            ("/deliveriesWaiting", 3.into()),
            ("/oldestWaitingSeconds", 2.5.into()),
            ("/oldestOutboxSeconds", 0.0.into()),
            ("/responsesWaiting", 2.into()),
            ("/oldestResponseSeconds", 9.0.into()),
        ] {
            assert_eq!(
                report.pointer(pointer),
                Some(&value),
                "{pointer} of {report}"
            );
        }
    }
}
