//! The webhooks in memory: exact, compiled, and matched without looking at those that do not match.
//!
//! Before every batch the change counter of the registry is read; where it has moved, the changes are
//! read and taken into a new [`Snapshot`], which shares with the former one what did not change. So a
//! webhook whose `create` has been answered gets every event that is published after the answer, on
//! every worker (DESIGN, idea 4).

mod compile;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use metrics::{gauge, histogram};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    domain::{
        entities::{BatchRule, OnExhausted, Webhook},
        interfaces::{RegistryDelta, RegistryWebhook, Store, StoreError, UnreadableWebhook},
        policies::RetryPolicy,
        values::{IntegrationId, TenantId, WebhookId},
    },
    shared::metrics::{REGISTRY_VERSION, REGISTRY_WEBHOOKS, STORE_SECONDS},
};

use super::{
    endpoint::Endpoint,
    endpoints::Bound,
    ports::{Cipher, Expression, Expressions},
    response::ResponseRule,
};

use compile::Compiler;
pub use snapshot::Snapshot;

/// A webhook as the data plane needs it.
#[derive(Debug)]
pub struct CompiledWebhook {
    /// Its id.
    pub id: WebhookId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The integration that it belongs to.
    pub integration_id: IntegrationId,
    /// Whether it is `pending`: its first success makes it `active`.
    pub is_pending: bool,
    /// Whether the worker disabled it: what matches is parked without an attempt.
    pub is_disabled: bool,
    /// When to try again.
    pub retry: RetryPolicy,
    /// What an event must meet besides the patterns.
    pub filter: Option<Arc<dyn Expression>>,
    /// Which deliveries wait for each other, if any do.
    pub ordering: Option<LaneRule>,
    /// How many events go out in one request, if not one.
    pub batch: Option<BatchRule>,
    /// Whether it has a rate limit: its deliveries are parked without an attempt, and each claim of one
    /// takes a token.
    pub is_rate_limited: bool,
    /// How many requests this worker may have under way there.
    pub bound: Bound,
    /// What makes requests; or why none can be made (a fault of ours or of the key ring), which parks.
    pub endpoint: Result<Endpoint, String>,
}

/// Why no request can be made for this webhook; `None` when one can.
pub(super) fn unusable(
    webhook: &Webhook,
    cipher: &dyn Cipher,
    expressions: &dyn Expressions,
) -> Option<String> {
    let compiled = Compiler::new(cipher, expressions).compile(webhook);
    compiled.webhook.endpoint.err()
}

impl CompiledWebhook {
    /// Whether an exhausted delivery stops those behind it in its order.
    pub fn blocks(&self) -> bool {
        let rule = self.ordering.as_ref();
        rule.is_some_and(|rule| rule.on_exhausted == OnExhausted::Block)
    }

    /// What makes events of answers, if anything does.
    pub fn response(&self) -> Option<&ResponseRule> {
        self.endpoint.as_ref().ok()?.response()
    }
}

/// The rule by which deliveries get their lanes.
#[derive(Debug)]
pub struct LaneRule {
    /// The ordering key of an event.
    pub key: Arc<dyn Expression>,
    /// What becomes of those behind one that is exhausted.
    pub on_exhausted: OnExhausted,
}

/// How many webhooks are compiled before other tasks get a turn.
const YIELD_EVERY: usize = 64;
/// How often secrets whose key was missing are tried again.
const KEY_RETRY: Duration = Duration::from_secs(1);

/// Keeps the current [`Snapshot`].
pub struct Registry {
    store: Arc<dyn Store>,
    cipher: Arc<dyn Cipher>,
    expressions: Arc<dyn Expressions>,
    current: ArcSwap<Snapshot>,
    /// Numbers the calls and the reads in the order in which they began.
    order: AtomicU64,
    reads: Mutex<Reads>,
}

/// What is known of the reads so far; whoever holds it is the one who reads.
#[derive(Debug, Default)]
struct Reads {
    /// When the last successful read of the change counter began.
    began: u64,
    /// Whether anything was loaded.
    loaded: bool,
    /// When missing keys were last looked for.
    keys_tried: Option<Instant>,
}

impl Registry {
    /// An empty registry; the first [`Self::refresh`] loads it.
    pub fn new(
        store: Arc<dyn Store>,
        cipher: Arc<dyn Cipher>,
        expressions: Arc<dyn Expressions>,
    ) -> Self {
        Self {
            store,
            cipher,
            expressions,
            current: ArcSwap::default(),
            order: AtomicU64::new(1),
            reads: Mutex::default(),
        }
    }

