//! Reads the settings of a webhook from its configuration: when it is saved, and when it is loaded.

mod authentication;
mod batch;
mod response;

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use url::{Host, Url};

use crate::domain::{
    entities::{BodyFormat, HttpMethod, OnExhausted, Ordering, Signing, WebhookSettings},
    policies::{EgressPolicy, RateLimit, check_literal_host},
    values::Faults,
};

use super::{
    commands::{
        config_fields::{headers, retry_policy, timeout},
        fields::{Fields, Text},
    },
    endpoint::is_reserved_header,
    ports::{Expression, Expressions, Scope},
};

use authentication::Beside;
pub use authentication::{Unauthenticated, authentication};

/// Longest URL, in characters.
pub(super) const MAX_URL: usize = 2048;
/// Longest name of a host, and longest part of it between dots, in bytes of its ASCII form (RFC 1035).
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;
/// How long an attempt may take when nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// What the contract names and this version cannot do yet.
/// How many requests one worker may have under way at an endpoint.
const MAX_IN_FLIGHT: RangeInclusive<i64> = 1..=1_000;

/// What a configuration is held to when it is saved, besides its form.
#[derive(Debug, Clone, Copy)]
pub struct SavingRules<'a> {
    /// Where deliveries may go.
    pub egress: &'a EgressPolicy,
    /// Compiles filters and transforms.
    pub expressions: &'a dyn Expressions,
    /// Whether it replaces a configuration, whose credentials stay where it gives none.
    pub replaces: bool,
}

/// Reads `config` (its shown form will do) and lists everything that is wrong with it under `config.…`.
/// Literal addresses and expressions are checked by `rules` when it is saved; what was saved under other
/// rules is loaded without (`None`): the client judges addresses with each request, and who needs the
/// expressions compiles them with [`compiled`].
///
/// # Errors
/// All faults: missing, unknown and unsupported fields, limits, refused literal addresses.
pub fn webhook_settings(
    config: &Map<String, Value>,
    rules: Option<&SavingRules<'_>>,
) -> Result<WebhookSettings, Faults> {
    let mut fields = Fields::new(config.clone(), "config");
    // Before the others are read: it goes with some of them only.
    let batch = batch::read(&mut fields, config);
    fields.need(&["url"]);
    let url = fields.text("url", Text::Line(MAX_URL));
    if let Some(problem) = url.as_deref().and_then(|url| url_problem(url, rules)) {
        fields.fault("url", problem);
    }
    let method = fields.choice("method", &HttpMethod::ALL, |method| method.as_str());
    let headers = headers(&mut fields, |name| is_reserved_header(name.as_str()));
    let beside = Beside {
        url: url.as_deref(),
        headers: headers.as_deref().unwrap_or_default(),
        rules,
    };
    let partial = rules.is_none_or(|rules| rules.replaces);
    authentication::read(&mut fields, beside, partial);
    let timeout = timeout(&mut fields);
    let retry = retry_policy(&mut fields);
    let format = fields.choice("format", &BodyFormat::ALL, |format| format.as_str());
    fields.choice("signing", &Signing::ALL, |signing| signing.as_str());
    let filter = expression(&mut fields, "filter", FILTER, rules);
    let transform = expression(&mut fields, "transform", TRANSFORM, rules);
    let ordering = ordering(&mut fields, rules);
    let rate_limit = rate_limit(&mut fields);
    let max_in_flight = fields.integer("maxInFlight", MAX_IN_FLIGHT);
    let response = response::read(&mut fields, rules);
    if transform.is_some() && format == Some(BodyFormat::Raw) {
        let message =
            "cannot be used with the format raw, which is the message as it was published";
        fields.fault("transform", message);
    }
    let settings = WebhookSettings {
        url: url.unwrap_or_default(),
        method: method.unwrap_or(HttpMethod::Post),
        headers: headers.unwrap_or_default(),
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
        retry: retry.unwrap_or_default(),
        format: format.unwrap_or(BodyFormat::Standard),
        ordering,
        batch,
        response,
        filter,
        transform,
        rate_limit,
        max_in_flight: max_in_flight.and_then(|number| u32::try_from(number).ok()),
    };
    fields.finish().into_result(settings)
}

