//! Connections to endpoints: every address is checked before it is connected to, and everything that
//! connecting takes has one end.

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service;

use crate::domain::policies::{EgressPolicy, RefusedAddress};

use super::resolver::EgressResolver;

/// How long all addresses of a host together may take to connect, so that a host whose first address
/// is dead is still reached on its second one; and how long all of connecting may take, with the name
/// and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent before it is probed, and how long a probe may take.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// How long what was sent may wait to be acknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes connections. Cheap to clone: the client does so for each request.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    policy: EgressPolicy,
    https: HttpsConnector<HttpConnector<EgressResolver>>,
}

impl Connector {
    pub(super) fn new(policy: EgressPolicy, tls: ClientConfig) -> Self {
        let mut http = HttpConnector::new_with_resolver(EgressResolver::new(policy.clone()));
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        http.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let https = HttpsConnector::from((http, tls));
        Self(Arc::new(Inner { policy, https }))
    }

    /// No resolver is asked for a literal address: this is where it is checked. Other notations of one
    /// (`2130706433`) are names here, and the resolver checks what they lead to.
    fn check(&self, uri: &Uri) -> Result<(), RefusedAddress> {
        match uri.host().and_then(literal) {
            Some(address) => self.0.policy.check(address),
            None => Ok(()),
        }
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')?
            .parse::<Ipv6Addr>()
            .ok()
            .map(IpAddr::V6),
        None => host.parse().ok(),
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if let Err(refused) = self.check(&uri) {
            return Box::pin(async { Err(refused.into()) });
        }
        let connecting = self.0.https.clone().call(uri);
        Box::pin(async {
            let in_time = timeout(CONNECT_TIMEOUT, connecting).await;
            in_time.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_addresses_are_those_for_which_no_resolver_is_asked() {
        for (host, expected) in [
            ("127.0.0.1", Some("127.0.0.1")),
            ("[::1]", Some("::1")),
            ("::1", Some("::1")),
            ("[::ffff:127.0.0.1]", Some("::ffff:127.0.0.1")),
            ("2130706433", None),
            ("0x7f.1", None),
            ("example.com", None),
            ("[127.0.0.1]", None),
            ("", None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(literal(host), expected, "{host}");
        }
    }
}
