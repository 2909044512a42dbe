use std::collections::HashSet;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use uuid::Uuid;

use super::*;
use crate::application::played::PlayedExpressions;
use crate::{
    application::ports::CipherError,
    domain::{
        entities::{EntityMeta, SigningSecret, Webhook, WebhookStatus},
        events::{BusinessEvent, EventMeta, MadeBy, Payload},
        values::{DeliveryId, EventPattern, SealedSecrets, SecretConfig, Timestamp},
    },
};

/// Seals nothing and knows some keys.
struct Keys(HashSet<&'static str>);

impl Cipher for Keys {
    fn seal(&self, plain: &[u8], _: &str) -> Result<SealedSecrets, CipherError> {
        Ok(SealedSecrets {
            key_id: "k1".to_owned(),
            bytes: plain.to_vec(),
        })
    }

    fn open(&self, sealed: &SealedSecrets, context: &str) -> Result<Vec<u8>, CipherError> {
        if !self.0.contains(sealed.key_id.as_str()) {
            return Err(CipherError::UnknownKey(sealed.key_id.clone()));
        }
        let expected = sealed.bytes == context.as_bytes();
        expected.then(|| vec![7; 32]).ok_or(CipherError::Broken)
    }
}

fn tenant(name: &str) -> TenantId {
    TenantId::try_new(name).unwrap()
}

fn secret(webhook: u128, key_id: &str, is_current: bool) -> SigningSecret {
    SigningSecret {
        sealed: SealedSecrets {
            key_id: key_id.to_owned(),
            bytes: Uuid::from_u128(webhook).to_string().into_bytes(),
        },
        created_at: DateTime::UNIX_EPOCH,
        expires_at: (!is_current).then_some(DateTime::UNIX_EPOCH),
    }
}

fn webhook(id: u128, events: &[&str]) -> Webhook {
    let config = serde_json::json!({"url": "https://example.com/hook"});
    Webhook {
        id: WebhookId(Uuid::from_u128(id)),
        integration_id: IntegrationId(Uuid::from_u128(1)),
        meta: EntityMeta {
            tenant: tenant("nord"),
            name: "w".to_owned(),
            description: None,
            tags: Vec::new(),
            version: 1,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            created_by: "t".to_owned(),
            updated_by: "t".to_owned(),
        },
        events: events
            .iter()
            .map(|e| EventPattern::try_new(e).unwrap())
            .collect(),
        status: WebhookStatus::Pending,
        config: SecretConfig {
            shown: config.as_object().unwrap().clone(),
            sealed: None,
        },
        secrets: vec![secret(id, "k1", true)],
    }
}

fn event(event_type: &str) -> EventMeta {
    EventMeta {
        made_by: None,
        id: "e".to_owned(),
        event_type: event_type.to_owned(),
        source: "/erp".to_owned(),
        subject: event_type.to_owned(),
        time: DateTime::UNIX_EPOCH,
        tenant: tenant("nord"),
        correlation_id: None,
        trace: None,
        content_type: None,
        source_sequence: None,
    }
}

fn compile(webhook: &Webhook, keys: &[&'static str]) -> compile::Compiled {
    let cipher = Keys(keys.iter().copied().collect());
    Compiler::new(&cipher, &PlayedExpressions).compile(webhook)
}

fn take(next: &mut Snapshot, webhook: Webhook, integration_runs: bool) {
    let former = next.clone();
    let cipher = Keys(HashSet::from(["k1"]));
    let row = RegistryWebhook {
        webhook,
        integration_runs,
    };
    take_in(
        next,
        &former,
        row,
        &mut Compiler::new(&cipher, &PlayedExpressions),
    );
}

fn matched(snapshot: &Snapshot, event_type: &str) -> Vec<u128> {
    let found = snapshot.matches(&event(event_type));
    found.iter().map(|webhook| webhook.id.0.as_u128()).collect()
}

#[test]
fn a_snapshot_follows_its_webhooks_and_the_former_one_stays() {
    let mut snapshot = Snapshot::default();
    take(&mut snapshot, webhook(2, &["a.*", "a.b", ">"]), true);
    take(&mut snapshot, webhook(1, &["a.b"]), true);
    assert_eq!(matched(&snapshot, "a.b"), [1, 2]);
    let former = snapshot.clone();

    let mut changed = webhook(2, &["c"]);
    changed.meta.version = 2;
    take(&mut snapshot, changed.clone(), true);
    assert_eq!(
        (matched(&snapshot, "a.b"), matched(&snapshot, "c")),
        (vec![1], vec![2])
    );
    changed.meta.version = 3;
    take(&mut snapshot, changed, false);
    snapshot.remove(WebhookId(Uuid::from_u128(1)));
    assert!(matched(&snapshot, "c").is_empty() && matched(&snapshot, "a.b").is_empty());
    assert!(snapshot.is_empty());

    assert_eq!(matched(&former, "a.b"), [1, 2]);
    assert_eq!((matched(&former, "c"), former.len()), (vec![2], 2));
}

#[test]
fn what_is_made_of_an_answer_does_not_go_to_the_webhooks_that_it_came_from() {
    let mut snapshot = Snapshot::default();
    for id in 1..=4 {
        take(&mut snapshot, webhook(id, &["a"]), true);
    }
    let made = EventMeta {
        made_by: Some(MadeBy {
            webhook: WebhookId(Uuid::from_u128(2)),
            before: vec![WebhookId(Uuid::from_u128(3))],
            is_last: false,
        }),
        ..event("a")
    };
    let found = snapshot.matches(&made);
    let found: Vec<_> = found.iter().map(|one| one.id.0.as_u128()).collect();
    assert_eq!(found, [1, 4]);
}

#[test]
fn what_is_turned_off_is_not_held_and_what_the_worker_disabled_is() {
    let error = WebhookStatus::Error {
        error: "410".to_owned(),
    };
    for (status, held, is_pending, is_disabled) in [
        (WebhookStatus::Pending, true, true, false),
        (WebhookStatus::Active, true, false, false),
        (error, true, false, true),
        (WebhookStatus::Inactive, false, false, false),
    ] {
        let mut snapshot = Snapshot::default();
        let mut webhook = webhook(1, &["a"]);
        webhook.status = status;
        let id = webhook.id;
        take(&mut snapshot, webhook, true);
        assert_eq!(matched(&snapshot, "a").len(), usize::from(held));
        let found = snapshot.webhook(id).map(|w| (w.is_pending, w.is_disabled));
        assert_eq!(found, held.then_some((is_pending, is_disabled)));
    }
}

#[test]
fn the_same_version_is_not_compiled_again() {
    let mut snapshot = Snapshot::default();
    take(&mut snapshot, webhook(1, &["a"]), true);
    let first = snapshot.matches(&event("a"));
    take(&mut snapshot, webhook(1, &["a"]), true);
    assert!(Arc::ptr_eq(&first[0], &snapshot.matches(&event("a"))[0]));
}

#[test]
fn a_webhook_compiles_or_says_why_not() {
    let ok = compile(&webhook(1, &["a"]), &["k1"]);
    assert_eq!((ok.problem, ok.lacks_key), (None, false));
    assert!(ok.webhook.endpoint.is_ok());

    let mut broken = webhook(1, &["a"]);
    broken.secrets = vec![secret(2, "k1", true)];
    let mut no_secret = webhook(1, &["a"]);
    no_secret.secrets.clear();
    let mut no_url = webhook(1, &["a"]);
    no_url.config.shown.clear();
    for (webhook, keys, part, lacks_key) in [
        (
            webhook(1, &["a"]),
            &[][..],
            "\"k1\" is not in the key ring",
            true,
        ),
        (broken, &["k1"], "does not open", false),
        (no_secret, &["k1"], "no signing secret", false),
        (no_url, &["k1"], "config.url", false),
    ] {
        let compiled = compile(&webhook, keys);
        let reason = compiled.webhook.endpoint.unwrap_err();
        assert!(reason.contains(part), "{reason}");
        assert_eq!(
            (compiled.problem, compiled.lacks_key),
            (Some(reason), lacks_key)
        );
    }
}

#[test]
fn credentials_whose_key_is_missing_are_looked_for_again() {
    let mut sealed = webhook(1, &["a"]);
    let shown =
        serde_json::json!({ "type": "bearer", "credentials": { "token": { "set": true } } });
    let config = &mut sealed.config;
    config.shown.insert("authentication".to_owned(), shown);
    let compiled = compile(&sealed, &["k1"]);
    let reason = compiled.webhook.endpoint.unwrap_err();
    assert!(
        reason.contains("config.authentication.credentials"),
        "{reason}"
    );
    assert!(!compiled.lacks_key, "there is nothing to look for");
    for (key, part, lacks_key) in [
        ("k2", "its credentials cannot be opened: ", true),
        ("k1", "its credentials cannot be opened: ", false),
    ] {
        let mut sealed = sealed.clone();
        sealed.config.sealed = Some(SealedSecrets {
            key_id: key.to_owned(),
            bytes: sealed.id.to_string().into_bytes(),
        });
        // Where the key is known, it opens something that holds no credentials.
        let compiled = compile(&sealed, &["k1"]);
        let reason = compiled.webhook.endpoint.unwrap_err();
        assert!(reason.starts_with(part), "{reason}");
        assert_eq!(
            (compiled.problem, compiled.lacks_key),
            (Some(reason), lacks_key)
        );
    }
}

#[test]
fn an_address_that_would_not_be_saved_today_is_judged_when_it_is_sent_to() {
    let mut narrowed = webhook(1, &["a"]);
    let url = serde_json::json!("http://10.0.0.1/hook");
    narrowed.config.shown.insert("url".to_owned(), url);
    let compiled = compile(&narrowed, &["k1"]);
    assert_eq!(compiled.problem, None);
    assert!(compiled.webhook.endpoint.is_ok());
}

#[test]
fn a_former_secret_that_does_not_open_stops_nothing() {
    let mut rotated = webhook(1, &["a"]);
    rotated.secrets.push(secret(1, "gone", false));
    let compiled = compile(&rotated, &["k1"]);
    assert!(compiled.webhook.endpoint.is_ok());
    assert!(
        compiled.problem.is_some() && compiled.lacks_key,
        "it is told, and looked for"
    );
}

/// With how many secrets a request is signed at that time.
fn signatures(webhook: &Webhook, now: Timestamp) -> usize {
    let compiled = compile(webhook, &["k1"]);
    let data = Bytes::from_static(b"{}");
    let event = BusinessEvent {
        meta: event("a.b"),
        raw: data.clone(),
        payload: Payload::Json(data),
    };
    let delivery = DeliveryId(Uuid::nil());
    let endpoint = compiled.webhook.endpoint.unwrap();
    let request = endpoint.request(&event, delivery, 1, now).unwrap();
    let signature = request.headers["webhook-signature"].to_str().unwrap();
    signature.split(' ').count()
}

#[test]
fn a_shorter_overlap_ends_every_former_secret_and_a_longer_one_prolongs_none() {
    let at = |minutes: i64| DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes);
    let moment = TimeDelta::milliseconds(1);
    let mut webhook = webhook(1, &["a.b"]);
    let mut rotate = |overlap, minute| {
        let new = secret(1, "k1", true);
        let change = webhook.rotate_secret(new, Duration::from_mins(overlap), "t", at(minute));
        assert_eq!(change.version, webhook.meta.version);
        webhook.clone()
    };

    let first = rotate(24 * 60, 0);
    assert_eq!(signatures(&first, at(24 * 60) - moment), 2);
    assert_eq!(signatures(&first, at(24 * 60)), 1);

    let shortened = rotate(10, 60);
    assert_eq!(signatures(&shortened, at(70) - moment), 3);
    assert_eq!(signatures(&shortened, at(70)), 1);

    let longer = rotate(7 * 24 * 60, 65);
    assert_eq!(signatures(&longer, at(70) - moment), 4);
    assert_eq!(signatures(&longer, at(70)), 2);
    assert_eq!(signatures(&longer, at(65 + 7 * 24 * 60)), 1);
}
