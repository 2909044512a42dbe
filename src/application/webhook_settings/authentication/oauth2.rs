//! The credentials of OAuth 2.

use http::header;

use crate::{
    application::{
        endpoint::Authentication,
        oauth::{self, ClientCredentials},
        webhook_settings::{MAX_URL, http_url, url_problem},
    },
    domain::policies::{EgressPolicy, check_literal_host},
};

use super::{Beside, Given, control_characters};

/// What is wrong with a longer URL than [`MAX_URL`].
const LONG_URL: &str = "must have at most 2048 characters";
/// RFC 6749, 3.2: the secret goes over it.
const NOT_SECURE: &str = "must be an https URL, except to an address that EGRESS_ALLOW_CIDRS allows because it is not public";

/// `oauth2 {tokenUrl, clientId, clientSecret, scope?}`: client credentials. The token endpoint's address is
/// held to what a webhook's is.
pub(super) fn credentials(given: &mut Given, beside: Beside<'_>) -> Option<Authentication> {
    given.fields.need(&["tokenUrl", "clientId", "clientSecret"]);
    given.collide("", &header::AUTHORIZATION, beside);
    let token_url = given.text("tokenUrl", |url| (url.len() > MAX_URL).then_some(LONG_URL));
    let problem = token_url
        .as_deref()
        .and_then(|url| token_url_problem(url, beside));
    let is_good = problem.is_none();
    if let Some(problem) = problem {
        given.fields.fault("tokenUrl", problem);
    }
    let not_empty = |text: &str| match control_characters(text) {
        None if text.is_empty() => Some("must not be empty"),
        fault => fault,
    };
    let client_id = given.text("clientId", not_empty);
    let client_secret = given.text("clientSecret", not_empty);
    let has_scope = given.fields.has("scope");
    let scope = given.text("scope", |scope| {
        // RFC 6749, 3.3.
        let token = |token: &str| {
            let allowed = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
            !token.is_empty() && token.bytes().all(allowed)
        };
        let good = scope.split(' ').all(token);
        (!good)
            .then_some("must hold names of visible ASCII without \" and \\, one blank in between")
    });
    if given.keeps || !is_good || has_scope != scope.is_some() {
        return None;
    }
    let token_url = token_url?;
    let credentials = ClientCredentials::new(oauth::Given {
        token_url: &token_url,
        client_id: &client_id?,
        client_secret: &client_secret?,
        scope: scope.as_deref(),
    });
    if credentials.is_none() {
        given.fields.fault("tokenUrl", "cannot be requested");
    }
    credentials.map(Authentication::Token)
}

