//! The client credentials of OAuth 2: the request for a token, and what comes back.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use ring::digest;
use serde_json::{Map, Value};
use url::form_urlencoded::{self, byte_serialize};

use crate::application::{
    endpoint::USER_AGENT,
    ports::{CutAnswer, HttpAnswer, OutboundRequest},
};

/// How much of a token endpoint's answer is read: 64 KiB.
const MAX_ANSWER: usize = 64 * 1024;
/// Longest token, in bytes: what a header can carry.
const MAX_TOKEN: usize = 16 * 1024;
/// How long a token is good for when its endpoint does not say.
const DEFAULT_LIFE: Duration = Duration::from_mins(5);
/// However short or long it is said to be good for, it is used for so long.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);
const LONGEST_LIFE: Duration = Duration::from_hours(24);
const FORM: &str = "application/x-www-form-urlencoded";
/// The errors of RFC 6749, and those that are commonly added. Others are not told: nobody knows what a
/// stranger writes there.
const ERRORS: [&str; 9] = [
    "access_denied",
    "invalid_client",
    "invalid_grant",
    "invalid_request",
    "invalid_scope",
    "server_error",
    "temporarily_unavailable",
    "unauthorized_client",
    "unsupported_grant_type",
];

/// What a webhook gets tokens with (RFC 6749, 4.4). Never printed.
#[derive(Clone)]
pub struct ClientCredentials {
    uri: Uri,
    authorization: HeaderValue,
    body: Bytes,
    fingerprint: [u8; 32],
}

/// What is given to make them of.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// The token endpoint.
    pub token_url: &'a str,
    /// Who asks.
    pub client_id: &'a str,
    /// What only that one knows.
    pub client_secret: &'a str,
    /// What for.
    pub scope: Option<&'a str>,
}

impl fmt::Debug for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given").finish_non_exhaustive()
    }
}

/// A token as it was answered.
pub(super) struct GotToken {
    /// Visible ASCII.
    pub(super) token: String,
    pub(super) life: Duration,
}

impl ClientCredentials {
    /// `None` when the URL cannot be requested.
    pub fn new(given: Given<'_>) -> Option<Self> {
        let url = url::Url::parse(given.token_url).ok()?;
        // RFC 6749, 2.3.1: each is encoded as in a form before they are put together.
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let both = format!(
            "{}:{}",
            encoded(given.client_id),
            encoded(given.client_secret)
        );
        let authorization = format!("Basic {}", STANDARD.encode(both));
        let mut authorization = HeaderValue::try_from(authorization).ok()?;
        authorization.set_sensitive(true);
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.append_pair("grant_type", "client_credentials");
        if let Some(scope) = given.scope {
            body.append_pair("scope", scope);
        }
        let body = body.finish();
        Some(Self {
            uri: url.as_str().parse().ok()?,
            fingerprint: fingerprint([
                url.as_str().as_bytes(),
                authorization.as_bytes(),
                body.as_bytes(),
            ]),
            authorization,
            body: body.into(),
        })
    }

    /// Differs for all others. It tells who knows it something about the secret.
    pub(super) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The request for a token.
    pub(super) fn request(&self, timeout: Duration) -> OutboundRequest {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(header::AUTHORIZATION, self.authorization.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(FORM));
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::ACCEPT, json);
        let agent = HeaderValue::from_static(USER_AGENT);
        headers.insert(header::USER_AGENT, agent);
        OutboundRequest {
            uri: self.uri.clone(),
            method: Method::POST,
            headers,
            body: Bytes::clone(&self.body),
            timeout,
            whole_up_to: Some(MAX_ANSWER),
            identity: None,
            grant: None,
        }
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("host", &self.uri.host())
            .finish_non_exhaustive()
    }
}

/// Each part with its length, so that none can be taken for a piece of another.
fn fingerprint(parts: [&[u8]; 3]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(context.finish().as_ref());
    fingerprint
}

/// Reads a token endpoint's answer.
///
/// # Errors
/// What is wrong with it, for people; never a part of it, besides known names of errors.
pub(super) fn read_answer(answer: &HttpAnswer) -> Result<GotToken, String> {
    let whole = answer.whole.as_ref().and_then(|whole| whole.as_ref().ok());
    let whole = whole.map_or(&[][..], |whole| whole);
    let members = serde_json::from_slice::<Map<String, Value>>(whole);
    if !(200..300).contains(&answer.status) {
        let error = members
            .as_ref()
            .ok()
            .and_then(|members| members.get("error"));
        let known = error.and_then(Value::as_str);
        let known = known.filter(|error| ERRORS.contains(error));
        let known = known.map(|error| format!(" ({error})")).unwrap_or_default();
        let status = answer.status;
        return Err(format!("HTTP {status} from the token endpoint{known}"));
    }
    let fault = |what: &str| Err(format!("the token endpoint's answer {what}"));
    match answer.whole {
        Some(Err(CutAnswer::TooLong(_))) => return fault("is too large"),
        Some(Err(CutAnswer::BrokenOff)) => return fault("broke off"),
        _ => {}
    }
    let Ok(mut members) = members else {
        return fault("is no JSON object");
    };
    let Some(Value::String(token)) = members.remove("access_token") else {
        return fault("has no access_token");
    };
    let kind = members.get("token_type").and_then(Value::as_str);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
        return fault("has another token_type than Bearer");
    }
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return fault("has an access_token that cannot go in a header");
    }
    if token.len() > MAX_TOKEN {
        return fault("has an access_token that is too long");
    }
    let life = members.get("expires_in").and_then(seconds);
    Ok(GotToken {
        token,
        life: life.map_or(DEFAULT_LIFE, |life| life.clamp(SHORTEST_LIFE, LONGEST_LIFE)),
    })
}