/// What an expression may speak of, and what it is to yield; nothing is anything.
type Purpose = (Scope, Option<(&'static [&'static str], &'static str)>);

const FILTER: Purpose = (Scope::Event, Some((&["a boolean"], "true or false")));
const TRANSFORM: Purpose = (Scope::Event, None);
const KEY: Purpose = (
    Scope::Event,
    Some((
        &["a text", "a number", "a boolean"],
        "a text, a number or a boolean",
    )),
);

/// An expression, which must compile when it is saved, and not always be what is never wanted.
fn expression(
    fields: &mut Fields,
    name: &'static str,
    (scope, wanted): Purpose,
    rules: Option<&SavingRules<'_>>,
) -> Option<String> {
    let Value::String(text) = fields.value(name)? else {
        fields.fault(name, "must be a string that holds an expression");
        return None;
    };
    match rules.map(|r| r.expressions.compile(&text, scope)) {
        Some(Err(fault)) => fields.fault(name, fault.to_string()),
        Some(Ok(compiled)) => {
            if let (Some((kinds, wanted)), Some(always)) = (wanted, compiled.always())
                && !kinds.contains(&always)
            {
                fields.fault(name, format!("must be {wanted}, but is always {always}"));
            }
        }
        None => {}
    }
    Some(text)
}

/// `ordering {key, onExhausted}`: the key is an expression, a constant too.
fn ordering(fields: &mut Fields, rules: Option<&SavingRules<'_>>) -> Option<Ordering> {
    fields.object("ordering", |ordering| {
        ordering.need(&["key"]);
        let key = expression(ordering, "key", KEY, rules);
        let on_exhausted = ordering.choice("onExhausted", &OnExhausted::ALL, |one| one.as_str());
        Some(Ordering {
            key: key?,
            on_exhausted: on_exhausted.unwrap_or(OnExhausted::Continue),
        })
    })
}

/// `rateLimit {requests, per}`
fn rate_limit(fields: &mut Fields) -> Option<RateLimit> {
    let (requests, per_ms) = (RateLimit::REQUESTS, RateLimit::PER_MS);
    fields.object("rateLimit", |limit| {
        limit.need(&["requests", "per"]);
        let requests = i64::from(*requests.start())..=i64::from(*requests.end());
        let requests = limit.integer("requests", requests);
        let per_ms = u64::from(*per_ms.start())..=u64::from(*per_ms.end());
        let per = limit.duration("per", per_ms);
        Some(RateLimit::new(u32::try_from(requests?).ok()?, per?))
    })
}

/// The rate limit of a configuration; none where it cannot be read.
pub fn rate_limit_of(config: &Map<String, Value>) -> Option<RateLimit> {
    rate_limit(&mut Fields::new(config.clone(), "config"))
}

/// Compiles a saved expression, if there is one.
///
/// # Errors
/// Says what is wrong with it; possible only when it was saved under other rules.
pub fn compiled(
    expressions: &dyn Expressions,
    name: &str,
    text: Option<&str>,
    scope: Scope,
) -> Result<Option<Arc<dyn Expression>>, String> {
    let compiled = text.map(|text| expressions.compile(text, scope));
    let compiled = compiled.transpose();
    compiled.map_err(|fault| format!("its {name} cannot be used: {fault}"))
}

/// How new secrets of a webhook sign: `signing` of its configuration, whatever else is wrong with it.
pub fn signing(config: &Map<String, Value>) -> Signing {
    let text = config.get("signing").and_then(Value::as_str);
    text.and_then(Signing::parse).unwrap_or_default()
}

/// What is wrong with an address to send requests to, if anything is.
fn url_problem(text: &str, rules: Option<&SavingRules<'_>>) -> Option<String> {
    let url = match http_url(text) {
        Ok(url) => url,
        Err(problem) => return Some(problem),
    };
    let egress = rules?.egress;
    if let Some(problem) = host_problem(&url) {
        return Some(problem.to_owned());
    }
    check_literal_host(egress, &url.host()?)
        .err()
        .map(|refused| refused.to_string())
}

/// What keeps a host or port from ever being reached: no such name can be looked up (RFC 1035), nobody
/// listens on port 0.
pub(super) fn host_problem(url: &Url) -> Option<&'static str> {
    if url.port() == Some(0) {
        return Some("must not name port 0");
    }
    let Some(Host::Domain(host)) = url.host() else {
        return None;
    };
    // The dot at the end of a full name is none of its letters.
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > MAX_HOST {
        return Some("must name a host of at most 253 characters");
    }
    let mut labels = name.split('.').map(str::len);
    if labels.clone().any(|length| length == 0) {
        return Some("must name a host without empty parts between dots");
    }
    labels
        .any(|length| length > MAX_LABEL)
        .then_some("must name a host whose parts between dots have at most 63 characters")
}

/// Reads an `http` or `https` URL with a host and without user or password.
pub(super) fn http_url(text: &str) -> Result<Url, String> {
    if text.chars().any(char::is_whitespace) {
        return Err("must not hold white space".to_owned());
    }
    let url = Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://".to_owned());
    }
    if url.host().is_none() {
        return Err("must name a host".to_owned());
    }
    if has_userinfo(&url) {
        return Err("must not hold a user or password".to_owned());
    }
    Ok(url)
}

/// Whether a URL holds a user or a password.
pub(super) fn has_userinfo(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests;
