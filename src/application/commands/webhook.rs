//! Commands about webhooks; their secrets are in [`super::webhook_secrets`].

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    application::{
        blocked_lanes::{UNBLOCKED, blocks},
        webhook_settings::{SavingRules, authentication, rate_limit_of, signing, webhook_settings},
    },
    domain::{
        entities::{BatchRule, EntityMeta, NewWebhook, Webhook},
        events::{Change, WebhookChange},
        interfaces::Inserted,
        policies::EndpointState,
        values::{EventPattern, Faults, IntegrationId, TenantId, WebhookId},
    },
};

use super::{
    CommandSettings, Ports,
    body::Body,
    fields::Fields,
    integration::{id_and_version, only_id},
    labels::{expected_version, labels},
    reply::Refusal,
    views,
    webhook_secrets::new_secret,
    work::{CommandError, Outcome, Work, check_version, checked, name_taken, not_found},
};

/// `get {id}`
pub(super) async fn get(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let id = only_id(body)?;
    let found = ports.store.get_webhook(tenant, WebhookId(id)).await?;
    let found = found.ok_or_else(|| not_found("webhook", "id", id))?;
    let states = ports.store.endpoint_states_of(&[found.id]).await?;
    let mut view = views::webhook(&found);
    let state = states.first().map(|(_, state)| *state).unwrap_or_default();
    view["endpoint"] = views::endpoint(&state, ports.clock.store_now());
    Ok(view)
}

/// `create {name, integrationId, events, config, description?, tags?}`; answers the secret, once.
pub(super) async fn create(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["name", "integrationId", "events", "config"]);
    let labels = labels(&mut fields);
    let integration_id = fields.uuid("integrationId").map(IntegrationId);
    let events = events(&mut fields);
    let config = config(&mut fields, &work.ports.settings, false);
    let given = (|| Some((labels.for_new()?, integration_id?, events?, config?)))();
    let (labels, integration_id, events, config) = checked(fields, given)?;

    let tenant = work.command.context.tenant.clone();
    // Locked, so that it cannot be deleted meanwhile.
    let integration = work.unit.integration(&tenant, integration_id).await?;
    integration.ok_or_else(|| not_found("integration", "integrationId", integration_id))?;
    let id = WebhookId(work.ports.clock.new_id());
    let (secret, shown) = new_secret(work.ports, id, signing(&config), work.now)?;
    let (webhook, change) = Webhook::create(NewWebhook {
        id,
        integration_id,
        meta: EntityMeta::new(tenant, labels, work.actor(), work.now),
        events,
        config: work.seal_config(config, None, &id.to_string())?,
        secret,
    });
    free_name(work.unit.insert_webhook(&webhook).await?, &webhook)?;
    if let Some(rule) = batch_rule(&webhook) {
        work.unit.put_batch_rule(id, Some(&rule)).await?;
    }
    if let Some(rule) = rate_limit_of(&webhook.config.shown) {
        work.unit.put_rate_limit(webhook.id, Some(rule)).await?;
    }
    let mut view = done(work, &webhook, change);
    shown.put(&mut view);
    Ok(view)
}

/// `update {id, name?, events?, config?, description?, tags?, expectedVersion?}`; a webhook stays with
/// its integration.
pub(super) async fn update(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let labels = labels(&mut fields);
    let events = events(&mut fields);
    let config = config(&mut fields, &work.ports.settings, true);
    if fields.discard("integrationId") {
        fields.fault(
            "integrationId",
            "cannot be changed: a webhook stays with its integration",
        );
    }
    let id = checked(fields, id)?;

    let mut webhook = locked(work, id, expected).await?;
    let before = webhook.clone();
    labels.put(&mut webhook.meta);
    if let Some(events) = events {
        webhook.events = events;
    }
    if let Some(config) = config {
        check_kept(&config, &before.config.shown)?;
        let entity = id.to_string();
        webhook.config = work.seal_config(config, Some(&before.config), &entity)?;
        // What was kept must go with what is new.
        authentication(&webhook.config, |s| work.ports.cipher.open(s, &entity))?;
    }
    if webhook == before {
        return Ok(views::webhook(&webhook));
    }
    // What is blocked by an attempt that is being recorded just now is found by the sweep.
    if blocks(&before) == Some(true) && blocks(&webhook) == Some(false) {
        work.unit.unblock_lanes(webhook.id, UNBLOCKED).await?;
        work.effects.parked = true;
    }
    if webhook.config != before.config {
        // It may be another endpoint.
        let well = EndpointState::default();
        work.unit.put_endpoint_state(webhook.id, &well).await?;
        let rule = batch_rule(&webhook);
        work.unit.put_batch_rule(webhook.id, rule.as_ref()).await?;
    }
    let rule = rate_limit_of(&webhook.config.shown);
    if rule != rate_limit_of(&before.config.shown) {
        work.unit.put_rate_limit(webhook.id, rule).await?;
        work.effects.parked = true;
    }
    let change = webhook.changed(Change::Updated, work.actor(), work.now);
    write(work, &webhook, change).await
}

