//! Lists: pages, newest first, and the figures of `status`.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::DateTime;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::{
    entities::{DeliveryStatus, IntegrationType, Webhook},
    interfaces::{DeliveryFilter, EntityFilter, Page, PageRequest},
    policies::EndpointState,
    values::{IntegrationId, TenantId, Timestamp, WebhookId},
};

use super::{
    Ports,
    body::Body,
    fields::{Fields, Text},
    labels::{NAME, TAG},
    views,
    work::{Outcome, checked},
};

/// How many items a page has when nothing is said.
const DEFAULT_LIMIT: i64 = 50;
/// How many items a page may have.
const MAX_LIMIT: i64 = 100;
/// The states of integrations and webhooks.
const STATUSES: [&str; 4] = ["pending", "active", "inactive", "error"];
/// The id and the type of an event, in filters.
const EVENT: Text = Text::Line(256);

/// `list {type?, status?, name?, tag?, since?, until?, limit?, cursor?}`
pub(super) async fn integrations(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    let kind = fields.choice("type", &IntegrationType::ALL, |kind| kind.as_str());
    let filter = EntityFilter {
        kind: kind.map(|kind| kind.as_str().to_owned()),
        ..entity_filter(&mut fields)
    };
    let page = page(&mut fields);
    let page = checked(fields, page)?;
    let found = ports
        .store
        .list_integrations(tenant, &filter, &page)
        .await?;
    Ok(answer(&found, views::integration, |i| {
        (i.meta.created_at, i.id.0)
    }))
}

/// `list {integrationId?, status?, name?, tag?, since?, until?, limit?, cursor?}`
pub(super) async fn webhooks(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    let filter = EntityFilter {
        integration_id: fields.uuid("integrationId").map(IntegrationId),
        ..entity_filter(&mut fields)
    };
    let page = page(&mut fields);
    let page = checked(fields, page)?;
    let found = ports.store.list_webhooks(tenant, &filter, &page).await?;
    let ids: Vec<WebhookId> = found.items.iter().map(|w| w.id).collect();
    let states = ports.store.endpoint_states_of(&ids).await?;
    let states: HashMap<WebhookId, EndpointState> = states.into_iter().collect();
    let now = ports.clock.store_now();
    let view = |webhook: &Webhook| {
        let mut view = views::webhook(webhook);
        let state = states.get(&webhook.id).copied().unwrap_or_default();
        view["endpoint"] = views::endpoint(&state, now);
        view
    };
    Ok(answer(&found, view, |w| (w.meta.created_at, w.id.0)))
}

/// `list {webhookId?, eventId?, eventType?, status?, since?, until?, limit?, cursor?}`; without attempts.
pub(super) async fn deliveries(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    let status = fields.choice("status", &DeliveryStatus::ALL, |status| status.as_str());
    let filter = DeliveryFilter {
        status: status.map(|status| status.as_str().to_owned()),
        webhook_id: fields.uuid("webhookId").map(WebhookId),
        event_id: fields.text("eventId", EVENT),
        event_type: fields.text("eventType", EVENT),
        since: fields.time("since"),
        until: fields.time("until"),
    };
    let page = page(&mut fields);
    let page = checked(fields, page)?;
    let found = ports.store.list_deliveries(tenant, &filter, &page).await?;
    Ok(answer(
        &found,
        |d| views::delivery(d, None),
        |d| (d.created_at, d.id.0),
    ))
}

/// `status get {}`: figures of the store, over all tenants.
pub(super) async fn status(ports: &Ports, body: Body) -> Outcome {
    checked(Fields::new(body.map, ""), Some(()))?;
    let stats = ports.store.stats(ports.clock.now()).await?;
    let version = ports.store.registry_version().await?;
    Ok(json!({
        "registryVersion": version,
        "parked": stats.parked,
        "oldestDue": stats.oldest_due.map(views::time),
        "outbox": stats.outbox,
        "oldestOutbox": stats.oldest_outbox.map(views::time),
        "responses": stats.responses,
        "oldestResponse": stats.oldest_response.map(views::time),
    }))
}

