//! Steps 1 and 2: what is there, and what happens.

use std::time::Duration;

use serde_json::{Value, json};

use crate::app::embedded::receiver::{Answer, Script};

use super::{
    super::{erp, expectations::Expectation, missed::Missed, walk::Walk},
    paths, shortened,
};

/// How long the slow endpoint takes.
const SLOW: Duration = Duration::from_millis(300);

/// A user registers an integration and four webhooks of it.
pub(in super::super) async fn register(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("A user registers an integration and its webhooks");
    prepare_endpoints(walk);
    walk.out()
        .say("As requests to the NATS service `integration`:");
    let body = json!({
        "name": "Partner platform", "type": "webhook", "tags": ["demo"],
        "config": { "credentials": { "apiKey": "your-api-key" } },
    });
    let integration = request(walk, "integration.create", &body).await?;
    let id = integration["id"].as_str().unwrap_or_default().to_owned();
    walk.names.add(&id, "Partner platform");
    let retries = json!({ "maxRetries": 5, "backoffMs": 100 });
    let formatted = json!({ "format": "cloudevents" });
    for (name, path, events, config) in [
        ("Orders", paths::ORDERS, json!(["sales.order.*"]), json!({})),
        (
            "Goods",
            paths::GOODS,
            json!(["inventory.>"]),
            json!({ "retryPolicy": retries }),
        ),
        (
            "Archive",
            paths::ARCHIVE,
            json!(["document.*", "quality.>", "contract.>"]),
            formatted,
        ),
    ] {
        let body = webhook(walk, &id, (name, path, events), config);
        let created = request(walk, "webhook.create", &body).await?;
        walk.keep(path, &created)?;
    }
    walk.saw(Expectation::Requests);
    walk.out()
        .say("As a command on the stream INTEGRATION_COMMANDS, with Integration-Reply-To:");
    let body = webhook(
        walk,
        &id,
        ("Ledger", paths::LEDGER, json!(["fibu.*.*"])),
        json!({}),
    );
    walk.out().show(&format!(
        "integration.commands.webhook.create  {}",
        shown(&body)
    ));
    let created = walk.user.command("webhook.create", &body).await?;
    walk.keep(paths::LEDGER, &created)?;
    walk.events
        .wait_one("command.completed", |event| {
            event["data"]["entityId"] == created["id"]
        })
        .await?;
    walk.saw(Expectation::DurableCommand);
    walk.out()
        .say("Each webhook was answered with its signing secret, this once: whsec_…");
    Ok(())
}

fn prepare_endpoints(walk: &Walk<'_>) {
    let receiver = &walk.ground.receiver;
    let (taken, busy) = (Answer::at_once(200), Answer::at_once(503));
    receiver.script(paths::ORDERS, Script::always(taken));
    receiver.script(paths::GOODS, Script::first_then(vec![busy, busy], taken));
    receiver.script(paths::LEDGER, Script::always(Answer::at_once(410)));
    receiver.script(paths::ARCHIVE, Script::always(Answer::after(200, SLOW)));
}

fn webhook(
    walk: &Walk<'_>,
    integration: &str,
    (name, path, events): (&str, &str, Value),
    mut config: Value,
) -> Value {
    config["url"] = walk.ground.receiver.url(path).into();
    json!({ "name": name, "integrationId": integration, "events": events, "config": config })
}

async fn request(walk: &Walk<'_>, action: &str, body: &Value) -> Result<Value, Missed> {
    walk.out()
        .show(&format!("integration.api.{action}  {}", shown(body)));
    walk.user.ask(action, body).await
}

/// The body without what the reader has seen already.
fn shown(body: &Value) -> String {
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.remove("integrationId");
    }
    shortened(&body.to_string(), 160)
}

/// The ERP publishes.
pub(in super::super) async fn publish(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("The ERP publishes eight messages, each as its service writes them");
    for message in erp::messages()? {
        walk.out()
            .show(&format!("{:<36} {}", message.subject, message.form));
        walk.user.publish_event(&message).await?;
    }
    Ok(())
}
