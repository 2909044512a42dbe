//! How a webhook shows its endpoint who it is: on both databases.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
};

use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    receiver::Received,
    site::{Site, on_both},
};

on_both!(
    each_type_of_authentication_arrives_and_is_shown_nowhere,
    credentials_stay_through_an_update_and_can_be_replaced,
    a_client_certificate_opens_an_endpoint_that_asks_for_one,
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
    assert_eq!(
        *details,
        [json!({
            "path": "config.authentication.credentials",
            "message": "must be given with another type: those that are kept are of the type bearer",
        })]
    );
}

macro_rules! pem {
    ($name:literal) => {
        include_str!(concat!("../../src/infrastructure/http/client/", $name))
    };
}

/// Answers 204 to whoever shows a certificate of the clients' authority.
fn server_for_known_clients() -> SocketAddr {
    let mut authorities = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(pem!("test_client_ca.pem").as_bytes());
    authorities
        .add(authority.expect("a certificate"))
        .expect("an authority");
    let provider = Arc::new(default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider));
    let certificate = CertificateDer::from_pem_slice(pem!("test_server.pem").as_bytes());
    let key = PrivateKeyDer::from_pem_slice(pem!("test_server.key").as_bytes());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(
            vec![certificate.expect("a certificate")],
            key.expect("a key"),
        );
    let config = Arc::new(config.expect("a configuration"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            thread::spawn(move || {
                let mut stream = StreamOwned::new(connection, stream);
                let mut buffer = [0; 16 * 1024];
                // What these tests send comes in one piece.
                while stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                    let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                    if stream.write_all(answer).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

async fn a_client_certificate_opens_an_endpoint_that_asks_for_one(site: Site) {
    let Site { erp, worker, .. } = site;
    let url = format!("https://{}/hook", server_for_known_clients());
    let credentials = json!({
        "certificate": pem!("test_client.pem"),
        "privateKey": pem!("test_client.key"),
        "ca": pem!("test_ca.pem"),
    });
    let authentication = json!({ "type": "mtls", "credentials": credentials });
    let config = json!({ "authentication": authentication });
    let (webhook, _) = erp.webhook(&url, &["*.>"], config).await;

    erp.order_created("e-1").await;
    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
    assert_eq!(delivery["attempts"][0]["statusCode"], 204);
    let tested = erp.ask("webhook.test", json!({ "id": webhook })).await;
    assert_eq!(tested["statusCode"], 204);

    let got = erp.ask("webhook.get", json!({ "id": webhook })).await;
    let key: Vec<_> = pem!("test_client.key").lines().collect();
    let shown = format!("{got} {:?} {}", erp.events().await, worker.output().text());
    assert!(!shown.contains(key[1]) && !shown.contains("PRIVATE KEY"));

    // Without the authority of its own, it trusts nobody there.
    let config = json!({ "url": url });
    erp.ask("webhook.update", json!({ "id": webhook, "config": config }))
        .await;
    let tested = erp.ask("webhook.test", json!({ "id": webhook })).await;
    let error = tested["error"].as_str().expect("an error");
    assert!(error.contains("UnknownIssuer"), "{error}");
}
