//! Commands about integrations.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    domain::{
        entities::{EntityMeta, Integration, IntegrationType},
        events::{Change, IntegrationChange},
        interfaces::{Inserted, RegistryChange},
        values::{Fault, Faults, IntegrationId, TenantId, WebhookId},
    },
    shared::visible::is_visible,
};

use super::{
    Ports,
    body::Body,
    config_fields::{MAX_CONFIG, check_credentials},
    fields::{Fields, Text},
    integration_config,
    labels::{expected_version, labels},
    reply::{ErrorCode, Refusal},
    views, webhook,
    work::{CommandError, Outcome, Work, check_version, checked, name_taken, not_found},
};

/// Longest error that `mark_error` takes, in characters.
const MAX_ERROR: usize = 10_000;
/// How many webhooks a cascade deletes at most, in one transaction.
const MAX_CASCADE: u32 = 10_000;
/// How many children a refused deletion names at most.
const NAMED_CHILDREN: usize = 20;

/// `get {id}`
pub(super) async fn get(ports: &Ports, tenant: &TenantId, body: Body) -> Outcome {
    let id = only_id(body)?;
    let found = ports
        .store
        .get_integration(tenant, IntegrationId(id))
        .await?;
    let found = found.ok_or_else(|| not_found("integration", "id", id))?;
    Ok(views::integration(&found))
}

/// `create {name, type, config?, description?, tags?}`
pub(super) async fn create(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["name", "type"]);
    let labels = labels(&mut fields);
    let kind = kind(&mut fields);
    let config = config(&mut fields, kind);
    let given = (|| Some((labels.for_new()?, kind?)))();
    let (labels, kind) = checked(fields, given)?;

    let id = IntegrationId(work.ports.clock.new_id());
    let config = work.seal_config(config.unwrap_or_default(), None, &id.to_string())?;
    let tenant = work.command.context.tenant.clone();
    let meta = EntityMeta::new(tenant, labels, work.actor(), work.now);
    let (new, change) = Integration::create(id, meta, kind, config);
    free_name(work.unit.insert_integration(&new).await?, &new)?;
    Ok(done(work, &new, change))
}

/// `update {id, name?, type?, config?, description?, tags?, expectedVersion?}`
pub(super) async fn update(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let labels = labels(&mut fields);
    let kind = kind(&mut fields);
    let config = config(&mut fields, kind);
    let id = checked(fields, id)?;

    let mut integration = locked(work, id, expected).await?;
    let before = integration.clone();
    labels.put(&mut integration.meta);
    integration.kind = kind.unwrap_or(integration.kind);
    if let Some(config) = config {
        let config = work.seal_config(config, Some(&before.config), &id.to_string())?;
        integration.config = config;
    }
    if integration == before {
        return Ok(views::integration(&integration));
    }
    integration_config::check_fit(&integration.config.shown, integration.kind).into_result(())?;
    let change = integration.changed(Change::Updated, work.actor(), work.now);
    free_name(
        work.unit.update_integration(&integration).await?,
        &integration,
    )?;
    Ok(done(work, &integration, change))
}

/// `activate {id, expectedVersion?}`
pub(super) async fn activate(work: &mut Work<'_>, body: Body) -> Outcome {
    let (id, expected) = id_and_version(body)?;
    let mut integration = locked(work, id, expected).await?;
    let change = integration.activate(work.actor(), work.now)?;
    work.effects.parked = change.is_some();
    moved(work, &integration, change).await
}

/// `deactivate {id, expectedVersion?}`
pub(super) async fn deactivate(work: &mut Work<'_>, body: Body) -> Outcome {
    let (id, expected) = id_and_version(body)?;
    let mut integration = locked(work, id, expected).await?;
    let change = integration.deactivate(work.actor(), work.now);
    moved(work, &integration, change).await
}

/// `mark_error {id, error, expectedVersion?}`
pub(super) async fn mark_error(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id", "error"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let error = fields.text("error", Text::Block(MAX_ERROR));
    if error.as_deref().is_some_and(|text| !is_visible(text)) {
        fields.fault("error", "must hold something visible");
    }
    let (id, error) = checked(fields, id.zip(error))?;

    let mut integration = locked(work, id, expected).await?;
    let change = integration.mark_error(error, work.actor(), work.now);
    moved(work, &integration, change).await
}

/// `rotate_credentials {id, credentials, expectedVersion?}`: replaces `config.credentials` alone.
pub(super) async fn rotate_credentials(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id", "credentials"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let credentials = fields.map("credentials");
    if let Some(credentials) = &credentials {
        fields.absorb(credential_faults(credentials));
    }
    let (id, credentials) = checked(fields, id.zip(credentials))?;

    let mut integration = locked(work, id, expected).await?;
    let mut config = integration.config.shown.clone();
    config.insert("credentials".to_owned(), Value::Object(credentials));
    integration.config = work.seal_config(config, Some(&integration.config), &id.to_string())?;
    let change = integration.changed(Change::CredentialsRotated, work.actor(), work.now);
    free_name(
        work.unit.update_integration(&integration).await?,
        &integration,
    )?;
    Ok(done(work, &integration, change))
}

