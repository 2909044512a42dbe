//! Signatures of real deliveries, as the receivers' own libraries judge them: on both databases.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    receiver::Received,
    site::{Site, on_both},
};

on_both!(
    the_public_library_verifies_every_format_and_each_secret_of_a_rotation,
    ed25519_signatures_are_verified_with_the_public_key_alone,
    a_change_of_the_way_of_signing_comes_with_the_next_secret,
);

/// Reads `[{secret, headers, body}]`, prints for each "verified" or why it is not.
const VERIFIER: &str = r#"
import base64, json, sys
from standardwebhooks import Webhook, WebhookVerificationError

def judge(request):
    body = base64.b64decode(request["body"])
    try:
        Webhook(request["secret"]).verify(body, request["headers"])
    except WebhookVerificationError as error:
        return str(error)
    return "verified"

json.dump([judge(request) for request in json.load(sys.stdin)], sys.stdout)
"#;

const VERIFIED: &str = "verified";
const REFUSED: &str = "No matching signature found";

/// What the library `standardwebhooks` of Python, as it is published, says of each.
fn judged(requests: &[(&str, &Received)]) -> Vec<String> {
    let requests: Vec<_> = requests
        .iter()
        .map(|(secret, request)| {
            let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
            let headers = names.map(|name| (name.to_owned(), json!(request.header(name))));
            json!({
                "secret": secret, "body": STANDARD.encode(&request.body),
                "headers": Value::Object(headers.into_iter().collect()),
            })
        })
        .collect();

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = root.join(".tools/standardwebhooks");
    let fetched = Command::new(root.join(".ci/wheel-binary"))
        .arg("standardwebhooks")
        .arg(&library)
        .output()
        .expect("the script runs");
    let complaint = String::from_utf8_lossy(&fetched.stderr);
    assert!(fetched.status.success(), "no library: {complaint}");

    let mut python = Command::new("python3")
        .args(["-B", "-c", VERIFIER])
        .env("PYTHONPATH", library)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is a Python");
    let mut input = python.stdin.take().expect("it is piped");
    input
        .write_all(json!(requests).to_string().as_bytes())
        .expect("it reads");
    drop(input);
    let output = python.wait_with_output().expect("it ends");
    assert!(output.status.success(), "the library fails; see its trace");
    serde_json::from_slice(&output.stdout).expect("texts")
}

/// Publishes an order and waits until it comes in at the path.
async fn delivered(site: &Site, path: &str, id: &str) -> Received {
    site.erp.order_created(id).await;
    let is_it = |request: &Received| {
        request.path == path && String::from_utf8_lossy(&request.body).contains(id)
    };
    let requests = site
        .receiver
        .wait_until(PATIENCE, |requests| requests.iter().any(is_it));
    let found = requests.await.into_iter().find(is_it);
    found.expect("it was waited for")
}

async fn rotated(site: &Site, webhook: &Value, overlap: &str) -> Value {
    let body = json!({ "id": webhook["id"], "overlap": overlap });
    site.erp.ask("webhook.rotate_secret", body).await
}

fn secret(answer: &Value) -> &str {
    answer["secret"].as_str().expect("a secret")
}

async fn the_public_library_verifies_every_format_and_each_secret_of_a_rotation(site: Site) {
    let formats = ["standard", "cloudevents", "cloudevents-binary", "raw"];
    let mut requests = Vec::new();
    let mut webhooks = Vec::new();
    for format in formats {
        let (path, config) = (format!("/{format}"), json!({ "format": format }));
        let url = site.receiver.url(&path);
        webhooks.push(site.erp.new_webhook(&url, &["sales.>"], config).await);
        requests.push(delivered(&site, &path, &format!("e-{format}")).await);
    }
    let pairs: Vec<_> = webhooks.iter().map(secret).zip(&requests).collect();
    assert_eq!(judged(&pairs), [VERIFIED; 4]);
    let mut changed = requests[0].clone();
    changed.body = [&changed.body[..], b" "].concat().into();
    let wrong = [
        (secret(&webhooks[0]), &changed),
        (secret(&webhooks[1]), &requests[0]),
    ];
    assert_eq!(judged(&wrong), [REFUSED; 2]);

    let first = &webhooks[0];
    let second = rotated(&site, first, "1h").await;
    let both = delivered(&site, "/standard", "e-both").await;
    assert_eq!(both.header("webhook-signature").split(' ').count(), 2);
    let pairs = [(secret(&second), &both), (secret(first), &both)];
    assert_eq!(judged(&pairs), [VERIFIED; 2]);

    let third = rotated(&site, first, "0s").await;
    let last = delivered(&site, "/standard", "e-last").await;
    let pairs = [&third, &second, first].map(|answer| (secret(answer), &last));
    assert_eq!(judged(&pairs), [VERIFIED, REFUSED, REFUSED]);
}

