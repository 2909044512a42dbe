//! Step 3: events arrive.

use serde_json::Value;

use super::{
    super::{
        erp,
        expectations::Expectation,
        missed::{Missed, check},
        walk::Walk,
    },
    paths, shortened,
};

/// The order arrives as a Standard Webhook, three other events as CloudEvents.
pub(in super::super) async fn delivered(walk: &mut Walk<'_>) -> Result<(), Missed> {
    walk.step("Events are delivered, signed as Standard Webhooks says");
    let requests = walk.ground.inbox.wait(paths::ORDERS, 1).await?;
    let Some(request) = requests.first() else {
        return Err(Missed("no request to /orders".to_owned()));
    };
    let out = walk.out();
    out.say("The receiver got:");
    out.show(&format!("{} {}", request.method, request.path));
    for name in [
        "content-type",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ] {
        out.show(&format!("{name}: {}", request.header(name)));
    }
    out.show(&shortened(&request.text(), 400));
    walk.verify(request)?;
    walk.saw(Expectation::Delivered);
    let kept = request.text().contains("18450.00");
    check(kept, "the order's 18450.00 arrived in another form")?;
    walk.saw(Expectation::NumbersKept);
    archived(walk).await
}

async fn archived(walk: &mut Walk<'_>) -> Result<(), Missed> {
    let requests = walk.ground.inbox.wait(paths::ARCHIVE, 3).await?;
    walk.out()
        .say("An endpoint that is slow (0.3 s), and wants CloudEvents:");
    let mut ids = Vec::new();
    for request in &requests {
        walk.verify(request)?;
        let event: Value = serde_json::from_slice(&request.body)
            .map_err(|error| Missed(format!("the request to /archive is no JSON: {error}")))?;
        check(
            event["specversion"] == "1.0" && event["tenantid"] == erp::TENANT,
            format!("no CloudEvent of {}: {event}", erp::TENANT),
        )?;
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        walk.out().show(&format!(
            "{:<24} id {:<38} from {}",
            text("type"),
            text("id"),
            text("source")
        ));
        ids.push(text("id"));
    }
    let published = erp::ARCHIVED
        .iter()
        .all(|id| ids.iter().any(|one| one == id));
    check(
        published,
        format!("other events than were published: {ids:?}"),
    )?;
    walk.saw(Expectation::Envelopes);
    Ok(())
}
