use std::{sync::Arc, time::Duration};

use chrono::DateTime;
use integration_worker::{
    application::ports::{Clock, HttpAnswer, SendError},
    domain::{
        entities::DeliveryStatus,
        events::BusinessEvent,
        interfaces::{LeasedRecord, RecordBatch},
        values::DeliveryId,
    },
};
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use crate::world::{World, id, refusal};

#[tokio::test]
async fn a_trigger_is_a_delivery_that_is_due_now_with_its_payload_as_written() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let body = format!(
        r#"{{"id":"{webhook}", "payload": {{ "total": 18450.00, "n": 1E3 }} , "event":"order.sent"}}"#
    );
    let view = world
        .raw("webhook.trigger", body)
        .key("t-1")
        .header("X-Correlation-Id", "c-1")
        .ok()
        .await;
    assert_eq!(view["webhookId"], json!(webhook));
    assert_eq!(
        (&view["eventId"], &view["eventType"]),
        (&json!("t-1"), &json!("order.sent"))
    );
    assert_eq!(
        (&view["status"], &view["attemptCount"]),
        (&json!("pending"), &json!(0))
    );
    // By the store's clock, which is read after the time of creation; `due` below takes it.
    let time = |name: &str| DateTime::parse_from_rfc3339(view[name].as_str().unwrap()).unwrap();
    let wait = time("nextAttemptAt") - time("createdAt");
    assert!((0..5).contains(&wait.num_seconds()), "{wait}");
    assert_eq!(view["attempts"], json!([]));
    timeout(Duration::from_secs(5), world.wakers.parked.notified())
        .await
        .unwrap();
    assert_eq!(
        world.ok("delivery.get", json!({ "id": view["id"] })).await,
        view
    );

    let due = world.due().await;
    assert_eq!(due.len(), 1);
    let event = BusinessEvent::from_stored(&due[0].event.meta, due[0].event.raw.clone()).unwrap();
    assert_eq!(event.payload.bytes(), r#"{ "total": 18450.00, "n": 1E3 }"#);
    assert_eq!(event.meta.correlation_id.as_deref(), Some("c-1"));
    assert_eq!(due[0].delivery.id.to_string(), id(&view));
}

#[tokio::test]
async fn a_trigger_is_refused_when_nothing_goes_out() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let body = json!({ "id": webhook, "payload": null });
    let forbidden = refusal("invalid_transition", &[]);
    assert_eq!(
        world.ok("webhook.trigger", body.clone()).await["eventType"],
        "webhook.trigger"
    );

    world
        .ok(
            "integration.mark_error",
            json!({ "id": integration, "error": "x" }),
        )
        .await;
    assert_eq!(
        world.call("webhook.trigger", &body).refused().await,
        forbidden
    );
    world
        .ok("integration.deactivate", json!({ "id": integration }))
        .await;
    assert_eq!(
        world.call("webhook.trigger", &body).refused().await,
        forbidden
    );
    world
        .ok("integration.activate", json!({ "id": integration }))
        .await;
    world
        .ok("webhook.deactivate", json!({ "id": webhook }))
        .await;
    assert_eq!(
        world.call("webhook.trigger", &body).refused().await,
        forbidden
    );

    let big = json!({ "id": webhook, "payload": "x".repeat(1024 * 1024), "event": "a.*" });
    let faults = refusal("validation_failed", &["payload", "event"]);
    assert_eq!(world.call("webhook.trigger", &big).refused().await, faults);
}

#[tokio::test]
async fn an_event_is_not_delivered_twice_under_one_id() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let body = json!({ "id": webhook, "payload": 1 });
    world.call("webhook.trigger", &body).fallback(7).ok().await;
    let again = world
        .call("webhook.trigger", &body)
        .fallback(7)
        .refused()
        .await;
    assert_eq!(again, refusal("conflict", &["Idempotency-Key"]));
}

