//! Filters and transforms, from the command to the request: on both databases.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{is_signed, order},
    receiver::Answer,
    site::{Site, on_both},
};

on_both!(
    a_filter_decides_what_goes_out_and_leaves_no_row_of_the_rest,
    a_filter_that_cannot_be_evaluated_ends_the_delivery_without_a_request,
    a_transform_makes_the_data_of_every_format,
    a_transform_that_cannot_be_evaluated_ends_the_delivery_on_both_lanes,
    a_bad_expression_is_refused_with_its_position,
);

fn priced(id: &str, total: &str) -> String {
    order(id).replace("18450.00", total)
}

async fn a_filter_decides_what_goes_out_and_leaves_no_row_of_the_rest(site: Site) {
    let Site { erp, receiver, .. } = site;
    let filter = json!({ "filter": "data.totalNet > 1000 && type.startsWith('sales.')" });
    let (webhook, _) = erp.webhook(&receiver.url("/large"), &["*.>"], filter).await;
    let (all, _) = erp.webhook(&receiver.url("/all"), &[">"], json!({})).await;
    let totals = ["1000", "1000.5", "999.99", "1001", "1e9", "-5"];
    let events = totals.iter().enumerate();
    let events = events.map(|(number, total)| priced(&format!("e-{number}"), total));
    erp.publish_all("sales.order.created", events).await;

    erp.wait_all_settled(PATIENCE).await;

    let mut ids: Vec<_> = receiver
        .requests_to("/large")
        .iter()
        .map(|request| request.json()["data"]["orderId"].clone())
        .collect();
    ids.sort_by_key(ToString::to_string);
    assert_eq!(ids, ["e-1", "e-3", "e-4"]);
    assert_eq!(receiver.requests_to("/all").len(), totals.len());
    for (webhook, count) in [(&webhook, 3), (&all, totals.len())] {
        let rows = erp
            .ask("delivery.list", json!({ "webhookId": webhook }))
            .await;
        assert_eq!(rows["items"].as_array().map(Vec::len), Some(count));
    }
}

async fn a_filter_that_cannot_be_evaluated_ends_the_delivery_without_a_request(site: Site) {
    let Site { erp, receiver, .. } = site;
    let filter = json!({ "filter": "data.lines.size() > 3" });
    let (webhook, _) = erp
        .webhook(&receiver.url("/faulty"), &["*.>"], filter)
        .await;
    let (other, _) = erp
        .webhook(&receiver.url("/other"), &["*.>"], json!({}))
        .await;

    erp.order_created("e-1").await;

    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;
    let error = "filter: there is no field \"lines\" (line 1, column 6)";
    assert_eq!(delivery["error"], error);
    assert_eq!(delivery["attemptCount"], 0);
    assert_eq!(delivery["attempts"], json!([]));
    let told = erp
        .wait_event("webhook.exhausted", |event| {
            event["subject"] == delivery["id"]
        })
        .await;
    assert_eq!(told["aggregateversion"], 1);
    assert_eq!(told["data"]["error"], error);
    assert_eq!(told["data"]["attempts"], 0);
    assert_eq!(told["data"]["nextAttemptAt"], Value::Null);
    // The fault of one is nobody else's, and who asks for a retry gets the event.
    erp.wait_delivery(&other, json!({ "status": "delivered" }))
        .await;
    assert!(receiver.requests_to("/faulty").is_empty());

    erp.ask("delivery.retry", json!({ "id": delivery["id"] }))
        .await;

    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
    assert_eq!(delivery["attemptCount"], 1);
    assert_eq!(receiver.requests_to("/faulty").len(), 1);
}

