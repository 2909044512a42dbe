//! Names to addresses, through the egress policy.
//!
//! The system's resolver blocks a thread, for many seconds when a name's servers are silent, and it
//! cannot be stopped. So who asks for a name that is being looked up waits for that one lookup, and the
//! number of lookups under way is bounded: names that hang can use up neither threads nor memory.

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    vec,
};

use futures_util::{FutureExt as _, future::BoxFuture, future::Shared};
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use crate::domain::policies::EgressPolicy;

/// Lookups under way at most.
const MAX_LOOKUPS: usize = 256;

/// Why a name led nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LookupError {
    #[error("name not found")]
    NotFound,
    #[error("too many name lookups are under way")]
    TooMany,
}

type Found = Result<Arc<[SocketAddr]>, LookupError>;
type Lookups = Mutex<HashMap<Arc<str>, Shared<BoxFuture<'static, Found>>>>;

/// Resolves names, and answers only addresses that the policy takes.
#[derive(Clone)]
pub(super) struct EgressResolver {
    policy: EgressPolicy,
    under_way: Arc<Lookups>,
}

impl EgressResolver {
    pub(super) fn new(policy: EgressPolicy) -> Self {
        Self {
            policy,
            under_way: Arc::default(),
        }
    }

    fn lookup(&self, name: &str) -> Shared<BoxFuture<'static, Found>> {
        let mut under_way = locked(&self.under_way);
        if let Some(lookup) = under_way.get(name) {
            return lookup.clone();
        }
        if under_way.len() >= MAX_LOOKUPS {
            return std::future::ready(Err(LookupError::TooMany))
                .boxed()
                .shared();
        }
        let name: Arc<str> = Arc::from(name);
        let asked = Arc::clone(&name);
        let lookups = Arc::clone(&self.under_way);
        // It enters the map before this lock is given back, so it is there when the thread removes it.
        let thread = tokio::task::spawn_blocking(move || {
            let found = system_lookup(&asked);
            locked(&lookups).remove(&asked);
            found
        });
        let lookup = thread
            .map(|ended| ended.unwrap_or(Err(LookupError::NotFound)))
            .boxed()
            .shared();
        under_way.insert(name, lookup.clone());
        lookup
    }
}

impl Service<Name> for EgressResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let lookup = self.lookup(name.as_str());
        let policy = self.policy.clone();
        Box::pin(async move {
            let mut taken = Vec::new();
            let mut refused = None;
            for address in lookup.await?.iter() {
                match policy.check(address.ip()) {
                    Ok(()) => taken.push(*address),
                    Err(refusal) => refused = refused.or(Some(refusal)),
                }
            }
            match refused {
                Some(refusal) if taken.is_empty() => Err(refusal.into()),
                _ => Ok(taken.into_iter()),
            }
        })
    }
}

fn system_lookup(name: &str) -> Found {
    let found: io::Result<Arc<[SocketAddr]>> = (name, 0).to_socket_addrs().map(Iterator::collect);
    match found {
        Ok(addresses) if !addresses.is_empty() => Ok(addresses),
        Ok(_) => Err(LookupError::NotFound),
        Err(error) => {
            tracing::debug!(name, %error, "a name was not resolved");
            Err(LookupError::NotFound)
        }
    }
}

fn locked(
    lookups: &Lookups,
) -> MutexGuard<'_, HashMap<Arc<str>, Shared<BoxFuture<'static, Found>>>> {
    lookups.lock().unwrap_or_else(PoisonError::into_inner)
}
