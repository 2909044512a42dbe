//! All webhooks that match anything, at one version of the registry.

use std::sync::Arc;

use crate::{
    domain::{
        entities::{Webhook, WebhookStatus},
        events::EventMeta,
        interfaces::UnreadableWebhook,
        policies::{Matcher, RetryPolicy},
        values::{EventPattern, TenantId, WebhookId},
    },
    shared::cow_map::CowMap,
};

use super::{Bound, CompiledWebhook, compile::Compiled};

/// All webhooks that match anything (`pending`, `active`, `error`, of an integration that runs), at one
/// version of the registry. Immutable once it is published; a clone shares everything.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The change counter that it stands for.
    pub version: i64,
    matcher: Matcher,
    webhooks: CowMap<WebhookId, Entry>,
    /// Those with a secret whose key was missing, as they are stored.
    without_key: CowMap<WebhookId, Arc<Webhook>>,
    /// Those whose patterns cannot be read, and whose they are.
    holding: CowMap<WebhookId, TenantId>,
}

/// The version of a webhook whose row cannot be read: no row has it.
const NO_VERSION: i64 = -1;

#[derive(Debug, Clone)]
struct Entry {
    compiled: Arc<CompiledWebhook>,
    events: Arc<[EventPattern]>,
    /// The version of the webhook that was compiled.
    version: i64,
    has_problem: bool,
}

/// Whether a webhook matches anything, as far as it is up to itself.
pub(super) fn receives(webhook: &Webhook) -> bool {
    webhook.status != WebhookStatus::Inactive
}

impl Snapshot {
    /// The webhooks that an event goes to, each once, in the order of their ids. One that was made of an
    /// answer never goes to the webhook that got the answer.
    pub fn matches(&self, event: &EventMeta) -> Vec<Arc<CompiledWebhook>> {
        let ids = self.matcher.matches(&event.tenant, &event.event_type);
        ids.into_iter()
            .filter(|id| !event.is_made_by(*id))
            .filter_map(|id| self.webhook(id).map(Arc::clone))
            .collect()
    }

    /// A webhook that matches anything at all.
    pub fn webhook(&self, id: WebhookId) -> Option<&Arc<CompiledWebhook>> {
        self.webhooks.get(&id).map(|entry| &entry.compiled)
    }

    /// Whether the tenant's events are held: what a webhook of it receives cannot be read, so whatever
    /// is let pass might be lost to it.
    pub fn holds(&self, tenant: &TenantId) -> bool {
        self.holding.values().any(|held| held == tenant)
    }

    /// How many webhooks there are.
    pub fn len(&self) -> usize {
        self.webhooks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The webhooks that wait for a key of the key ring.
    pub(super) fn without_key(&self) -> impl Iterator<Item = &Arc<Webhook>> {
        self.without_key.values()
    }

    /// Whether this very version of the webhook is known to have a problem.
    pub(super) fn has_problem(&self, webhook: &Webhook) -> bool {
        self.webhooks
            .get(&webhook.id)
            .is_some_and(|entry| entry.has_problem && entry.version == webhook.meta.version)
    }

    /// Takes a webhook in, in place of its former version.
    pub(super) fn insert(&mut self, webhook: &Webhook, compiled: Compiled) {
        if compiled.lacks_key {
            self.without_key
                .insert(webhook.id, Arc::new(webhook.clone()));
        } else {
            self.without_key.remove(&webhook.id);
        }
        self.set(Entry {
            compiled: Arc::new(compiled.webhook),
            events: webhook.events.as_slice().into(),
            version: webhook.meta.version,
            has_problem: compiled.problem.is_some(),
        });
    }

    /// Takes a webhook in whose row cannot be read: what matches is parked, or held where that is unknown.
    pub(super) fn insert_unreadable(&mut self, row: UnreadableWebhook) {
        self.without_key.remove(&row.id);
        let compiled = CompiledWebhook {
            id: row.id,
            tenant: row.tenant.clone(),
            integration_id: row.integration_id,
            is_pending: false,
            is_disabled: false,
            retry: RetryPolicy::default(),
            filter: None,
            ordering: None,
            batch: None,
            is_rate_limited: false,
            bound: Bound::default(),
            endpoint: Err(row.problem),
        };
        let is_known = row.events.is_some();
        self.set(Entry {
            compiled: Arc::new(compiled),
            events: row.events.unwrap_or_default().into(),
            version: NO_VERSION,
            has_problem: true,
        });
        if !is_known {
            self.holding.insert(row.id, row.tenant);
        }
    }

    /// Takes a webhook over from a former snapshot that knows this very version of it without a
    /// problem; `false` when it has to be compiled.
    pub(super) fn reuse(&mut self, former: &Self, webhook: &Webhook) -> bool {
        let known = former.webhooks.get(&webhook.id);
        let same =
            known.filter(|entry| entry.version == webhook.meta.version && !entry.has_problem);
        let Some(entry) = same else {
            return false;
        };
        self.set(entry.clone());
        true
    }

    /// Takes a webhook out.
    pub(super) fn remove(&mut self, id: WebhookId) {
        self.without_key.remove(&id);
        self.holding.remove(&id);
        if let Some(entry) = self.webhooks.remove(&id) {
            for pattern in entry.events.iter() {
                self.matcher.remove(&entry.compiled.tenant, pattern, id);
            }
        }
    }

    /// The matcher is touched only where the patterns differ.
    fn set(&mut self, entry: Entry) {
        let (id, tenant) = (entry.compiled.id, entry.compiled.tenant.clone());
        let events = Arc::clone(&entry.events);
        self.holding.remove(&id);
        let former = self.webhooks.insert(id, entry).map(|former| former.events);
        if former.as_ref() == Some(&events) {
            return;
        }
        for pattern in former.iter().flat_map(|events| events.iter()) {
            self.matcher.remove(&tenant, pattern, id);
        }
        for pattern in events.iter() {
            self.matcher.add(&tenant, pattern, id);
        }
    }
}
