//! `authentication {type, credentials}`: how a webhook shows its endpoint who it is.
//!
//! The credentials are given plain, but what is stored of them is sealed, and the configuration shows
//! marks in their place. So they are read twice when they are saved: as they are given, where marks stand
//! for what is kept; and whole, as they are stored. When a webhook is loaded they are read whole.

mod oauth2;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, header};
use serde_json::Value;
use url::Url;

use crate::{
    application::{
        client_identity::ClientIdentity,
        commands::{
            config_fields::{headers, is_field_value},
            fields::{Fields, Text},
        },
        endpoint::{Authentication, is_reserved_header},
        ports::CipherError,
    },
    domain::values::{Credentials, Faults, SealedSecrets, SecretConfig, is_credential_mark},
};

use super::{MAX_URL, SavingRules};

/// Longest credential, in bytes: tokens of identity providers take some kilobytes.
const MAX_SECRET: usize = 8 * 1024;
/// Longest chain of certificates, in bytes of PEM.
const MAX_PEM: usize = 16 * 1024;
/// Longest name of a header or parameter that holds a key, in bytes.
const MAX_NAME: usize = 100;
/// Where a key goes when nothing is said.
const DEFAULT_NAME: &str = "X-API-Key";

/// The field.
const FIELD: &str = "authentication";
/// Where its credentials are kept.
const PATH: &str = "authentication.credentials";

/// Why a stored webhook has nothing to authenticate with.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// The credentials do not open.
    #[error("its credentials cannot be opened: {0}")]
    Sealed(CipherError),
    /// They do not go with the rest of the configuration. Holds no secret.
    #[error("its authentication cannot be used")]
    Faulty(Faults),
}

/// What a webhook authenticates with, of its stored configuration; `open` opens what is sealed, and is
/// called only if there is something to authenticate with.
///
/// # Errors
/// The credentials do not open, or do not make an authentication.
pub fn authentication(
    config: &SecretConfig,
    open: impl FnOnce(&SealedSecrets) -> Result<Vec<u8>, CipherError>,
) -> Result<Option<Authentication>, Unauthenticated> {
    if !config.shown.contains_key(FIELD) {
        return Ok(None);
    }
    let opened = config.sealed.as_ref().map(|sealed| {
        let plain = open(sealed)?;
        serde_json::from_slice::<Credentials>(&plain).map_err(|_| CipherError::Broken)
    });
    let opened = opened.transpose().map_err(Unauthenticated::Sealed)?;
    let mut whole = config.shown.clone();
    if let Some(Value::Object(given)) = whole.get_mut(FIELD) {
        given.shift_remove("credentials");
        if let Some(plain) = opened.and_then(|mut opened| opened.0.remove(PATH)) {
            given.insert("credentials".to_owned(), Value::Object(plain));
        }
    }
    let mut fields = Fields::new(whole, "config");
    let url = fields.text("url", Text::Line(MAX_URL));
    let headers = headers(&mut fields, |_| false).unwrap_or_default();
    let beside = Beside {
        url: url.as_deref(),
        headers: &headers,
        rules: None,
    };
    let made = read(&mut fields, beside, false);
    let made = fields.finish_open().into_result(made);
    made.map_err(Unauthenticated::Faulty)
}

/// What else a request is made of, with which an authentication must not collide.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    pub(super) url: Option<&'a str>,
    /// Names in lower case.
    pub(super) headers: &'a [(String, String)],
    /// What it is held to when it is saved.
    pub(super) rules: Option<&'a SavingRules<'a>>,
}

/// Reads `authentication`. With `partial`, credentials may be left out or be marks, as what stands for
/// them is kept elsewhere; there is no authentication then, and no fault.
pub(super) fn read(
    fields: &mut Fields,
    beside: Beside<'_>,
    partial: bool,
) -> Option<Authentication> {
    let map = fields.map(FIELD)?;
    let mut inner = Fields::new(map, "config.authentication");
    inner.need(&["type"]);
    let kind = inner.choice("type", &Kind::ALL, |kind| kind.as_str());
    let made = match kind {
        Some(kind) => credentials(&mut inner, kind, beside, partial),
        // Nobody knows what they should hold.
        None => inner.value("credentials").and(None),
    };
    fields.absorb(inner.finish());
    made
}