fn token_url_problem(text: &str, beside: Beside<'_>) -> Option<String> {
    let problem = url_problem(text, beside.rules);
    problem.or_else(|| {
        let url = http_url(text).ok()?;
        if url.fragment().is_some() {
            return Some("must not hold a fragment".to_owned());
        }
        // That it is not public, and is no fault above, says that it is allowed.
        let is_near = |host| check_literal_host(&EgressPolicy::default(), &host).is_err();
        let is_open = url.scheme() != "https" && !url.host().is_some_and(is_near);
        (beside.rules.is_some() && is_open).then(|| NOT_SECURE.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        application::{
            endpoint::Authentication, played::PlayedExpressions, webhook_settings::SavingRules,
        },
        domain::policies::EgressPolicy,
    };

    use super::{
        super::tests::{SECRET, config, faults, loaded, stored},
        Beside, token_url_problem,
    };

    fn of(change: &[(&str, Value)]) -> Value {
        let mut credentials = json!({
            "tokenUrl": "https://id.example.com/token", "clientId": "erp", "clientSecret": SECRET,
        });
        for (name, value) in change {
            credentials[*name] = value.clone();
        }
        json!({ "type": "oauth2", "credentials": credentials })
    }

    #[test]
    fn good_credentials_are_read_and_never_shown() {
        for scope in [None, Some("a"), Some("orders:write https://x/y")] {
            let change = scope.map(|scope| ("scope", json!(scope)));
            let given = config(of(change.as_slice()));
            assert_eq!(faults(&given, false), [""; 0]);
            let (stored, _) = stored(given, None);
            let shown = Value::Object(stored.shown.clone()).to_string();
            assert!(!shown.contains(SECRET) && !shown.contains("id.example.com"));
            let made = loaded(&stored).unwrap().expect("an authentication");
            assert!(matches!(made, Authentication::Token(_)));
            assert_eq!(format!("{made:?}"), "Token(\"\")");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_path() {
        let url = |url: &str| of(&[("tokenUrl", json!(url))]);
        for (given, path) in [
            (url(""), ".tokenUrl"),
            (url("id.example.com"), ".tokenUrl"),
            (url("ftp://id.example.com"), ".tokenUrl"),
            (url("https://u:S3CRET@id.example.com"), ".tokenUrl"),
            (url("http://10.0.0.1/token"), ".tokenUrl"),
            (url("http://2130706433/token"), ".tokenUrl"),
            (url("http://id.example.com/token"), ".tokenUrl"),
            (url("http://localhost/token"), ".tokenUrl"),
            (url("http://8.8.8.8/token"), ".tokenUrl"),
            (url("https://id.example.com:0/token"), ".tokenUrl"),
            (url("https://id.example.com/token#S3CRET"), ".tokenUrl"),
            (
                url(&format!("https://id.example.com/{}", "x".repeat(2048))),
                ".tokenUrl",
            ),
            (of(&[("tokenUrl", json!(1))]), ".tokenUrl"),
            (of(&[("clientId", json!(""))]), ".clientId"),
            (of(&[("clientId", json!("a\nb"))]), ".clientId"),
            (of(&[("clientSecret", json!(""))]), ".clientSecret"),
            (
                of(&[("clientSecret", json!("S3CRET\u{0}"))]),
                ".clientSecret",
            ),
            (
                of(&[("clientSecret", json!("x".repeat(8193)))]),
                ".clientSecret",
            ),
            (of(&[("scope", json!(""))]), ".scope"),
            (of(&[("scope", json!("a  b"))]), ".scope"),
            (of(&[("scope", json!("a\"b"))]), ".scope"),
            (of(&[("scope", json!("\u{e4}"))]), ".scope"),
            (of(&[("audience", json!("x"))]), ".audience"),
        ] {
            let expected = [format!(".credentials{path}")];
            assert_eq!(faults(&config(given), false), expected, "{path}");
        }
        let none = json!({ "type": "oauth2", "credentials": {} });
        let missing = [".tokenUrl", ".clientId", ".clientSecret"];
        let missing = missing.map(|path| format!(".credentials{path}"));
        assert_eq!(faults(&config(none), false), missing);
        let mut given = config(of(&[]));
        given.insert("headers".to_owned(), json!({ "Authorization": SECRET }));
        assert_eq!(faults(&given, false), [".credentials"]);
    }

    #[test]
    fn a_token_endpoint_without_tls_is_one_that_is_near() {
        let egress = EgressPolicy::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let rules = SavingRules {
            egress: &egress,
            expressions: &PlayedExpressions,
            replaces: false,
        };
        let beside = Beside {
            url: None,
            headers: &[],
            rules: Some(&rules),
        };
        for (url, is_good) in [
            ("http://10.1.2.3:8080/token", true),
            ("https://10.1.2.3/token", true),
            ("http://192.168.0.1/token", false),
            ("http://8.8.8.8/token", false),
            ("http://id.example.com/token", false),
        ] {
            assert_eq!(token_url_problem(url, beside).is_none(), is_good, "{url}");
        }
    }

    #[test]
    fn credentials_that_stand_are_kept_field_by_field() {
        let before = stored(config(of(&[("scope", json!("a"))])), None);
        let mark = json!({ "set": true });
        let given = config(of(&[("clientSecret", mark.clone()), ("scope", mark)]));
        assert_eq!(faults(&given, true), [""; 0]);
        let (_, after) = stored(given, Some(&before));
        assert_eq!(after, before.1);
        let bare = config(json!({ "type": "oauth2" }));
        assert_eq!(faults(&bare, true), [""; 0]);
        let (kept, _) = stored(bare, Some(&before));
        assert!(matches!(loaded(&kept), Ok(Some(Authentication::Token(_)))));
    }
}
