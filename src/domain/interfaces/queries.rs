//! Reads for users: single entities, lists, and figures.

use async_trait::async_trait;

use crate::domain::{
    entities::{Delivery, Integration, Webhook},
    policies::EndpointState,
    values::{IntegrationId, TenantId, Timestamp, WebhookId},
};

use super::StoreError;

/// Which part of a list: newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// 1–100.
    pub limit: u32,
    /// After this item (`createdAt`, id) of the former page.
    pub after: Option<(Timestamp, uuid::Uuid)>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The items, newest first, at most `limit`.
    pub items: Vec<T>,
    /// Whether there are more.
    pub more: bool,
}

/// Equalities that integrations and webhooks are filtered by; `None` is no filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntityFilter {
    /// The type of an integration, as on the wire.
    pub kind: Option<String>,
    /// The status, as on the wire.
    pub status: Option<String>,
    /// The name, exactly.
    pub name: Option<String>,
    /// A webhook's integration.
    pub integration_id: Option<IntegrationId>,
    /// One of its tags.
    pub tag: Option<String>,
    /// Created at or after.
    pub since: Option<Timestamp>,
    /// Created before.
    pub until: Option<Timestamp>,
}

/// Equalities that deliveries are filtered by; `None` is no filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// The status, as on the wire.
    pub status: Option<String>,
    /// The webhook.
    pub webhook_id: Option<WebhookId>,
    /// The event.
    pub event_id: Option<String>,
    /// The event's type.
    pub event_type: Option<String>,
    /// Created at or after.
    pub since: Option<Timestamp>,
    /// Created before.
    pub until: Option<Timestamp>,
}

/// Figures for `/health` and `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Deliveries that wait; counted up to 1,000,000.
    pub parked: i64,
    /// When the longest-due of those was due whose webhook and integration run, whose
    /// breaker is closed, and that nobody works on.
    pub oldest_due: Option<Timestamp>,
    /// Unpublished events of the worker's own; counted up to 1,000,000.
    pub outbox: i64,
    /// When the oldest of them was written.
    pub oldest_outbox: Option<Timestamp>,
    /// Unpublished events that are made of answers; counted up to 1,000,000.
    pub responses: i64,
    /// When the oldest of them was written.
    pub oldest_response: Option<Timestamp>,
}

/// Reads that lock nothing.
#[async_trait]
pub trait Queries: Send + Sync {
    /// One integration.
    async fn get_integration(
        &self,
        tenant: &TenantId,
        id: IntegrationId,
    ) -> Result<Option<Integration>, StoreError>;
    /// Integrations.
    async fn list_integrations(
        &self,
        tenant: &TenantId,
        filter: &EntityFilter,
        page: &PageRequest,
    ) -> Result<Page<Integration>, StoreError>;
    /// One webhook.
    async fn get_webhook(
        &self,
        tenant: &TenantId,
        id: WebhookId,
    ) -> Result<Option<Webhook>, StoreError>;
    /// Webhooks.
    async fn list_webhooks(
        &self,
        tenant: &TenantId,
        filter: &EntityFilter,
        page: &PageRequest,
    ) -> Result<Page<Webhook>, StoreError>;
    /// Deliveries, without attempts.
    async fn list_deliveries(
        &self,
        tenant: &TenantId,
        filter: &DeliveryFilter,
        page: &PageRequest,
    ) -> Result<Page<Delivery>, StoreError>;
    /// The delivery that those behind it in this lane wait for: the foremost that waits, or is exhausted
    /// and blocks them.
    async fn lane_front(
        &self,
        webhook: WebhookId,
        key: &str,
    ) -> Result<Option<Delivery>, StoreError>;
    /// The endpoints with which something is wrong, those with an open breaker first; at most `limit`.
    async fn endpoint_states(
        &self,
        limit: u32,
    ) -> Result<Vec<(WebhookId, EndpointState)>, StoreError>;
    /// Those of `webhooks` with which something is wrong.
    async fn endpoint_states_of(
        &self,
        webhooks: &[WebhookId],
    ) -> Result<Vec<(WebhookId, EndpointState)>, StoreError>;
    /// Figures, as of `now`.
    async fn stats(&self, now: Timestamp) -> Result<StoreStats, StoreError>;
    /// The ids of all encryption keys that sealed something which is still stored.
    async fn key_ids(&self) -> Result<Vec<String>, StoreError>;
    /// Whether the database answers and its migrations are those of this program.
    async fn ping(&self) -> Result<(), StoreError>;
    /// What the database's own clock shows; `None` where it has none but that of this process.
    async fn time(&self) -> Result<Option<Timestamp>, StoreError>;
}
