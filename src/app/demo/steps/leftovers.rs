//! Steps 6 and 7: messages that are delivered to nobody.

use serde_json::json;

use super::super::{
    erp,
    expectations::Expectation,
    missed::{Missed, check},
    walk::Walk,
};

/// Nobody wants the weighing.
pub(in super::super) async fn without_match(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("An event that no webhook wants");
    walk.user.wait_settled().await?;
    walk.out()
        .say("The worker has settled every message of the stream ERP_EVENTS.");
    let filter = json!({ "eventId": erp::WEIGHING });
    let found = walk.user.deliveries(&filter).await?;
    walk.out().show(&format!(
        "integration.api.delivery.list  {filter}: {} deliveries",
        found.len()
    ));
    check(found.is_empty(), "the weighing was delivered to somebody")?;
    walk.saw(Expectation::Unmatched);
    Ok(())
}

/// The empty message is kept, and nothing is held up by it.
pub(in super::super) async fn dead_letter(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("A message that cannot be understood");
    walk.events.wait_one("deadletter.added", |_| true).await?;
    let letter = walk.user.dead_letter().await?;
    walk.out()
        .show(&format!("INTEGRATION_DEAD_LETTERS, {}", letter.subject));
    let header = |name: &str| letter.headers.get(name).map_or("", |value| value.as_str());
    for name in [
        "Integration-Reason",
        "Integration-Origin-Subject",
        "Integration-Origin-Sequence",
    ] {
        walk.out().show(&format!("{name}: {}", header(name)));
    }
    let reason = header("Integration-Reason");
    check(
        header("Integration-Origin-Subject") == "sales.order.created" && !reason.is_empty(),
        "the dead letter does not say where it is from, or why",
    )?;
    walk.saw(Expectation::DeadLetter);
    Ok(())
}