/// Credentials are kept where none are given, but not for another type of authentication.
fn check_kept(config: &Map<String, Value>, before: &Map<String, Value>) -> Result<(), Faults> {
    let mut faults = Faults::default();
    if let (Some(given), Some(before)) =
        (config.get("authentication"), before.get("authentication"))
        && given["type"] != before["type"]
        && given.get("credentials").is_none()
        && before.get("credentials").is_some()
    {
        let former = before["type"].as_str().unwrap_or_default();
        faults.add(
            "config.authentication.credentials",
            format!(
                "must be given with another type: those that are kept are of the type {former}"
            ),
        );
    }
    faults.into_result(())
}

/// How many of its events go out in one request, if not one.
pub(super) fn batch_rule(webhook: &Webhook) -> Option<BatchRule> {
    webhook_settings(&webhook.config.shown, None).ok()?.batch
}

/// `activate {id, expectedVersion?}`; what is parked goes out then.
pub(super) async fn activate(work: &mut Work<'_>, body: Body) -> Outcome {
    let (id, expected) = id_and_version(body)?;
    let mut webhook = locked(work, id, expected).await?;
    match webhook.activate(work.actor(), work.now) {
        None => Ok(views::webhook(&webhook)),
        Some(change) => {
            work.effects.parked = true;
            // What was before counts no more.
            let well = EndpointState::default();
            work.unit.put_endpoint_state(webhook.id, &well).await?;
            write(work, &webhook, change).await
        }
    }
}

/// `deactivate {id, expectedVersion?}`
pub(super) async fn deactivate(work: &mut Work<'_>, body: Body) -> Outcome {
    let (id, expected) = id_and_version(body)?;
    let mut webhook = locked(work, id, expected).await?;
    match webhook.deactivate(work.actor(), work.now) {
        None => Ok(views::webhook(&webhook)),
        Some(change) => write(work, &webhook, change).await,
    }
}

/// `delete {id, expectedVersion?}`; its waiting deliveries are cancelled.
pub(super) async fn delete(work: &mut Work<'_>, body: Body) -> Outcome {
    let (id, expected) = id_and_version(body)?;
    let mut webhook = locked(work, id, expected).await?;
    let change = webhook.changed(Change::Deleted, work.actor(), work.now);
    work.unit.delete_webhook(webhook.id, work.now).await?;
    done(work, &webhook, change);
    Ok(json!({ "id": id, "deleted": true }))
}

/// Deletes all webhooks of an integration, together with it.
pub(super) async fn remove_all_of(
    work: &mut Work<'_>,
    integration: IntegrationId,
) -> Result<(), CommandError> {
    for mut webhook in work.unit.delete_webhooks_of(integration, work.now).await? {
        let change = webhook.changed(Change::Deleted, work.actor(), work.now);
        done(work, &webhook, change);
    }
    Ok(())
}

/// Reads and locks a webhook.
pub(super) async fn locked(
    work: &mut Work<'_>,
    id: Uuid,
    expected: Option<i64>,
) -> Result<Webhook, CommandError> {
    let tenant = &work.command.context.tenant;
    let found = work.unit.webhook(tenant, WebhookId(id)).await?;
    let found = found.ok_or_else(|| not_found("webhook", "id", id))?;
    check_version(&found.meta, expected)?;
    Ok(found)
}

/// Writes a changed webhook and notes its change.
pub(super) async fn write(
    work: &mut Work<'_>,
    webhook: &Webhook,
    change: WebhookChange,
) -> Outcome {
    free_name(work.unit.update_webhook(webhook).await?, webhook)?;
    Ok(done(work, webhook, change))
}

fn done(work: &mut Work<'_>, webhook: &Webhook, change: WebhookChange) -> Value {
    let data = views::webhook_event(webhook, change.change);
    work.webhook_changed(change, data);
    views::webhook(webhook)
}

fn events(fields: &mut Fields) -> Option<Vec<EventPattern>> {
    let problem = |text: &str| EventPattern::try_new(text).err().map(|e| e.to_string());
    let texts = fields.texts("events", 1..=Webhook::MAX_EVENTS, problem)?;
    texts
        .iter()
        .map(|text| EventPattern::try_new(text).ok())
        .collect()
}

fn config(
    fields: &mut Fields,
    settings: &CommandSettings,
    replaces: bool,
) -> Option<Map<String, Value>> {
    let config = fields.map("config")?;
    let rules = SavingRules {
        egress: &settings.egress,
        expressions: settings.expressions.as_ref(),
        replaces,
    };
    if let Err(faults) = webhook_settings(&config, Some(&rules)) {
        fields.absorb(faults);
    }
    Some(config)
}

fn free_name(inserted: Inserted, webhook: &Webhook) -> Result<(), Refusal> {
    match inserted {
        Inserted::Yes => Ok(()),
        Inserted::NameTaken => Err(name_taken(
            "webhook",
            "of the integration",
            &webhook.meta.name,
        )),
    }
}
