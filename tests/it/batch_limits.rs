//! Batches of a webhook with a rate limit: each request takes one token.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use crate::support::{
    PATIENCE,
    receiver::Received,
    site::{Site, on_both},
};

on_both!(a_batch_takes_one_token);

fn ids(request: &Received) -> Vec<String> {
    let body = request.json();
    let events = body.as_array().expect("a list");
    let ids = events.iter().map(|event| event["id"].to_string());
    ids.collect()
}

async fn a_batch_takes_one_token(site: Site) {
    let Site { erp, receiver, .. } = site;
    let config = json!({
        "batch": { "maxEvents": 5, "maxWait": "100ms" },
        "rateLimit": { "requests": 1, "per": "1s" },
    });
    let url = receiver.url("/orders");
    erp.webhook(&url, &["sales.>"], config).await;
    let bodies = (0..20).map(|n| {
        json!({ "eventType": "sales.order.created", "eventId": format!("e-{n}"), "payload": {} })
            .to_string()
    });

    erp.publish_all("sales.order.created", bodies).await;

    let requests = receiver
        .wait_until(PATIENCE, |all| {
            all.iter().flat_map(ids).collect::<BTreeSet<_>>().len() == 20
        })
        .await;
    // The first one may have gone before all had come.
    assert!((4..=5).contains(&requests.len()), "{}", requests.len());
    let took = requests[requests.len() - 1].at - requests[0].at;
    let tokens = u32::try_from(requests.len() - 1).expect("few");
    // Each comes a fiftieth early at most, and the receiver may have seen the first one late.
    let least = Duration::from_millis(980) * tokens;
    assert!(took + Duration::from_millis(400) >= least, "{took:?}");
}
