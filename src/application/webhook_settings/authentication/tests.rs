use serde_json::{Map, json};

use crate::{
    application::{
        played::PlayedExpressions,
        webhook_settings::{SavingRules, webhook_settings},
    },
    domain::{policies::EgressPolicy, values::split_credentials},
};

use super::*;

pub(super) const SECRET: &str = "S3CRET";
const CERTIFICATE: &str = include_str!("../../../infrastructure/http/client/test_client.pem");
const KEY: &str = include_str!("../../../infrastructure/http/client/test_client.key");
const OTHER_KEY: &str = include_str!("../../../infrastructure/http/client/test_server.key");
const CA: &str = include_str!("../../../infrastructure/http/client/test_ca.pem");

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

pub(super) fn config(authentication: Value) -> Map<String, Value> {
    let mut config = map(json!({ "url": "https://example.com/hook?a=b" }));
    config.insert("authentication".to_owned(), authentication);
    config
}

fn told(faults: Faults) -> Vec<(String, String)> {
    let faults = faults.into_vec().into_iter();
    faults.map(|fault| (fault.path, fault.message)).collect()
}

/// Where something is wrong with what is given, after `config.authentication`.
pub(super) fn faults(config: &Map<String, Value>, replaces: bool) -> Vec<String> {
    let rules = SavingRules {
        egress: &EgressPolicy::default(),
        expressions: &PlayedExpressions,
        replaces,
    };
    let Err(faults) = webhook_settings(config, Some(&rules)) else {
        return Vec::new();
    };
    let faults = told(faults).into_iter();
    faults
        .map(|(path, message)| {
            assert!(!message.contains(SECRET), "{message}");
            let rest = path.strip_prefix("config.authentication");
            rest.expect("it is about the authentication").to_owned()
        })
        .collect()
}

/// As it is stored; `open` of what is sealed gives it back.
pub(super) fn stored(
    given: Map<String, Value>,
    before: Option<&(SecretConfig, Credentials)>,
) -> (SecretConfig, Credentials) {
    let none = (
        SecretConfig {
            shown: Map::new(),
            sealed: None,
        },
        Credentials::default(),
    );
    let (previous, kept) = before.unwrap_or(&none);
    let now = chrono::DateTime::UNIX_EPOCH;
    let (shown, found) = split_credentials(given, &previous.shown, kept, now);
    let sealed = (!found.0.is_empty()).then(|| SealedSecrets {
        key_id: "k1".to_owned(),
        bytes: serde_json::to_vec(&found).unwrap(),
    });
    (SecretConfig { shown, sealed }, found)
}

pub(super) fn loaded(config: &SecretConfig) -> Result<Option<Authentication>, Unauthenticated> {
    authentication(config, |sealed| Ok(sealed.bytes.clone()))
}