fn entity_filter(fields: &mut Fields) -> EntityFilter {
    EntityFilter {
        status: fields
            .choice("status", &STATUSES, |status| *status)
            .map(str::to_owned),
        name: fields.text("name", NAME),
        tag: fields.text("tag", TAG),
        since: fields.time("since"),
        until: fields.time("until"),
        ..EntityFilter::default()
    }
}

/// `None` when the cursor or the limit is faulty.
pub(super) fn page(fields: &mut Fields) -> Option<PageRequest> {
    let (limit, after) = page_by(fields, read_cursor)?;
    Some(PageRequest { limit, after })
}

/// Reads `limit` and `cursor`, the latter as this list writes it. `None` when one of them is faulty.
pub(super) fn page_by<C>(
    fields: &mut Fields,
    read_cursor: impl Fn(&str) -> Option<C>,
) -> Option<(u32, Option<C>)> {
    let given = fields.has("limit");
    let limit = fields.integer("limit", 1..=MAX_LIMIT);
    let limit = if given { limit } else { Some(DEFAULT_LIMIT) };
    let after = match fields.value("cursor") {
        // As the last page answers it.
        None | Some(Value::Null) => None,
        Some(cursor) => {
            let read = cursor.as_str().and_then(&read_cursor);
            if read.is_none() {
                fields.fault("cursor", "must be the nextCursor of a former page");
            }
            read
        }
    };
    let limit = u32::try_from(limit?).ok()?;
    Some((limit, after))
}

pub(super) fn answer<T>(
    page: &Page<T>,
    view: impl Fn(&T) -> Value,
    place: impl Fn(&T) -> (Timestamp, Uuid),
) -> Value {
    let items: Vec<Value> = page.items.iter().map(view).collect();
    let last = page.items.last().filter(|_| page.more);
    let next = last.map(|item| write_cursor(place(item)));
    json!({ "items": items, "nextCursor": next })
}

/// Time (milliseconds, 8 bytes) and id (16 bytes) of the last item, in base64url.
pub(super) fn write_cursor((time, id): (Timestamp, Uuid)) -> String {
    let mut bytes = time.timestamp_millis().to_be_bytes().to_vec();
    bytes.extend_from_slice(id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str) -> Option<(Timestamp, Uuid)> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (time, id) = bytes.split_first_chunk::<8>()?;
    let time = DateTime::from_timestamp_millis(i64::from_be_bytes(*time))?;
    // Far-off times are no places in a list, and not every database can hold them.
    let year = chrono::Datelike::year(&time);
    (1970..10_000).contains(&year).then_some(())?;
    Some((time, Uuid::from_slice(id).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let place = (
            DateTime::from_timestamp_millis(1_793_000_000_123).unwrap(),
            Uuid::from_u128(7),
        );
        assert_eq!(read_cursor(&write_cursor(place)), Some(place));
    }

    #[test]
    fn what_is_no_cursor_is_none() {
        let far = (DateTime::<chrono::Utc>::MAX_UTC, Uuid::nil());
        let text = write_cursor(far);
        for bad in ["", "x", "!!", "AAAA", &"A".repeat(1000), &text] {
            assert_eq!(read_cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn pages_are_bounded() {
        let read = |body: Value| {
            let Value::Object(map) = body else {
                panic!("not an object")
            };
            let mut fields = Fields::new(map, "");
            let page = page(&mut fields);
            checked(fields, page).ok()
        };
        assert_eq!(read(json!({})).map(|page| page.limit), Some(50));
        assert_eq!(
            read(json!({ "cursor": null, "limit": 100 })).map(|p| p.limit),
            Some(100)
        );
        for bad in [
            json!({ "limit": 0 }),
            json!({ "limit": 101 }),
            json!({ "limit": "5" }),
            json!({ "limit": null }),
            json!({ "cursor": "x" }),
            json!({ "cursor": 1 }),
            json!({ "offset": 1 }),
        ] {
            assert_eq!(read(bad.clone()), None, "{bad}");
        }
    }
}