async fn a_transform_makes_the_data_of_every_format(site: Site) {
    let Site { erp, receiver, .. } = site;
    let transform = "{'number': data.orderId, 'net': data.totalNet, 'at': time}";
    let made = r#"{"number":"e-1","net":18450.00,"at":"2026-11-02T08:14:09.120Z"}"#;
    let mut webhooks = Vec::new();
    for format in ["standard", "cloudevents", "cloudevents-binary"] {
        let config = json!({ "format": format, "transform": transform });
        let url = receiver.url(&format!("/{format}"));
        let (_, secret) = erp.webhook(&url, &["*.>"], config).await;
        webhooks.push((format, secret));
    }

    erp.order_created("e-1").await;

    receiver.wait_for(webhooks.len(), PATIENCE).await;
    for (format, secret) in webhooks {
        let request = receiver.requests_to(&format!("/{format}")).remove(0);
        assert!(is_signed(&request, &secret), "{format}");
        let body = std::str::from_utf8(&request.body).expect("text");
        match format {
            "cloudevents-binary" => {
                assert_eq!(body, made);
                assert_eq!(request.header("content-type"), "application/json");
                assert_eq!(request.header("ce-type"), "sales.order.created");
            }
            _ => assert!(
                body.contains(&format!("\"data\":{made}")),
                "{format}: {body}"
            ),
        }
    }
    let raw = json!({
        "name": "raw", "integrationId": uuid::Uuid::nil(), "events": ["*"],
        "config": { "url": receiver.url("/raw"), "format": "raw", "transform": transform },
    });
    let refused = erp.request("webhook.create", &[], &raw).await;
    assert_eq!(refused["error"]["code"], "validation_failed");
    assert_eq!(refused["error"]["details"][0]["path"], "config.transform");
}

async fn a_transform_that_cannot_be_evaluated_ends_the_delivery_on_both_lanes(site: Site) {
    let Site { erp, receiver, .. } = site;
    let faulty = "{'tax': data.tax}";
    let config = json!({ "transform": faulty });
    let (fast, _) = erp.webhook(&receiver.url("/fast"), &["*.>"], config).await;
    receiver.answer("/later", Answer::status(500));
    let config = json!({ "retryPolicy": { "schedule": ["1h"] } });
    let (later, _) = erp.webhook(&receiver.url("/later"), &["*.>"], config).await;
    erp.order_created("e-1").await;
    let error = "transform: there is no field \"tax\" (line 1, column 14)";
    let delivery = erp
        .wait_delivery(&fast, json!({ "status": "exhausted" }))
        .await;
    assert_eq!(delivery["error"], error);
    assert_eq!(delivery["attemptCount"], 0);
    let failed = erp
        .wait_event("webhook.failed", |event| {
            event["data"]["webhookId"] == later.as_str()
        })
        .await;
    let config = json!({ "url": receiver.url("/later"), "transform": faulty });
    erp.ask("webhook.update", json!({ "id": later, "config": config }))
        .await;

    erp.ask("delivery.retry", json!({ "id": failed["subject"] }))
        .await;

    let delivery = erp
        .wait_delivery(&later, json!({ "status": "exhausted" }))
        .await;
    assert_eq!(delivery["error"], error);
    assert_eq!(delivery["attemptCount"], 1);
    assert_eq!(delivery["attempts"][0]["error"], "HTTP 500");
    let told = erp
        .wait_event("webhook.exhausted", |event| {
            event["subject"] == delivery["id"]
        })
        .await;
    assert_eq!(told["data"]["attempts"], 1);
    assert_eq!(told["aggregateversion"], 2);
    assert!(receiver.requests_to("/fast").is_empty());
    assert_eq!(receiver.requests_to("/later").len(), 1);
    let tested = erp.ask("webhook.test", json!({ "id": fast })).await;
    assert_eq!(tested["error"], error);
    assert_eq!(tested["statusCode"], Value::Null);
}

async fn a_bad_expression_is_refused_with_its_position(site: Site) {
    let Site { erp, receiver, .. } = site;
    let url = receiver.url("/");
    let (webhook, _) = erp.webhook(&url, &["*"], json!({ "filter": "true" })).await;
    let config = json!({ "url": url, "filter": "data.x >\n  )", "transform": "total" });
    let body = json!({ "id": webhook, "config": config });
    let refused = erp.request("webhook.update", &[], &body).await;
    assert_eq!(refused["error"]["code"], "validation_failed");
    let details = &refused["error"]["details"];
    assert_eq!(details[0]["path"], "config.filter");
    let message = "expected a value, found \")\" (line 2, column 3)";
    assert_eq!(details[0]["message"], message);
    assert_eq!(details[1]["path"], "config.transform");
    let kept = erp.ask("webhook.get", json!({ "id": webhook })).await;
    assert_eq!(kept["config"]["filter"], "true");
}