/// What a good configuration puts on each request: the name and the value.
fn made(authentication: Value) -> (String, String) {
    let given = config(authentication);
    assert_eq!(faults(&given, false), [""; 0]);
    let (stored, _) = stored(given, None);
    assert!(
        !Value::Object(stored.shown.clone())
            .to_string()
            .contains(SECRET)
    );
    assert!(
        webhook_settings(&stored.shown, None).is_ok(),
        "it is loaded"
    );
    let made = loaded(&stored).unwrap().expect("an authentication");
    assert!(!format!("{made:?}").contains(SECRET), "{made:?}");
    match made {
        Authentication::Header { name, value } => {
            (name.to_string(), value.to_str().unwrap().to_owned())
        }
        Authentication::Query { name, value } => (format!("?{name}"), value),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_type_makes_what_it_should() {
    let of = |kind: &str, credentials: Value| {
        let (name, value) = made(json!({ "type": kind, "credentials": credentials }));
        format!("{name}: {value}")
    };
    assert_eq!(
        of("bearer", json!({ "token": SECRET })),
        "authorization: Bearer S3CRET"
    );
    // The examples of RFC 7617.
    assert_eq!(
        of(
            "basic",
            json!({ "username": "Aladdin", "password": "open sesame" })
        ),
        "authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    );
    assert_eq!(
        of(
            "basic",
            json!({ "username": "test", "password": "123\u{a3}" })
        ),
        "authorization: Basic dGVzdDoxMjPCow=="
    );
    assert_eq!(
        of("basic", json!({ "username": "", "password": "" })),
        "authorization: Basic Og=="
    );
    assert_eq!(of("api-key", json!({ "key": SECRET })), "x-api-key: S3CRET");
    let named = json!({ "key": "Token a:b", "name": "Authorization", "in": "header" });
    assert_eq!(of("api-key", named), "authorization: Token a:b");
    let query = json!({ "key": "s=\u{e4} &", "name": "api_key", "in": "query" });
    assert_eq!(of("api-key", query), "?api_key: s=\u{e4} &");
    let query = json!({ "key": SECRET, "in": "query" });
    assert_eq!(of("api-key", query), "?X-API-Key: S3CRET");
}

#[test]
fn what_is_wrong_is_told_with_its_path() {
    let bearer = |token: Value| json!({ "type": "bearer", "credentials": { "token": token } });
    let basic = |c: Value| json!({ "type": "basic", "credentials": c });
    for (given, expected) in [
        (json!(null), &[""][..]),
        (json!("bearer"), &[""]),
        (json!({}), &[".type"]),
        (
            json!({ "type": "digest", "credentials": { "a": SECRET } }),
            &[".type"],
        ),
        (json!({ "type": 1 }), &[".type"]),
        (json!({ "type": "bearer" }), &[".credentials"]),
        (
            json!({ "type": "bearer", "credentials": SECRET }),
            &[".credentials"],
        ),
        (
            json!({ "type": "bearer", "credentials": {}, "extra": 1 }),
            &[".credentials.token", ".extra"],
        ),
        (bearer(json!("")), &[".credentials.token"]),
        (bearer(json!(null)), &[".credentials.token"]),
        (bearer(json!({ "set": true })), &[".credentials.token"]),
        (bearer(json!("a b")), &[".credentials.token"]),
        (bearer(json!("S3CRET\r\nX: y")), &[".credentials.token"]),
        (bearer(json!("\u{e4}")), &[".credentials.token"]),
        (bearer(json!("x".repeat(8193))), &[".credentials.token"]),
        (
            basic(json!({ "username": "u" })),
            &[".credentials.password"],
        ),
        (
            basic(json!({ "username": "u:v", "password": "S3CRET\n", "token": SECRET })),
            &[
                ".credentials.username",
                ".credentials.password",
                ".credentials.token",
            ],
        ),
    ] {
        assert_eq!(faults(&config(given.clone()), false), expected, "{given}");
    }
}

#[test]
fn what_is_wrong_with_an_api_key_is_told_with_its_path() {
    let key = |key: Value| json!({ "type": "api-key", "credentials": key });
    for (given, expected) in [
        (key(json!({})), &[".credentials.key"][..]),
        (key(json!({ "key": "" })), &[".credentials.key"]),
        (key(json!({ "key": "\u{e4}" })), &[".credentials.key"]),
        (key(json!({ "key": " a" })), &[".credentials.key"]),
        (
            key(json!({ "key": "a", "in": "cookie" })),
            &[".credentials.in"],
        ),
        (
            key(json!({ "key": "a", "name": "" })),
            &[".credentials.name"],
        ),
        (
            key(json!({ "key": "a", "name": "a b" })),
            &[".credentials.name"],
        ),
        (
            key(json!({ "key": "a", "name": "a:b" })),
            &[".credentials.name"],
        ),
        (
            key(json!({ "key": "a", "name": "Host" })),
            &[".credentials.name"],
        ),
        (
            key(json!({ "key": "a", "name": "webhook-id" })),
            &[".credentials.name"],
        ),
        (
            key(json!({ "key": "a", "name": "Content-Type" })),
            &[".credentials.name"],
        ),
        (
            key(json!({ "key": "a", "name": "a", "in": "query" })),
            &[".credentials.name"],
        ),
    ] {
        assert_eq!(faults(&config(given.clone()), false), expected, "{given}");
    }
}

#[test]
fn a_client_certificate_must_be_whole_and_go_over_tls() {
    let of = |certificate: &str, key: &str, ca: Option<&str>| {
        let mut credentials = map(json!({ "certificate": certificate, "privateKey": key }));
        if let Some(ca) = ca {
            credentials.insert("ca".to_owned(), json!(ca));
        }
        config(json!({ "type": "mtls", "credentials": credentials }))
    };
    let good = of(CERTIFICATE, KEY, Some(CA));
    assert_eq!(faults(&good, false), [""; 0]);
    assert_eq!(faults(&of(CERTIFICATE, KEY, None), false), [""; 0]);
    let (stored, _) = stored(good.clone(), None);
    assert!(
        !Value::Object(stored.shown.clone())
            .to_string()
            .contains("BEGIN")
    );
    let made = loaded(&stored).unwrap().unwrap();
    assert!(matches!(made, Authentication::Certificate(_)));
    assert_eq!(format!("{made:?}"), "Certificate(\"\")");

    let mut plain = good;
    plain.insert("url".to_owned(), json!("http://example.com"));
    assert_eq!(faults(&plain, false), [".credentials"]);
    let none = json!({ "type": "mtls", "credentials": {} });
    let missing = [".credentials.certificate", ".credentials.privateKey"];
    assert_eq!(faults(&config(none), false), missing);
    let not_base64 = "-----BEGIN CERTIFICATE-----\nS3CRET!\n-----END CERTIFICATE-----\n";
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let long = CERTIFICATE.repeat(40);
    for (certificate, key, ca, path) in [
        ("", KEY, None, ".certificate"),
        (SECRET, KEY, None, ".certificate"),
        (KEY, KEY, None, ".certificate"),
        (not_base64, KEY, None, ".certificate"),
        (not_der, KEY, None, ".certificate"),
        (long.as_str(), KEY, None, ".certificate"),
        (CERTIFICATE, SECRET, None, ".privateKey"),
        (CERTIFICATE, CERTIFICATE, None, ".privateKey"),
        (CERTIFICATE, OTHER_KEY, None, ".privateKey"),
        (CERTIFICATE, KEY, Some(""), ".ca"),
        (CERTIFICATE, KEY, Some(KEY), ".ca"),
        (CERTIFICATE, KEY, Some(not_der), ".ca"),
    ] {
        let expected = [format!(".credentials{path}")];
        assert_eq!(faults(&of(certificate, key, ca), false), expected);
    }
}

#[test]
fn a_header_of_the_webhook_and_its_authentication_do_not_collide() {
    let headers = json!({ "Authorization": SECRET, "x-api-key": SECRET });
    for (kind, credentials, expected) in [
        ("bearer", json!({ "token": "t" }), &[".credentials"][..]),
        (
            "basic",
            json!({ "username": "u", "password": "p" }),
            &[".credentials"],
        ),
        ("api-key", json!({ "key": "k" }), &[".credentials.name"]),
        (
            "api-key",
            json!({ "key": "k", "name": "AUTHORIZATION" }),
            &[".credentials.name"],
        ),
        ("api-key", json!({ "key": "k", "name": "x-other" }), &[]),
        ("api-key", json!({ "key": "k", "in": "query" }), &[]),
    ] {
        let mut given = config(json!({ "type": kind, "credentials": credentials }));
        given.insert("headers".to_owned(), headers.clone());
        assert_eq!(faults(&given, false), expected, "{kind} {credentials}");
    }
}

#[test]
fn credentials_that_stand_are_kept_and_must_go_with_what_is_new() {
    let first =
        json!({ "type": "api-key", "credentials": { "key": SECRET, "name": "k", "in": "query" } });
    let before = stored(config(first), None);
    let after = |given: &Map<String, Value>| {
        assert_eq!(faults(given, true), [""; 0]);
        let (after, _) = stored(given.clone(), Some(&before));
        match loaded(&after) {
            Ok(Some(Authentication::Query { name, value })) => Ok(format!("{name}={value}")),
            Ok(other) => Ok(format!("{other:?}")),
            Err(Unauthenticated::Faulty(faults)) => Err(told(faults)
                .into_iter()
                .map(|(path, _)| path)
                .collect::<Vec<_>>()),
            Err(other) => panic!("{other}"),
        }
    };
    let kept = Ok("k=S3CRET".to_owned());
    assert_eq!(after(&config(json!({ "type": "api-key" }))), kept);
    assert_eq!(
        after(&before.0.shown),
        kept,
        "what get answered is given back"
    );
    let mark = json!({ "set": true });
    let renamed =
        json!({ "type": "api-key", "credentials": { "key": mark, "name": "n", "in": mark } });
    assert_eq!(after(&config(renamed)), Ok("n=S3CRET".to_owned()));
    // Only then is it known that they do not go together.
    let at = |paths: &[&str]| {
        Err(paths
            .iter()
            .map(|p| format!("config.authentication.credentials{p}"))
            .collect())
    };
    let collides =
        json!({ "type": "api-key", "credentials": { "key": mark, "name": "a", "in": mark } });
    assert_eq!(after(&config(collides)), at(&[".name"]));
    let other_type = config(json!({ "type": "bearer" }));
    assert_eq!(after(&other_type), at(&[".token", ".key", ".name", ".in"]));
    let never_set = json!({ "type": "bearer", "credentials": { "token": mark } });
    assert_eq!(after(&config(never_set)), at(&[""]));
    let mut gone = config(json!({}));
    gone.shift_remove("authentication");
    assert_eq!(after(&gone), Ok("None".to_owned()));
}

#[test]
fn what_does_not_open_is_told_apart_from_what_is_faulty() {
    let given = json!({ "type": "bearer", "credentials": { "token": SECRET } });
    let (stored, _) = stored(config(given), None);
    let lost = authentication(&stored, |sealed| {
        Err(CipherError::UnknownKey(sealed.key_id.clone()))
    });
    assert!(
        matches!(lost, Err(Unauthenticated::Sealed(CipherError::UnknownKey(key))) if key == "k1")
    );
    let broken = authentication(&stored, |_| Ok(b"no json".to_vec()));
    assert!(matches!(
        broken,
        Err(Unauthenticated::Sealed(CipherError::Broken))
    ));
}
