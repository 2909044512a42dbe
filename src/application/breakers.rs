//! The breakers of all endpoints as this worker knows them, and what it has seen of the endpoints since it
//! last told the others.
//!
//! Attempts leave their signs in memory; a loop takes them to the database, where those of all workers are
//! added up, and brings back how the endpoints are. So the common case, a success at an endpoint with which
//! nothing is wrong, costs one look into a map.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metrics::{counter, gauge};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        entities::Delivery,
        interfaces::{ClaimRequest, ClaimedDelivery, Store, StoreError},
        policies::{BreakerRules, EndpointState, Sign, Signs},
        values::{Timestamp, WebhookId},
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{BREAKERS_OPEN, LOOP_FAULTS},
    },
};

use super::{
    ports::Clock,
    webhook_changes::{Seen, WebhookChanges},
};

/// How often signs are taken to the database; at once when an endpoint seems to be down.
pub const FLUSH_EVERY: Duration = Duration::from_millis(200);
/// How often what other workers found is read.
pub const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Troubled endpoints that are known at a time, those with an open breaker first.
pub const MAX_ENDPOINTS: u32 = 10_000;
/// How long the right to a probe lasts. The worker that has it may use it all that time: what there is to
/// try the endpoint with waits in the database, so whichever worker looks there finds it. A probe that
/// begins at once is over by then: the longest timeout is 5 min. A worker that stops gives it back; where
/// one dies with it, the endpoint waits for the rest of it, which is less than after some more failures
/// ([`BreakerRules::longest_wait`]).
const PROBE_LASTS: Duration = Duration::from_mins(6);
/// When a worker that did not get the right to a probe asks for it again.
const PROBE_ASKED_EVERY: Duration = Duration::from_secs(1);

/// How long a probe that could not be made is left, where the next one would most likely fare the same.
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// When breakers open and webhooks are given up.
#[derive(Debug, Clone, Copy)]
pub struct BreakerSettings {
    /// When a breaker opens, and for how long.
    pub rules: BreakerRules,
    /// After how long of nothing but failures a webhook is disabled.
    pub disable_after: Duration,
}

/// The breakers of all endpoints.
pub struct Breakers {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    changes: WebhookChanges,
    settings: BreakerSettings,
    entries: Mutex<HashMap<WebhookId, Entry>>,
    bell: Notify,
}

/// A troubled endpoint; there is no entry for the others.
#[derive(Debug, Default)]
struct Entry {
    known: EndpointState,
    seen: Option<Box<Unsaid>>,
    probe: Probe,
}

/// What the database does not know yet.
#[derive(Debug)]
struct Unsaid {
    signs: Signs,
    cause: Delivery,
    error: Option<String>,
}

/// This worker and the one request that tries an open endpoint.
#[derive(Debug, Clone, Copy, Default)]
enum Probe {
    #[default]
    Unknown,
    /// It is this worker's to make, between these times.
    Held(Timestamp, Timestamp),
    /// The same, and one of its lanes looks for a delivery or makes it. It lasts up to this time.
    Used(Timestamp),
    /// It is another worker's; asked again then.
    Later(Timestamp),
}

