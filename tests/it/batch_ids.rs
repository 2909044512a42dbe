//! The `webhook-id` of a batch always stands for the same events.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{
    PATIENCE,
    receiver::{Answer, Received},
    site::{Site, on_both},
};

on_both!(what_was_left_out_of_a_batch_changes_its_id);

fn ids(request: &Received) -> BTreeSet<String> {
    let body = request.json();
    let events = body.as_array().expect("a list");
    let ids = events.iter().map(|event| event["id"].to_string());
    ids.collect()
}

async fn what_was_left_out_of_a_batch_changes_its_id(site: Site) {
    let Site { erp, receiver, .. } = site;
    let tries = vec![
        Answer::status(500),
        Answer::status(500),
        Answer::status(200),
    ];
    receiver.answer_in_turn("/orders", tries);
    let config = json!({
        "batch": { "maxEvents": 3, "maxWait": "5s" },
        "retryPolicy": { "schedule": ["2s", "2s", "2s"] },
    });
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    let bodies = (0..3).map(|n| {
        json!({ "eventType": "sales.order.created", "eventId": format!("e-{n}"), "payload": {} })
            .to_string()
    });

    erp.publish_all("sales.order.created", bodies).await;
    receiver.wait_for(1, PATIENCE).await;
    let failed = json!({ "eventId": "e-1", "status": "pending" });
    let failed = erp.wait_delivery(&webhook, failed).await;
    erp.ask("delivery.cancel", json!({ "id": failed["id"] }))
        .await;

    let requests = receiver.wait_for(3, PATIENCE).await;

    let sizes: Vec<usize> = requests.iter().map(|one| ids(one).len()).collect();
    assert_eq!(sizes, [3, 2, 2]);
    let [all, fewer, again] = [0, 1, 2].map(|n| requests[n].header("webhook-id"));
    assert_ne!(all, fewer, "an id that came with other events");
    assert_eq!(fewer, again, "the same events");
    let sent = json!({ "eventId": "e-2", "status": "delivered" });
    let sent = erp.wait_delivery(&webhook, sent).await;
    assert_eq!(sent["batchId"], again);
}