#[derive(Clone, Copy)]
enum Kind {
    Bearer,
    Basic,
    ApiKey,
    OAuth2,
    Mtls,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Bearer,
        Self::Basic,
        Self::ApiKey,
        Self::OAuth2,
        Self::Mtls,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::ApiKey => "api-key",
            Self::OAuth2 => "oauth2",
            Self::Mtls => "mtls",
        }
    }
}

fn credentials(
    inner: &mut Fields,
    kind: Kind,
    beside: Beside<'_>,
    partial: bool,
) -> Option<Authentication> {
    if !partial {
        inner.need(&["credentials"]);
    }
    let map = inner.map("credentials")?;
    let mut given = Given {
        fields: Fields::new(map, "config.authentication.credentials"),
        partial,
        keeps: false,
    };
    let made = match kind {
        Kind::Basic => basic(&mut given, beside),
        Kind::ApiKey => api_key(&mut given, beside),
        Kind::Mtls => mtls(&mut given, beside),
        Kind::OAuth2 => oauth2::credentials(&mut given, beside),
        Kind::Bearer => bearer(&mut given, beside),
    };
    inner.absorb(given.fields.finish());
    made
}

/// Credentials as they are given.
struct Given {
    fields: Fields,
    /// Whether marks may stand for what is kept.
    partial: bool,
    /// Whether one does.
    keeps: bool,
}

impl Given {
    /// A text that `problem` finds nothing wrong with.
    fn text(
        &mut self,
        name: &'static str,
        problem: impl FnOnce(&str) -> Option<&'static str>,
    ) -> Option<String> {
        let too_long = "must have at most 8192 bytes";
        self.any_text(name, |text| match problem(text) {
            None if text.len() > MAX_SECRET => Some(too_long),
            fault => fault,
        })
    }

    /// Certificates or a key; what is in it is looked at together with the others.
    fn pem(&mut self, name: &'static str) -> Option<String> {
        let too_long = "must have at most 16384 bytes";
        self.any_text(name, |text| (text.len() > MAX_PEM).then_some(too_long))
    }

    fn any_text(
        &mut self,
        name: &'static str,
        problem: impl FnOnce(&str) -> Option<&'static str>,
    ) -> Option<String> {
        let fault = match self.fields.value(name)? {
            Value::String(text) => match problem(&text) {
                None => return Some(text),
                fault => fault,
            },
            mark if self.partial && is_credential_mark(&mark) => {
                self.keeps = true;
                None
            }
            _ => Some("must be a string"),
        };
        if let Some(message) = fault {
            self.fields.fault(name, message);
        }
        None
    }

    /// The header that the credentials make, unless the webhook has one of that name.
    fn header(
        &mut self,
        at: &str,
        name: HeaderName,
        value: Option<String>,
        beside: Beside<'_>,
    ) -> Option<Authentication> {
        self.collide(at, &name, beside);
        let value = HeaderValue::try_from(value?).ok()?;
        Some(Authentication::Header { name, value })
    }

    /// A fault if the webhook has a header of that name.
    fn collide(&mut self, at: &str, name: &HeaderName, beside: Beside<'_>) {
        if beside
            .headers
            .iter()
            .any(|(other, _)| other == name.as_str())
        {
            let message = format!("sets the header {name}, which config.headers sets too");
            self.fields.fault(at, message);
        }
    }
}

/// `bearer {token}`
fn bearer(given: &mut Given, beside: Beside<'_>) -> Option<Authentication> {
    given.fields.need(&["token"]);
    let token = given.text("token", |token| {
        let good = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
        (!good).then_some("must hold visible ASCII only, without blanks")
    });
    let value = token.map(|token| format!("Bearer {token}"));
    given.header("", header::AUTHORIZATION, value, beside)
}