/// Some write the number as a text.
fn seconds(value: &Value) -> Option<Duration> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    let number = number.clamp(0.0, LONGEST_LIFE.as_secs_f64());
    Duration::try_from_secs_f64(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: Given<'_> = Given {
        token_url: "https://id.example.com/token?a=b",
        client_id: "erp worker",
        client_secret: "c&n%ry:+\u{e4}",
        scope: None,
    };

    #[test]
    fn the_request_is_that_of_the_rfc() {
        let request = ClientCredentials::new(GIVEN).unwrap();
        let request = request.request(Duration::from_secs(3));
        assert_eq!(request.method, Method::POST);
        assert_eq!(request.uri, "https://id.example.com/token?a=b");
        assert_eq!(request.headers["content-type"], FORM);
        assert_eq!(request.headers["accept"], "application/json");
        assert_eq!(request.body, "grant_type=client_credentials");
        let authorization = request.headers["authorization"].to_str().unwrap();
        let basic = authorization.strip_prefix("Basic ").unwrap();
        let basic = String::from_utf8(STANDARD.decode(basic).unwrap()).unwrap();
        assert_eq!(basic, "erp+worker:c%26n%25ry%3A%2B%C3%A4");
        assert!(request.headers["authorization"].is_sensitive());

        let scoped = ClientCredentials::new(Given {
            scope: Some("orders:write a/b"),
            ..GIVEN
        });
        let body = scoped.unwrap().request(Duration::ZERO).body;
        let expected = "grant_type=client_credentials&scope=orders%3Awrite+a%2Fb";
        assert_eq!(body, expected);
    }

    #[test]
    fn every_part_of_the_credentials_is_in_the_fingerprint_and_none_in_the_debug_text() {
        let of = |given| ClientCredentials::new(given).unwrap().fingerprint;
        let others = [
            Given {
                token_url: "https://id.example.com/token",
                ..GIVEN
            },
            Given {
                client_id: "erp",
                ..GIVEN
            },
            Given {
                client_secret: "other",
                ..GIVEN
            },
            Given {
                scope: Some("a"),
                ..GIVEN
            },
        ];
        assert_eq!(of(GIVEN), of(GIVEN));
        for other in others {
            assert_ne!(of(other), of(GIVEN));
        }
        let text = format!("{:?}", ClientCredentials::new(GIVEN).unwrap());
        assert!(!text.contains("Basic") && !text.contains("c&n"), "{text}");
    }

    fn answer(status: u16, body: &str) -> Result<(String, u64), String> {
        let whole = match body.len() {
            ..=MAX_ANSWER => Ok(Bytes::copy_from_slice(body.as_bytes())),
            _ => Err(CutAnswer::TooLong(MAX_ANSWER)),
        };
        let answer = HttpAnswer {
            status,
            retry_after: None,
            body: String::new(),
            whole: Some(whole),
        };
        read_answer(&answer).map(|got| (got.token, got.life.as_secs()))
    }

    #[test]
    fn a_good_answer_gives_the_token_and_its_life_within_bounds() {
        for (more, life) in [
            ("", 300),
            (r#","expires_in":null"#, 300),
            (r#","expires_in":"soon""#, 300),
            (r#","expires_in":[]"#, 300),
            (r#","expires_in":3600"#, 3600),
            (r#","expires_in":"3600""#, 3600),
            (r#","expires_in":59.9"#, 59),
            (r#","expires_in":0"#, 1),
            (r#","expires_in":-5"#, 1),
            (r#","expires_in":1e300"#, 86400),
            (r#","expires_in":"NaN""#, 300),
            (r#","scope":"x","refresh_token":"y","expires_in":60"#, 60),
        ] {
            let body = format!(r#"{{"access_token":"a.b-c~/+=","token_type":"bearer"{more}}}"#);
            assert_eq!(
                answer(200, &body),
                Ok(("a.b-c~/+=".to_owned(), life)),
                "{more}"
            );
        }
    }

    #[test]
    fn a_bad_answer_is_told_without_a_word_of_it() {
        let of = |problem: &str| format!("the token endpoint's answer {problem}");
        let long = format!(
            r#"{{"access_token":"{}","token_type":"Bearer"}}"#,
            "C".repeat(MAX_TOKEN + 1)
        );
        for (status, body, expected) in [
            (200, "CANARY", of("is no JSON object")),
            (200, "[\"CANARY\"]", of("is no JSON object")),
            (200, "{}", of("has no access_token")),
            (200, r#"{"access_token":7}"#, of("has no access_token")),
            (
                200,
                r#"{"access_token":"CANARY"}"#,
                of("has another token_type than Bearer"),
            ),
            (
                200,
                r#"{"access_token":"CANARY","token_type":"mac"}"#,
                of("has another token_type than Bearer"),
            ),
            (
                200,
                r#"{"access_token":"CAN\r\nARY","token_type":"Bearer"}"#,
                of("has an access_token that cannot go in a header"),
            ),
            (
                200,
                r#"{"access_token":"","token_type":"Bearer"}"#,
                of("has an access_token that cannot go in a header"),
            ),
            (200, &long, of("has an access_token that is too long")),
            (200, &"C".repeat(MAX_ANSWER + 1), of("is too large")),
            (
                401,
                r#"{"error":"invalid_client","error_description":"CANARY"}"#,
                "HTTP 401 from the token endpoint (invalid_client)".to_owned(),
            ),
            (
                400,
                r#"{"error":"CANARY"}"#,
                "HTTP 400 from the token endpoint".to_owned(),
            ),
            (302, "", "HTTP 302 from the token endpoint".to_owned()),
            (503, "CANARY", "HTTP 503 from the token endpoint".to_owned()),
        ] {
            assert_eq!(answer(status, body), Err(expected), "{status} {body:.40}");
        }
    }
}