impl std::fmt::Debug for Breakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breakers")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Breakers {
    /// Knows of no trouble until it is started.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        changes: WebhookChanges,
        settings: BreakerSettings,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            changes,
            settings,
            entries: Mutex::default(),
            bell: Notify::new(),
        })
    }

    /// Takes signs to the database and brings back how endpoints are, until `group` is stopping.
    pub fn start(self: &Arc<Self>, group: &Group) {
        group.spawn_loop("breakers", Arc::clone(self).run(group.stopping()));
    }

    /// What the worker itself changes about webhooks.
    pub fn changes(&self) -> &WebhookChanges {
        &self.changes
    }

    /// Counts what an attempt says about the endpoint of its webhook; `is_probe` where it was made in
    /// spite of its open breaker.
    pub fn note(&self, delivery: &Delivery, sign: Sign, is_probe: bool, error: Option<&str>) {
        let mut entries = self.lock();
        let id = delivery.webhook_id;
        if sign == Sign::Success && !entries.contains_key(&id) {
            return;
        }
        let entry = entries.entry(id).or_default();
        let mut signs = entry.seen.as_ref().map(|s| s.signs).unwrap_or_default();
        if is_probe {
            signs.add_probe(sign);
        } else {
            signs.add(sign);
        }
        entry.seen = Some(Box::new(Unsaid {
            signs,
            cause: delivery.clone(),
            error: error.map(str::to_owned),
        }));
        let failures = entry.known.failures.saturating_add(signs.failures);
        let is_open = entry.known.open_until().is_some();
        if is_open || failures >= self.settings.rules.open_after {
            self.bell.notify_one();
        }
    }

    /// Until when the endpoint is left alone; `None` when it is not. The time may have come: then the
    /// probe is still to be made.
    pub fn open_until(&self, webhook: WebhookId) -> Option<Timestamp> {
        self.lock().get(&webhook)?.known.open_until()
    }

    /// The endpoints that are left alone.
    pub fn open(&self) -> Vec<WebhookId> {
        let entries = self.lock();
        let open = entries
            .iter()
            .filter(|(_, entry)| entry.known.open_until().is_some());
        open.map(|(id, _)| *id).collect()
    }

    /// Claims one delivery for each endpoint that has waited long enough and that this worker may try.
    ///
    /// # Errors
    /// The store's; what was taken is kept, and used the next time.
    pub async fn claim_probes(
        &self,
        request: &ClaimRequest,
    ) -> Result<Vec<ClaimedDelivery>, StoreError> {
        let now = request.now;
        let wanted = self.wanted_probes(now);
        if !wanted.is_empty() {
            let taken = self
                .store
                .take_probes(&wanted, now, now + PROBE_LASTS)
                .await?;
            self.set_probes(&wanted, Probe::Later(now + PROBE_ASKED_EVERY));
            self.set_probes(&taken, Probe::Held(now, now + PROBE_LASTS));
        }
        let mut used = self.held(now);
        used.retain(|webhook| self.use_probe(*webhook, now));
        if used.is_empty() {
            return Ok(Vec::new());
        }
        let request = ClaimRequest {
            per_webhook: 1,
            exclude: Vec::new(),
            only: Some(used.clone()),
            ..request.clone()
        };
        let claimed = self.store.claim_due(&request).await;
        let claimed = claimed.map(|claimed| claimed.deliveries);
        let found = claimed.iter().flatten().map(|one| one.delivery.webhook_id);
        let found: HashSet<WebhookId> = found.collect();
        for webhook in used.into_iter().filter(|id| !found.contains(id)) {
            self.keep_probe(webhook, Duration::ZERO);
        }
        claimed
    }

    /// The endpoints that this worker may try now.
    pub fn held(&self, now: Timestamp) -> Vec<WebhookId> {
        let entries = self.lock();
        let held = entries.iter().filter(|(_, entry)| entry.probe.is_held(now));
        held.map(|(id, _)| *id).collect()
    }

    /// Takes this worker's right to a probe for use, before a delivery is claimed for it; whether it was
    /// still there, so that one lane of the worker has it at a time. Without a sign of the endpoint it is
    /// to be kept ([`Self::keep_probe`]).
    pub fn use_probe(&self, webhook: WebhookId, now: Timestamp) -> bool {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&webhook) else {
            return false;
        };
        match entry.probe {
            Probe::Held(_, until) if entry.probe.is_held(now) => {
                entry.probe = Probe::Used(until);
                true
            }
            _ => false,
        }
    }

    /// The right that was taken for use has brought no sign of the endpoint: another delivery may serve,
    /// after this `pause`, for as long as the right lasts.
    pub fn keep_probe(&self, webhook: WebhookId, pause: Duration) {
        let from = self.clock.store_now() + pause;
        if let Some(entry) = self.lock().get_mut(&webhook)
            && let Probe::Used(until) = entry.probe
        {
            entry.probe = Probe::Held(from, until);
        }
    }

    /// Those that may be tried, and that nobody is known to try.
    fn wanted_probes(&self, now: Timestamp) -> Vec<WebhookId> {
        let entries = self.lock();
        let wanted = entries.iter().filter(|(_, entry)| {
            let is_over = entry.known.open_until().is_some_and(|until| until <= now);
            let is_asked = match entry.probe {
                Probe::Unknown => true,
                Probe::Held(_, at) | Probe::Used(at) | Probe::Later(at) => at <= now,
            };
            is_over && is_asked
        });
        wanted.map(|(id, _)| *id).collect()
    }

    fn set_probes(&self, webhooks: &[WebhookId], probe: Probe) {
        let mut entries = self.lock();
        for id in webhooks {
            if let Some(entry) = entries.get_mut(id) {
                entry.probe = probe;
            }
        }
    }

    async fn run(self: Arc<Self>, stopping: CancellationToken) {
        let mut refreshed: Option<Instant> = None;
        loop {
            self.flush().await;
            if refreshed.is_none_or(|at| at.elapsed() >= REFRESH_EVERY) {
                if let Err(error) = self.refresh().await {
                    counter!(LOOP_FAULTS, "loop" => "breakers").increment(1);
                    tracing::debug!(error = %Chain(&error), "breakers could not be read");
                }
                refreshed = Some(Instant::now());
            }
            if stopping.is_cancelled() {
                return self.give_back().await;
            }
            tokio::select! {
                // Once more, for what the last attempts said.
                () = stopping.cancelled() => {}
                () = self.bell.notified() => {}
                () = tokio::time::sleep(FLUSH_EVERY) => {}
            }
        }
    }

    /// Lets other workers make the probes that this one has the right to.
    async fn give_back(&self) {
        let rights = self.rights();
        if rights.is_empty() {
            return;
        }
        if let Err(error) = self.store.give_probes_back(&rights).await {
            tracing::debug!(error = %Chain(&error), "rights to probes were not given back");
        }
    }

    /// The endpoints that this worker may try, and until when.
    fn rights(&self) -> Vec<(WebhookId, Timestamp)> {
        let entries = self.lock();
        let rights = entries.iter().filter_map(|(id, entry)| match entry.probe {
            Probe::Held(_, until) | Probe::Used(until) => Some((*id, until)),
            Probe::Unknown | Probe::Later(_) => None,
        });
        rights.collect()
    }

    /// Reads how endpoints are.
    ///
    /// # Errors
    /// The store's.
    async fn refresh(&self) -> Result<(), StoreError> {
        let found = self.store.endpoint_states(MAX_ENDPOINTS).await?;
        let found: HashMap<WebhookId, EndpointState> = found.into_iter().collect();
        let mut entries = self.lock();
        for (id, entry) in entries.iter_mut() {
            entry.learn(found.get(id).copied().unwrap_or_default());
        }
        for (id, state) in found {
            entries.entry(id).or_default().learn(state);
        }
        entries.retain(|_, entry| entry.is_needed());
        let open = entries.values().filter(|e| e.known.open_until().is_some());
        let open = u32::try_from(open.count()).unwrap_or(u32::MAX);
        gauge!(BREAKERS_OPEN).set(f64::from(open));
        Ok(())
    }

    /// Takes what was seen to the database: one unit of work for each endpoint with something new.
    async fn flush(&self) {
        for (id, unsaid) in self.unsaid() {
            let seen = Seen {
                cause: &unsaid.cause,
                signs: unsaid.signs,
                error: unsaid.error.as_deref(),
            };
            let BreakerSettings {
                rules,
                disable_after,
            } = &self.settings;
            let judged = self.changes.judge(seen, rules, *disable_after).await;
            match judged {
                Ok(state) => self.lock().entry(id).or_default().learn(state),
                Err(error) if error.is_final() => {
                    let error = Chain(&error).to_string();
                    tracing::error!(webhook = %id, error, "how an endpoint is cannot be kept");
                }
                Err(error) => {
                    counter!(LOOP_FAULTS, "loop" => "breakers").increment(1);
                    tracing::debug!(error = %Chain(&error), "how an endpoint is was not kept");
                    self.put_back(id, unsaid);
                }
            }
        }
        self.lock().retain(|_, entry| entry.is_needed());
    }

    /// Takes what was seen since the last time and says something new.
    fn unsaid(&self) -> Vec<(WebhookId, Box<Unsaid>)> {
        let now = self.clock.store_now();
        let BreakerSettings {
            rules,
            disable_after,
        } = &self.settings;
        let mut entries = self.lock();
        let all = entries.iter_mut().filter_map(|(id, entry)| {
            let unsaid = entry.seen.take()?;
            let (after, _) = entry.known.after(unsaid.signs, rules, now);
            let is_new = after != entry.known || after.is_hopeless(now, *disable_after);
            is_new.then_some((*id, unsaid))
        });
        all.collect()
    }

    fn put_back(&self, id: WebhookId, mut unsaid: Box<Unsaid>) {
        let mut entries = self.lock();
        let entry = entries.entry(id).or_default();
        if let Some(later) = entry.seen.take() {
            unsaid = Box::new(Unsaid {
                signs: unsaid.signs.then(later.signs),
                ..*later
            });
        }
        entry.seen = Some(unsaid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WebhookId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe {
    fn is_held(self, now: Timestamp) -> bool {
        matches!(self, Self::Held(from, until) if from <= now && now < until)
    }
}

impl Entry {
    fn learn(&mut self, state: EndpointState) {
        // Every opening has its own probe.
        if self.known.open_until() != state.open_until() {
            self.probe = Probe::Unknown;
        }
        self.known = state;
    }

    fn is_needed(&self) -> bool {
        !self.known.is_well() || self.seen.is_some()
    }
}