    /// Reads the change counter and, if it has moved, the changes; answers the snapshot that is current
    /// as of this call. Calls at the same time share the work: one of them reads, and those that called
    /// before that read began take its result. A read that began before the call is never good enough,
    /// since it may not have seen what was committed meanwhile.
    ///
    /// # Errors
    /// The store's; the snapshot stays what it was.
    pub async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        let called = self.order.fetch_add(1, Ordering::AcqRel);
        let mut reads = self.reads.lock().await;
        if reads.began > called {
            return Ok(self.current());
        }
        let began = self.order.fetch_add(1, Ordering::AcqRel);
        let version = timed("version", self.store.registry_version()).await?;
        let current = self.current();
        if !reads.loaded || version != current.version {
            // A counter that went back is another database, restored from a backup: all anew.
            let known = reads.loaded && version > current.version;
            let since = if known { current.version } else { 0 };
            let delta = timed("delta", self.store.registry_delta(since)).await?;
            let next = self.apply(&current, delta, since).await;
            self.publish(next);
            reads.loaded = true;
        }
        self.look_for_keys(&mut reads).await;
        reads.began = began;
        Ok(self.current())
    }

    /// The latest snapshot, without asking the database.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    fn publish(&self, next: Snapshot) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            gauge!(REGISTRY_VERSION).set(next.version as f64);
            gauge!(REGISTRY_WEBHOOKS).set(next.len() as f64);
        }
        tracing::debug!(
            version = next.version,
            webhooks = next.len(),
            "the registry changed"
        );
        self.current.store(Arc::new(next));
    }

    fn compiler(&self) -> Compiler<'_> {
        Compiler::new(self.cipher.as_ref(), self.expressions.as_ref())
    }

    async fn apply(&self, current: &Snapshot, delta: RegistryDelta, since: i64) -> Snapshot {
        let mut next = if delta.full || since == 0 {
            Snapshot::default()
        } else {
            current.clone()
        };
        next.version = delta.version;
        for id in delta.removed {
            next.remove(id);
        }
        for row in delta.unreadable {
            park(&mut next, row);
        }
        let mut changed = delta.changed;
        changed.sort_unstable_by_key(|row| row.webhook.id);
        let mut compiler = self.compiler();
        for (row, number) in changed.into_iter().zip(1_usize..) {
            take_in(&mut next, current, row, &mut compiler);
            if number.is_multiple_of(YIELD_EVERY) {
                tokio::task::yield_now().await;
            }
        }
        next
    }

    /// Compiles webhooks again whose keys were missing: the key ring may have them by now.
    async fn look_for_keys(&self, reads: &mut Reads) {
        let current = self.current();
        let due = reads.keys_tried.is_none_or(|at| at.elapsed() >= KEY_RETRY);
        if !due || current.without_key().next().is_none() {
            return;
        }
        let mut next = Snapshot::clone(&current);
        let mut compiler = self.compiler();
        let mut healed = false;
        for (webhook, number) in current.without_key().zip(1_usize..) {
            let compiled = compiler.compile(webhook);
            if !compiled.lacks_key {
                tracing::info!(webhook = %webhook.id, "the key of a webhook's secret was found");
                next.insert(webhook, compiled);
                healed = true;
            }
            if number.is_multiple_of(YIELD_EVERY) {
                tokio::task::yield_now().await;
            }
        }
        reads.keys_tried = Some(Instant::now());
        if healed {
            self.publish(next);
        }
    }
}

/// Takes a webhook in as it is now, or out when it matches nothing any more. One that is the same as in
/// the former snapshot is not compiled again.
fn take_in(
    next: &mut Snapshot,
    former: &Snapshot,
    row: RegistryWebhook,
    compiler: &mut Compiler<'_>,
) {
    let webhook = row.webhook;
    if !row.integration_runs || !snapshot::receives(&webhook) {
        next.remove(webhook.id);
        return;
    }
    if next.reuse(former, &webhook) {
        return;
    }
    let compiled = compiler.compile(&webhook);
    if let Some(problem) = &compiled.problem
        && !former.has_problem(&webhook)
    {
        tracing::error!(
            webhook = %webhook.id,
            tenant = %webhook.meta.tenant,
            version = webhook.meta.version,
            problem,
            "a webhook cannot be used as it should be"
        );
    }
    next.insert(&webhook, compiled);
}

/// Takes a webhook in whose row cannot be read: what it receives is parked until it can be. Where not even
/// its patterns can be read, its tenant's events are held.
fn park(next: &mut Snapshot, row: UnreadableWebhook) {
    let effect = match row.events {
        Some(_) => "its deliveries are parked",
        None => "all events of its tenant are held",
    };
    tracing::error!(
        webhook = %row.id,
        tenant = %row.tenant,
        problem = row.problem,
        effect,
        "a webhook cannot be read by this version"
    );
    next.insert_unreadable(row);
}

async fn timed<T>(operation: &'static str, read: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let result = read.await;
    histogram!(STORE_SECONDS, "operation" => operation).record(start.elapsed().as_secs_f64());
    result
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}