#[tokio::test]
async fn a_test_answers_what_the_endpoint_said_and_leaves_no_delivery() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    world
        .ok("webhook.deactivate", json!({ "id": webhook }))
        .await;
    let test = || world.ok("webhook.test", json!({ "id": webhook }));
    let answered = |status, body: &str| {
        let body = body.to_owned();
        Ok(HttpAnswer {
            whole: None,
            status,
            retry_after: None,
            body,
        })
    };
    let refused = Err(SendError::Connect("connection refused".to_owned()));
    world.endpoints.answers.lock().unwrap().extend([
        answered(204, ""),
        answered(500, "oh"),
        refused,
    ]);

    for expected in [
        json!({ "statusCode": 204, "durationMs": 0, "response": "" }),
        json!({ "statusCode": 500, "durationMs": 0, "response": "oh", "error": "HTTP 500" }),
        json!({
            "statusCode": null, "durationMs": 0, "response": null,
            "error": "cannot connect: connection refused",
        }),
    ] {
        let mut answer = test().await;
        assert!(answer["durationMs"].is_u64());
        answer["durationMs"] = json!(0);
        assert_eq!(answer, expected);
    }
    let request = world.endpoints.requests.lock().unwrap().pop().unwrap();
    assert_eq!(request.uri.to_string(), "https://receiver.example.com/hook");
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(body["type"], "webhook.test");
    assert_eq!(body["data"]["webhookId"], json!(webhook));
    assert!(
        request.headers["webhook-signature"]
            .to_str()
            .unwrap()
            .starts_with("v1,")
    );
    assert_eq!(
        world.ok("delivery.list", json!({})).await["items"],
        json!([])
    );
}

#[tokio::test]
async fn a_test_waits_no_longer_than_somebody_who_asks() {
    let world = World::new().await;
    let integration = world.integration().await;
    for (name, timeout, waits) in [("a", "5m", 30), ("b", "5s", 5)] {
        let body = json!({
            "name": name, "integrationId": integration, "events": ["*"],
            "config": { "url": "https://receiver.example.com", "timeout": timeout },
        });
        let webhook = world.ok("webhook.create", body).await;
        world
            .ok("webhook.test", json!({ "id": webhook["id"] }))
            .await;
        let request = world.endpoints.requests.lock().unwrap().pop().unwrap();
        assert_eq!(request.timeout, Duration::from_secs(waits));
    }
}

#[tokio::test]
async fn tests_of_a_tarpit_leave_room_for_everything_else() {
    let world = Arc::new(World::new().await);
    let integration = world.integration().await;
    let body = json!({ "id": id(&world.webhook(&integration, "a").await) });
    let endpoints = Arc::clone(&world.endpoints);
    endpoints.answering.forget_permits(1000);
    let mut tests = JoinSet::new();
    for _ in 0..8 {
        let (world, body) = (Arc::clone(&world), body.clone());
        tests.spawn(async move { world.ok("webhook.test", body).await });
    }
    let arrived = timeout(Duration::from_secs(10), endpoints.arrived.acquire_many(8));
    arrived.await.unwrap().unwrap().forget();

    for call in [
        world.call("webhook.test", &body),
        world.call("webhook.test", &body).durable(),
    ] {
        assert_eq!(call.refused().await, refusal("unavailable", &[]));
    }
    assert_eq!(endpoints.requests.lock().unwrap().len(), 8);
    world.ok("webhook.activate", body.clone()).await;

    endpoints.answering.add_permits(9);
    for answer in tests.join_all().await {
        assert_eq!(answer["statusCode"], 200);
    }
    world.ok("webhook.test", body).await;
}

#[tokio::test]
async fn a_trigger_is_another_delivery_than_the_event_of_the_same_id() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let body = json!({ "id": webhook, "payload": 1 });
    let view = world.call("webhook.trigger", &body).key("t-1").ok().await;

    // What an event with the id `evt-1` would be.
    let due = world.due().await.pop().unwrap();
    let (mut of_event, event) = (due.delivery, due.event);
    let derived = |id| DeliveryId::derive(of_event.webhook_id, &of_event.tenant, id);
    assert_ne!(id(&view), derived("t-1").to_string());
    of_event.id = derived("evt-1");
    of_event.event_id = "evt-1".to_owned();
    let mut unit = world.store.begin().await.unwrap();
    unit.insert_delivery(&of_event, &event).await.unwrap();
    unit.commit().await.unwrap();

    let view = world.call("webhook.trigger", &body).key("evt-1").ok().await;
    assert_eq!(view["eventId"], "evt-1");
    let again = world.call("webhook.trigger", &body).key("evt-1").ok().await;
    assert_eq!(again, view);
    let filter = json!({ "eventId": "evt-1" });
    let listed = world.ok("delivery.list", filter).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_waiting_delivery_is_cancelled_and_tried_again() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    world.events().await;
    let delivery = world
        .ok("webhook.trigger", json!({ "id": webhook, "payload": {} }))
        .await;
    let body = json!({ "id": delivery["id"] });
    let cancelled = world.ok("delivery.cancel", body.clone()).await;
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(cancelled.get("nextAttemptAt"), None);
    assert!(cancelled["completedAt"].is_string());
    assert_eq!(world.ok("delivery.cancel", body.clone()).await, cancelled);
    assert!(world.due().await.is_empty());
    let retried = world.ok("delivery.retry", body).await;
    assert_eq!(retried["status"], "pending");
    assert_eq!(retried.get("completedAt"), None);
    assert_eq!(world.due().await.len(), 1);
    // Deliveries' changes by users publish nothing.
    assert_eq!(world.event_types().await, [""; 0]);
    let missing = json!({ "id": webhook });
    for action in ["get", "retry", "cancel"] {
        let call = world.call(&format!("delivery.{action}"), &missing);
        assert_eq!(call.refused().await, refusal("not_found", &["id"]));
    }
}