/// `delete {id, cascade?, expectedVersion?}`: refused while webhooks hang on it, unless they are to go too.
pub(super) async fn delete(work: &mut Work<'_>, body: Body) -> Outcome {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let cascade = fields.boolean("cascade");
    let id = checked(fields, id)?;

    let mut integration = locked(work, id, expected).await?;
    let children = work
        .unit
        .webhooks_of(integration.id, MAX_CASCADE + 1)
        .await?;
    if cascade != Some(true) && !children.is_empty() {
        let names = children.iter().map(|child| (child.id, child.name.as_str()));
        return Err(has_children(names, children.len()).into());
    }
    if children.len() > MAX_CASCADE as usize {
        let message = format!(
            "the integration has more than {MAX_CASCADE} webhooks, more than one command deletes: delete some of them first"
        );
        return Err(Refusal::at(ErrorCode::Conflict, "cascade", message).into());
    }
    if !children.is_empty() {
        webhook::remove_all_of(work, integration.id).await?;
    }
    let change = integration.changed(Change::Deleted, work.actor(), work.now);
    work.unit.delete_integration(integration.id).await?;
    let data = views::integration_event(&integration, change.change);
    work.integration_changed(change, data);
    work.effects
        .registry
        .push(RegistryChange::Integration(integration.id));
    Ok(json!({ "id": id, "deleted": true }))
}

/// Reads the body of a query or command that takes an id alone.
pub(super) fn only_id(body: Body) -> Result<Uuid, CommandError> {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    checked(fields, id)
}

/// Reads the body of a command that takes an id and `expectedVersion`.
pub(super) fn id_and_version(body: Body) -> Result<(Uuid, Option<i64>), CommandError> {
    let mut fields = Fields::new(body.map, "");
    fields.need(&["id"]);
    let id = fields.uuid("id");
    let expected = expected_version(&mut fields);
    let id = checked(fields, id)?;
    Ok((id, expected))
}

fn kind(fields: &mut Fields) -> Option<IntegrationType> {
    fields.choice("type", &IntegrationType::ALL, |kind| kind.as_str())
}

fn config(fields: &mut Fields, kind: Option<IntegrationType>) -> Option<Map<String, Value>> {
    let config = fields.map("config")?;
    fields.absorb(integration_config::check(&config, kind));
    Some(config)
}

fn credential_faults(credentials: &Map<String, Value>) -> Faults {
    let mut faults = Faults::default();
    let size = serde_json::to_vec(credentials).map_or(usize::MAX, |json| json.len());
    if size > MAX_CONFIG {
        let message = format!("must have at most {MAX_CONFIG} bytes of JSON");
        faults.add("credentials", message);
    }
    check_credentials(credentials, "credentials", &mut faults);
    faults
}

async fn locked(
    work: &mut Work<'_>,
    id: Uuid,
    expected: Option<i64>,
) -> Result<Integration, CommandError> {
    let tenant = &work.command.context.tenant;
    let found = work.unit.integration(tenant, IntegrationId(id)).await?;
    let found = found.ok_or_else(|| not_found("integration", "id", id))?;
    check_version(&found.meta, expected)?;
    Ok(found)
}

/// Writes a transition, if there was one; its webhooks run now or do not.
async fn moved(
    work: &mut Work<'_>,
    integration: &Integration,
    change: Option<IntegrationChange>,
) -> Outcome {
    let Some(change) = change else {
        return Ok(views::integration(integration));
    };
    free_name(
        work.unit.update_integration(integration).await?,
        integration,
    )?;
    work.effects
        .registry
        .push(RegistryChange::Integration(integration.id));
    Ok(done(work, integration, change))
}

fn done(work: &mut Work<'_>, integration: &Integration, change: IntegrationChange) -> Value {
    let data = views::integration_event(integration, change.change);
    work.integration_changed(change, data);
    views::integration(integration)
}

fn free_name(inserted: Inserted, integration: &Integration) -> Result<(), Refusal> {
    match inserted {
        Inserted::Yes => Ok(()),
        Inserted::NameTaken => Err(name_taken(
            "integration",
            "of the tenant",
            &integration.meta.name,
        )),
    }
}

fn has_children<'a>(children: impl Iterator<Item = (WebhookId, &'a str)>, count: usize) -> Refusal {
    let details = children.take(NAMED_CHILDREN).enumerate();
    let details = details.map(|(index, (id, name))| Fault {
        path: format!("webhooks[{index}]"),
        message: format!("webhook {id} {name:?} hangs on it"),
    });
    let count = match count {
        n if n > MAX_CASCADE as usize => format!("more than {MAX_CASCADE}"),
        n => n.to_string(),
    };
    Refusal {
        code: ErrorCode::Conflict,
        message: format!(
            "webhooks hang on the integration ({count}): delete them first, or say \"cascade\": true"
        ),
        details: details.collect(),
    }
}
