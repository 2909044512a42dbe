//! Step 5: an endpoint is gone, and comes back.

use serde_json::json;

use crate::app::embedded::receiver::{Answer, Script};

use super::{
    super::{
        erp::{self, BOOKINGS},
        expectations::Expectation,
        missed::{Missed, check},
        walk::Walk,
    },
    paths,
};

/// 410 disables the webhook; its events wait, and go out when it is activated.
pub(in super::super) async fn disabled(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("An endpoint that answers 410 is disabled, and its events wait");
    let id = walk.id_of(paths::LEDGER).to_owned();
    walk.events
        .wait_one("webhook.disabled", |event| event["subject"] == id.as_str())
        .await?;
    let webhook = walk.user.ask("webhook.get", &json!({ "id": id })).await?;
    let (status, error) = (&webhook["status"], &webhook["error"]);
    walk.out().show(&format!(
        "integration.api.webhook.get  status {status}, error {error}"
    ));
    check(
        status == "error",
        format!("after a 410 the webhook is {status}"),
    )?;
    walk.saw(Expectation::Disabled);
    parked(walk, &id).await?;
    drained(walk, &id).await
}

async fn parked(walk: &mut Walk<'_>, id: &str) -> Result<(), Missed> {
    walk.out().say("The ERP publishes two more bookings:");
    for message in erp::later_bookings()? {
        walk.user.publish_event(&message).await?;
    }
    let filter = json!({ "webhookId": id, "status": "pending" });
    let waiting = walk.user.wait_deliveries(&filter, BOOKINGS.len()).await?;
    for delivery in waiting.iter().rev() {
        let text = |field: &str| delivery[field].as_str().unwrap_or_default();
        walk.out().show(&format!(
            "event {}  {}: {}",
            text("eventId"),
            text("status"),
            text("error")
        ));
    }
    let requests = walk.ground.inbox.of(paths::LEDGER).len();
    check(
        requests == 1,
        format!("{requests} requests reached an endpoint that is gone"),
    )?;
    walk.saw(Expectation::Parked);
    Ok(())
}

async fn drained(walk: &mut Walk<'_>, id: &str) -> Result<(), Missed> {
    walk.out()
        .say("The endpoint is back, and a user activates the webhook:");
    let taken = Script::always(Answer::at_once(200));
    walk.ground.receiver.script(paths::LEDGER, taken);
    walk.out()
        .show(r#"integration.api.webhook.activate  {"id":"…"}"#);
    walk.user
        .ask("webhook.activate", &json!({ "id": id }))
        .await?;
    let delivered = walk
        .events
        .wait("webhook.triggered", BOOKINGS.len(), |event| {
            event["data"]["webhookId"] == id
        });
    let delivered = delivered.await?;
    for booking in BOOKINGS {
        let arrived = delivered
            .iter()
            .any(|event| event["data"]["eventId"] == booking);
        check(arrived, format!("the booking {booking} was not delivered"))?;
    }
    let requests = walk
        .ground
        .inbox
        .wait(paths::LEDGER, BOOKINGS.len() + 1)
        .await?;
    for request in &requests {
        walk.verify(request)?;
    }
    let sent = requests.iter().map(|request| request.header("webhook-id"));
    let refused = requests.first().map(|request| request.header("webhook-id"));
    let twice = sent.filter(|id| Some(*id) == refused).count() == 2;
    check(
        twice,
        "the delivery that met the 410 came back under another id",
    )?;
    walk.saw(Expectation::Drained);
    Ok(())
}