#[tokio::test]
async fn a_retried_delivery_goes_with_others_or_alone_as_its_webhook_has_it_now() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let trigger = json!({ "id": webhook, "payload": {} });
    let delivery = world.ok("webhook.trigger", trigger).await;
    let body = json!({ "id": delivery["id"] });
    let url = "https://receiver.example.com/hook";
    for (config, alone) in [
        (json!({ "url": url, "batch": {} }), 0),
        (json!({ "url": url }), 1),
    ] {
        let change = json!({ "id": webhook, "config": config });
        world.ok("webhook.update", change).await;

        world.ok("delivery.retry", body.clone()).await;

        assert_eq!(world.due().await.len(), alone, "{config}");
    }
}

#[tokio::test]
async fn an_exhausted_delivery_is_retried_and_a_delivered_one_is_not() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let delivery = world
        .ok("webhook.trigger", json!({ "id": webhook, "payload": {} }))
        .await;
    let body = json!({ "id": delivery["id"] });
    // A waiting one may be retried too.
    assert_eq!(
        world.ok("delivery.retry", body.clone()).await["status"],
        "pending"
    );
    let end = async |status| {
        let claimed = world.due().await.pop().unwrap();
        let mut delivery = claimed.delivery;
        delivery.status = status;
        delivery.attempt_count += 1;
        delivery.next_attempt_at = None;
        delivery.completed_at = Some(world.clock.now());
        let leased = LeasedRecord {
            lease: claimed.lease,
            delivery,
            attempt: None,
            events: Vec::new(),
        };
        let batch = RecordBatch {
            first: Vec::new(),
            leased: vec![leased],
        };
        assert_eq!(world.store.record(&batch).await.unwrap().len(), 1);
    };
    end(DeliveryStatus::Exhausted).await;
    let forbidden = refusal("invalid_transition", &[]);
    assert_eq!(
        world.call("delivery.cancel", &body).refused().await,
        forbidden
    );
    let view = world.ok("delivery.retry", body.clone()).await;
    assert_eq!(
        (&view["status"], &view["attemptCount"]),
        (&json!("pending"), &json!(1))
    );
    // A lane that gives up on it drops the event, and there is nothing left to send.
    end(DeliveryStatus::Cancelled).await;
    let reply = world
        .call("delivery.retry", &body)
        .send()
        .await
        .reply
        .to_json();
    assert_eq!(reply["error"]["code"], "invalid_transition");
    assert!(
        reply["error"]["message"]
            .as_str()
            .unwrap()
            .contains("pruned")
    );

    let other = world
        .ok("webhook.trigger", json!({ "id": webhook, "payload": {} }))
        .await;
    let body = json!({ "id": other["id"] });
    end(DeliveryStatus::Delivered).await;
    for action in ["delivery.retry", "delivery.cancel"] {
        assert_eq!(world.call(action, &body).refused().await, forbidden);
    }
}

#[tokio::test]
async fn a_delivery_of_a_deleted_webhook_is_not_retried() {
    let world = World::new().await;
    let integration = world.integration().await;
    let webhook = id(&world.webhook(&integration, "a").await);
    let delivery = world
        .ok("webhook.trigger", json!({ "id": webhook, "payload": {} }))
        .await;
    world.ok("webhook.delete", json!({ "id": webhook })).await;
    let body = json!({ "id": delivery["id"] });
    assert_eq!(
        world.ok("delivery.get", body.clone()).await["status"],
        "cancelled"
    );
    let forbidden = refusal("invalid_transition", &[]);
    assert_eq!(
        world.call("delivery.retry", &body).refused().await,
        forbidden
    );
}
