//! What a request shows to the endpoint so that it is let in.

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use url::Url;

use crate::{
    application::{
        client_identity::ClientIdentity,
        oauth::{ClientCredentials, Grant},
    },
    domain::values::WebhookId,
};

/// What every request of a webhook carries. Its value is secret and never printed.
#[derive(Clone)]
pub enum Authentication {
    /// A header; takes the place of one that is there.
    Header {
        /// In lower case; not one that the worker sets.
        name: HeaderName,
        /// As it is sent.
        value: HeaderValue,
    },
    /// One more parameter in the query of the URL.
    Query {
        /// Not yet encoded.
        name: String,
        /// Not yet encoded.
        value: String,
    },
    /// The connection: mutual TLS.
    Certificate(Arc<ClientIdentity>),
    /// A token, which is got with these when a request is sent: OAuth 2.
    Token(ClientCredentials),
}

impl Authentication {
    /// The certificate to connect with, if it is one.
    pub(super) fn identity(&self) -> Option<Arc<ClientIdentity>> {
        match self {
            Self::Certificate(identity) => Some(Arc::clone(identity)),
            _ => None,
        }
    }

    /// What gets the tokens of a webhook, if it is one.
    pub(super) fn grant(&self, webhook: WebhookId) -> Option<Arc<Grant>> {
        match self {
            Self::Token(credentials) => Some(Arc::new(Grant::new(webhook, credentials.clone()))),
            _ => None,
        }
    }

    /// Puts it on what all requests begin with. `url` is what `uri` was made of.
    ///
    /// # Errors
    /// The URL cannot take one more parameter; never holds it.
    pub(super) fn apply(
        self,
        url: &str,
        uri: &mut Uri,
        headers: &mut HeaderMap,
    ) -> Result<(), String> {
        match self {
            Self::Header { name, mut value } => {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
            Self::Query { name, value } => {
                let fault = || "the URL cannot take the API key".to_owned();
                let mut url = Url::parse(url).map_err(|_| fault())?;
                url.query_pairs_mut().append_pair(&name, &value);
                *uri = url.as_str().parse().map_err(|_| fault())?;
            }
            Self::Certificate(_) | Self::Token(_) => {}
        }
        Ok(())
    }
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, name) = match self {
            Self::Header { name, .. } => ("Header", name.as_str()),
            Self::Query { name, .. } => ("Query", name.as_str()),
            Self::Certificate(_) => ("Certificate", ""),
            Self::Token(_) => ("Token", ""),
        };
        f.debug_tuple(place).field(&name).finish()
    }
}
