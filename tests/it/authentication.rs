//! How a webhook shows its endpoint who it is: on both databases.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    receiver::Received,
    site::{Site, on_both},
};

on_both!(
    each_type_of_authentication_arrives_and_is_shown_nowhere,
    credentials_stay_through_an_update_and_can_be_replaced,
);

const BASIC: &str = "Basic dXNlcjpjYW5hcnktcGFzc3dvcmQ=";

async fn each_type_of_authentication_arrives_and_is_shown_nowhere(mut site: Site) {
    let types = [
        ("bearer", json!({ "token": "canary-token" })),
        (
            "basic",
            json!({ "username": "user", "password": "canary-password" }),
        ),
        ("api-key", json!({ "key": "canary-key" })),
        (
            "api-key",
            json!({ "key": "canary &=parameter", "name": "key", "in": "query" }),
        ),
    ];
    let mut shown = Vec::new();
    for (number, (kind, credentials)) in types.into_iter().enumerate() {
        let authentication = json!({ "type": kind, "credentials": credentials });
        let config = json!({ "authentication": authentication });
        let url = site.receiver.url(&format!("/{number}?a=b"));
        let (webhook, _) = site.erp.webhook(&url, &["*.>"], config).await;
        let got = site.erp.ask("webhook.get", json!({ "id": webhook })).await;
        assert_eq!(got["config"]["authentication"]["type"], kind);
        let marks = &got["config"]["authentication"]["credentials"];
        let marks = marks.as_object().expect("marks");
        assert!(
            !marks.is_empty() && marks.values().all(|mark| mark["set"] == true),
            "{got}"
        );
        shown.push(got);
        shown.push(site.erp.ask("webhook.test", json!({ "id": webhook })).await);
    }
    site.erp.order_created("e-1").await;
    for request in site.receiver.wait_for(8, PATIENCE).await {
        shows_who_sent_it(&request);
    }
    site.erp.wait_all_settled(PATIENCE).await;
    // An endpoint that cannot be reached has its errors told too.
    site.receiver.stop();
    site.erp.order_created("e-2").await;
    site.erp
        .wait_event("webhook.failed", |event| event["data"]["eventId"] == "e-2")
        .await;
    shown.extend(site.erp.events().await);
    shown.push(site.erp.ask("webhook.list", json!({})).await);
    shown.push(site.erp.ask("delivery.list", json!({})).await);
    let metrics = site.worker.ops("/metrics").await.1;
    let log = site.worker.output().text();
    let database = std::fs::read(site.database.file().unwrap_or_default()).unwrap_or_default();
    let database = String::from_utf8_lossy(&database).into_owned();
    for text in ["canary", "dXNlcjpj"] {
        for place in &shown {
            assert!(!place.to_string().contains(text), "{text} is in {place}");
        }
        for (place, content) in [
            ("log", &log),
            ("metrics", &metrics),
            ("database", &database),
        ] {
            assert!(!content.contains(text), "{text} is in the {place}");
        }
    }
}

fn shows_who_sent_it(request: &Received) {
    let has = |name: &str, value: Option<&str>| {
        let values = request.headers.get_all(name).iter();
        let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
        assert_eq!(values, value.into_iter().collect::<Vec<_>>(), "{name}");
    };
    let (authorization, key, query) = match request.path.as_str() {
        "/0" => (Some("Bearer canary-token"), None, "a=b"),
        "/1" => (Some(BASIC), None, "a=b"),
        "/2" => (None, Some("canary-key"), "a=b"),
        _ => (None, None, "a=b&key=canary+%26%3Dparameter"),
    };
    has("authorization", authorization);
    has("x-api-key", key);
    assert_eq!(request.query.as_deref(), Some(query));
}

async fn credentials_stay_through_an_update_and_can_be_replaced(site: Site) {
    let Site { erp, receiver, .. } = site;
    let config = |authentication: Value| json!({ "url": receiver.url("/a"), "authentication": authentication });
    let first = json!({ "type": "bearer", "credentials": { "token": "first" } });
    let (webhook, _) = erp
        .webhook(
            &receiver.url("/a"),
            &["*.>"],
            json!({ "authentication": first }),
        )
        .await;
    let sent = async |authentication: Value| {
        let body = json!({ "id": webhook, "config": config(authentication) });
        erp.ask("webhook.update", body).await;
        erp.ask("webhook.test", json!({ "id": webhook })).await;
        let requests = receiver.requests();
        let last = requests.last().expect("a request");
        last.header("authorization").to_owned()
    };
    assert_eq!(sent(json!({ "type": "bearer" })).await, "Bearer first");
    let got = erp.ask("webhook.get", json!({ "id": webhook })).await;
    let shown = got["config"]["authentication"].clone();
    assert_eq!(sent(shown).await, "Bearer first");
    let second = json!({ "type": "bearer", "credentials": { "token": "second" } });
    assert_eq!(sent(second).await, "Bearer second");

    let other_type = json!({ "id": webhook, "config": config(json!({ "type": "basic" })) });
    let refused = erp.request("webhook.update", &[], &other_type).await;
    assert_eq!(refused["error"]["code"], "validation_failed");
    let details = refused["error"]["details"].as_array().expect("details");
    let paths: Vec<_> = details.iter().map(|detail| &detail["path"]).collect();
    assert_eq!(
        paths,
        [
            "config.authentication.credentials.username",
            "config.authentication.credentials.password",
            "config.authentication.credentials.token",
        ]
    );
}
