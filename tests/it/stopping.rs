//! A worker that is ended while endpoints do not answer: what it gives up, another one takes up soon.

use serde_json::json;

use crate::support::{
    PATIENCE,
    erp::order,
    eventually,
    receiver::Answer,
    site::{Site, on_sqlite},
    worker::{Environment, Worker},
};

#[tokio::test]
async fn a_first_attempt_that_a_stopping_worker_gives_up_is_soon_made_by_the_next_one() {
    let Site {
        server,
        erp,
        receiver,
        worker,
        database,
    } = on_sqlite().await;
    receiver.answer("/slow", Answer::hang());
    let patient = json!({ "timeout": "5m" });
    let (webhook, _) = erp.webhook(&receiver.url("/slow"), &["*"], patient).await;
    erp.publish("sales.order.created", order("e-1")).await;
    eventually(PATIENCE, async || {
        let pending = json!({ "webhookId": webhook, "status": "pending" });
        let pending = erp.ask("delivery.list", pending).await;
        (!pending["items"].as_array()?.is_empty()).then_some(())
    })
    .await;

    assert_eq!(worker.terminate().await, 0);
    receiver.answer("/slow", Answer::status(200));
    let mut next = Worker::start(&Environment::new(&server.url(), &database.url()));
    next.wait_ready().await;

    // Not after the five minutes that the attempt might have taken.
    erp.wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
}