/// For each signature of the request, in its order, whether it is of this `whpk_` key.
fn is_of(public_key: &Value, request: &Received) -> Vec<bool> {
    let key = public_key.as_str().expect("a public key");
    let key = key.strip_prefix("whpk_").expect("its prefix");
    let key = STANDARD.decode(key).expect("base64");
    let key = UnparsedPublicKey::new(&ED25519, key);
    let (id, time) = (
        request.header("webhook-id"),
        request.header("webhook-timestamp"),
    );
    let content = [format!("{id}.{time}.").as_bytes(), &request.body].concat();
    let signatures = request.header("webhook-signature").split(' ');
    let fits = |one: &str| {
        let signature = STANDARD.decode(one.strip_prefix("v1a,")?).ok()?;
        key.verify(&content, &signature).ok()
    };
    signatures.map(|one| fits(one).is_some()).collect()
}

async fn ed25519_signatures_are_verified_with_the_public_key_alone(site: Site) {
    let config = json!({ "signing": "v1a" });
    let url = site.receiver.url("/hook");
    let first = site.erp.new_webhook(&url, &["sales.>"], config).await;
    let private = secret(&first).strip_prefix("whsk_").expect("its prefix");
    assert_eq!(STANDARD.decode(private).expect("base64").len(), 64);
    let one = delivered(&site, "/hook", "e-one").await;
    assert_eq!(is_of(&first["publicKey"], &one), [true]);
    let mut changed = one.clone();
    changed.body = [&one.body[..], b" "].concat().into();
    assert_eq!(is_of(&first["publicKey"], &changed), [false]);

    let second = rotated(&site, &first, "1h").await;
    let both = delivered(&site, "/hook", "e-both").await;
    assert_eq!(is_of(&second["publicKey"], &both), [true, false]);
    assert_eq!(is_of(&first["publicKey"], &both), [false, true]);

    // The keys are answered once.
    let shown = json!([
        site.erp
            .ask("webhook.get", json!({ "id": first["id"] }))
            .await,
        site.erp.events().await,
    ])
    .to_string();
    for word in ["whsk_", "whpk_", "publicKey"] {
        assert!(!shown.contains(word), "{word} is shown");
    }
}

async fn a_change_of_the_way_of_signing_comes_with_the_next_secret(site: Site) {
    let url = site.receiver.url("/hook");
    let first = site.erp.new_webhook(&url, &["sales.>"], json!({})).await;
    assert_eq!(first["publicKey"], Value::Null);
    let config = json!({ "url": url, "signing": "v1a" });
    site.erp
        .ask(
            "webhook.update",
            json!({ "id": first["id"], "config": config }),
        )
        .await;
    let before = delivered(&site, "/hook", "e-before").await;
    assert_eq!(judged(&[(secret(&first), &before)]), [VERIFIED]);

    let second = rotated(&site, &first, "1h").await;
    let both = delivered(&site, "/hook", "e-both").await;
    assert_eq!(is_of(&second["publicKey"], &both), [true, false]);
    // A receiver that knows the former secret alone is not disturbed.
    assert_eq!(judged(&[(secret(&first), &both)]), [VERIFIED]);

    let third = rotated(&site, &first, "0s").await;
    let after = delivered(&site, "/hook", "e-after").await;
    assert_eq!(is_of(&third["publicKey"], &after), [true]);
    assert_eq!(judged(&[(secret(&first), &after)]), [REFUSED]);
}