/// `basic {username, password}`: either may be empty, as some take a key as the other (RFC 7617).
fn basic(given: &mut Given, beside: Beside<'_>) -> Option<Authentication> {
    given.fields.need(&["username", "password"]);
    let username = given.text("username", |name| match control_characters(name) {
        None if name.contains(':') => Some("must not hold a colon"),
        fault => fault,
    });
    let password = given.text("password", control_characters);
    let value = username.zip(password).map(|(username, password)| {
        let encoded = STANDARD.encode(format!("{username}:{password}"));
        format!("Basic {encoded}")
    });
    given.header("", header::AUTHORIZATION, value, beside)
}

/// `api-key {key, name = "X-API-Key", in: header|query}`
fn api_key(given: &mut Given, beside: Beside<'_>) -> Option<Authentication> {
    given.fields.need(&["key"]);
    let key = given.text("key", |key| match control_characters(key) {
        None if key.is_empty() => Some("must not be empty"),
        fault => fault,
    });
    let name = given.text("name", |name| {
        let good =
            (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        (!good).then_some("must be 1 to 100 visible ASCII characters without blanks")
    });
    let place = given.text("in", |place| {
        let good = matches!(place, "header" | "query");
        (!good).then_some("must be one of: header, query")
    });
    if given.keeps {
        return None;
    }
    let name = name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
    if place.as_deref() == Some("query") {
        key_in_query(given, name, key, beside)
    } else {
        key_in_header(given, &name, key, beside)
    }
}

/// `mtls {certificate, privateKey, ca?}`, in PEM
fn mtls(given: &mut Given, beside: Beside<'_>) -> Option<Authentication> {
    given.fields.need(&["certificate", "privateKey"]);
    if beside.url.is_some_and(|url| !is_https(url)) {
        given.fields.fault("", "goes with an https URL only");
    }
    let certificate = given.pem("certificate");
    let private_key = given.pem("privateKey");
    let has_ca = given.fields.has("ca");
    let ca = given.pem("ca");
    if given.keeps || has_ca != ca.is_some() {
        return None;
    }
    match ClientIdentity::from_pem(&certificate?, &private_key?, ca.as_deref()) {
        Ok(identity) => Some(Authentication::Certificate(Arc::new(identity))),
        Err((field, message)) => {
            given.fields.fault(field, message);
            None
        }
    }
}

fn is_https(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.scheme() == "https")
}

fn key_in_header(
    given: &mut Given,
    name: &str,
    key: Option<String>,
    beside: Beside<'_>,
) -> Option<Authentication> {
    if key.as_deref().is_some_and(|key| !is_field_value(key)) {
        let message = "must hold visible ASCII, and blanks in between only, to go in a header";
        given.fields.fault("key", message);
        return None;
    }
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        given.fields.fault("name", "is no valid header name");
        return None;
    };
    if is_reserved_header(name.as_str()) || name == header::CONTENT_TYPE {
        let message = "is set by the worker and cannot be overridden";
        given.fields.fault("name", message);
        return None;
    }
    given.header("name", name, key, beside)
}

fn key_in_query(
    given: &mut Given,
    name: String,
    key: Option<String>,
    beside: Beside<'_>,
) -> Option<Authentication> {
    let url = beside.url.and_then(|url| Url::parse(url).ok());
    if url.is_some_and(|url| url.query_pairs().any(|(other, _)| other == name)) {
        let message = "is the name of a parameter that config.url has too";
        given.fields.fault("name", message);
    }
    Some(Authentication::Query { name, value: key? })
}

fn control_characters(text: &str) -> Option<&'static str> {
    let found = text.chars().any(char::is_control);
    found.then_some("must not hold control characters")
}

#[cfg(test)]
mod tests;
