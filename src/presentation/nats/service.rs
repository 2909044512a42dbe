//! The request–reply twin of the commands, and the queries: a NATS micro service.
//!
//! It has a connection of its own. Anybody may send a request whose headers the client library cannot
//! read: it drops the connection, which it makes again by itself, or panics in its own task, and then the
//! client is dead and another one is made here. Events, commands and everything else go on meanwhile.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, PublishError,
    service::{
        NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, Service, ServiceExt,
        endpoint::Endpoint, error::Error as ServiceFault,
    },
};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{SelectAll, select_all},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    application::{
        commands::{ErrorCode, Incoming, Refusal, Reply},
        ports::Clock,
    },
    shared::{error_chain::Chain, lifecycle::Group},
};

use super::{HandleCommand, handle_safely, measure, result_of};

const PATH: &str = "request";
/// What is left of the server's `max_payload` for the headers of an answer, in bytes.
const HEADERS: usize = 1024;
/// How long requests that have arrived already are still taken after the service has stopped.
const DRAIN: Duration = Duration::from_secs(3);

/// What is fixed for all requests.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// The service's name.
    pub name: String,
    /// Above all requests: `<prefix>.api`.
    pub subject_root: String,
    /// Requests at a time; more wait.
    pub concurrency: usize,
}

/// The service could not be registered.
#[derive(Debug, thiserror::Error)]
#[error("the NATS service {name} could not be registered")]
pub struct ServiceError {
    name: String,
    source: async_nats::Error,
}

/// How long the server may take to take the registrations.
const ROUND_TRIP: Duration = Duration::from_secs(5);

/// The longest wait for the server to have the last answers.
const FLUSH: Duration = Duration::from_secs(1);
/// How long nobody is connected after a client has died.
const REBIRTH: Duration = Duration::from_millis(100);

/// Makes a client that connects in the background, for requests alone.
pub type Connect =
    Box<dyn Fn() -> BoxFuture<'static, Result<Client, async_nats::Error>> + Send + Sync>;

/// Answers requests.
pub struct RequestService {
    /// Makes the connection, and makes another when the client has died.
    pub connect: Connect,
    /// What handles them.
    pub handler: Arc<dyn HandleCommand>,
    /// For the ids of commands.
    pub clock: Arc<dyn Clock>,
    /// What is fixed.
    pub settings: ServiceSettings,
}

impl fmt::Debug for RequestService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestService")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A request for one action.
struct Asked {
    client: Client,
    entity: &'static str,
    action: &'static str,
    request: Request,
}

/// A client that the server knows as the service.
struct Registered {
    client: Client,
    service: Service,
    requests: Requests,
}

type Requests = SelectAll<futures_util::stream::BoxStream<'static, Asked>>;

impl RequestService {
    /// Registers an endpoint for each action, and answers until the group stops; what has arrived
    /// by then is answered. The client keeps the registrations over lost connections.
    ///
    /// # Errors
    /// [`ServiceError`] for a wrong name or a client that cannot be made.
    pub async fn spawn(self, group: &Group) -> Result<(), ServiceError> {
        let registered = self.register().await.map_err(|source| ServiceError {
            name: self.settings.name.clone(),
            source,
        })?;
        self.wait_until_the_server_knows(&registered.client).await;
        let tasks = group.clone();
        group.spawn_loop("requests", Arc::new(self).run(registered, tasks));
        Ok(())
    }

    async fn register(&self) -> Result<Registered, async_nats::Error> {
        let client = (self.connect)().await?;
        let service = client
            .service_builder()
            .description(env!("CARGO_PKG_DESCRIPTION"))
            .start(&self.settings.name, env!("CARGO_PKG_VERSION"))
            .await?;
        let mut endpoints = Vec::new();
        for &(entity, action) in self.handler.actions() {
            let subject = format!("{}.{entity}.{action}", self.settings.subject_root);
            let endpoint: Endpoint = service
                .endpoint_builder()
                .name(format!("{entity}-{action}"))
                .add(subject)
                .await?;
            let client = client.clone();
            let asked = move |request| Asked {
                client: client.clone(),
                entity,
                action,
                request,
            };
            endpoints.push(endpoint.map(asked).boxed());
        }
        Ok(Registered {
            client,
            service,
            requests: select_all(endpoints),
        })
    }

    /// One round trip: the server takes what a connection sends in its order, so it has the
    /// registrations once it answers this, which nobody else does.
    async fn wait_until_the_server_knows(&self, client: &Client) {
        let nobody = format!("{}.nobody", self.settings.subject_root);
        let asked = client.request(nobody, "".into());
        if timeout(ROUND_TRIP, asked).await.is_err() {
            tracing::debug!("the server did not answer; requests are answered once it is back");
        }
    }

    async fn run(self: Arc<Self>, mut registered: Registered, group: Group) {
        let stopping = group.stopping();
        let permits = Arc::new(Semaphore::new(self.settings.concurrency.max(1)));
        loop {
            let next = async {
                // The permit comes first: a request is taken when it can be handled.
                let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
                Some((registered.requests.next().await?, permit))
            };
            let next = tokio::select! {
                () = stopping.cancelled() => break,
                next = next => next,
            };
            if let Some((asked, permit)) = next {
                self.answer_in(&group, asked, permit);
                continue;
            }
            // All endpoints have ended, which only the end of the client's task does.
            tracing::error!(
                "the NATS client for requests has died, of a request that it cannot read"
            );
            tokio::select! {
                () = stopping.cancelled() => return,
                again = self.register_again() => registered = again,
            }
        }
        self.drain(registered, &permits, &group).await;
    }

    async fn register_again(&self) -> Registered {
        loop {
            sleep(REBIRTH).await;
            match self.register().await {
                Ok(registered) => return registered,
                Err(error) => {
                    tracing::warn!(error = %Chain(&*error), "requests cannot be answered yet");
                }
            }
        }
    }

    /// Takes leave of the server, and answers what it has sent until then.
    async fn drain(
        self: &Arc<Self>,
        registered: Registered,
        permits: &Arc<Semaphore>,
        group: &Group,
    ) {
        let Registered {
            client,
            service,
            mut requests,
        } = registered;
        if let Err(error) = service.stop().await {
            tracing::debug!(error = %Chain(&*error), "the NATS service did not stop");
        }
        let until = Instant::now() + DRAIN;
        while let Ok(Some(asked)) = timeout_at(until, requests.next()).await {
            let permit = timeout_at(until, Arc::clone(permits).acquire_owned()).await;
            let Ok(Ok(permit)) = permit else { break };
            self.answer_in(group, asked, permit);
        }
        flush(&client).await;
    }

    fn answer_in(
        self: &Arc<Self>,
        group: &Group,
        asked: Asked,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) {
        let service = Arc::clone(self);
        let (client, stopping) = (asked.client.clone(), group.stopping());
        group.spawn("request", async move {
            service.answer(asked).await;
            if stopping.is_cancelled() {
                flush(&client).await;
            }
            drop(permit);
        });
    }

    async fn answer(&self, asked: Asked) {
        let started = Instant::now();
        let Asked {
            client,
            entity,
            action,
            request,
        } = asked;
        let incoming = Incoming {
            entity: entity.to_owned(),
            action: action.to_owned(),
            headers: headers(request.message.headers.as_ref()),
            body: request.message.payload.clone(),
            fallback_id: self.clock.new_id(),
            durable: false,
        };
        let handled = handle_safely(&*self.handler, incoming).await;
        let reply = handled.map_or_else(
            |panic| {
                tracing::error!(panic, entity, action, "the handler of a request panicked");
                let message = "the request failed; it is logged";
                Reply::Failure(Refusal::new(ErrorCode::Internal, message))
            },
            |handled| handled.reply,
        );
        let (reply, body) = fitting(&client, reply);
        let label = format!("{entity}.{action}");
        measure(label, PATH, result_of(&reply), started.elapsed());
        respond(&client, request, reply, body).await;
    }
}

/// The reply and its body, no larger than the server takes.
fn fitting(client: &Client, reply: Reply) -> (Reply, String) {
    let body = reply.to_json().to_string();
    let room = client.max_payload().saturating_sub(HEADERS);
    if body.len() <= room {
        return (reply, body);
    }
    let reply = reply.shortened(room);
    let body = reply.to_json().to_string();
    (reply, body)
}

async fn respond(client: &Client, request: Request, reply: Reply, body: String) {
    // Nobody waits for an answer to a plain publication.
    if request.message.reply.is_none() {
        return;
    }
    let sent = match reply {
        Reply::Success(_) => request.respond(Ok(body.into())).await,
        Reply::Failure(refusal) => respond_with_error(client, request, refusal).await,
    };
    if let Err(error) = sent {
        tracing::warn!(error = %Chain(&error), "a request could not be answered");
    }
}

/// The library's own error response has no body, but it is what counts errors for
/// `nats micro stats`: so the answer is sent by hand, and the library's goes to an inbox that
/// nobody reads.
async fn respond_with_error(
    client: &Client,
    mut request: Request,
    refusal: Refusal,
) -> Result<(), PublishError> {
    let fault = ServiceFault {
        status: one_line(&refusal.message),
        code: usize::from(refusal.code.status()),
    };
    let mut headers = HeaderMap::new();
    headers.insert(NATS_SERVICE_ERROR, fault.status.as_str());
    headers.insert(NATS_SERVICE_ERROR_CODE, fault.code.to_string());
    let body = Reply::Failure(refusal).to_json().to_string();
    let nowhere = client.new_inbox().into();
    if let Some(reply) = request.message.reply.replace(nowhere) {
        let sent = client.publish_with_headers(reply, headers, body.into());
        sent.await?;
    }
    request.respond(Err(fault)).await
}

fn headers(map: Option<&HeaderMap>) -> Vec<(String, String)> {
    map.into_iter()
        .flat_map(HeaderMap::iter)
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
        .map(|(name, value)| (name.to_string(), value.as_str().to_owned()))
        .collect()
}

/// What a client has not sent when it is dropped is lost.
async fn flush(client: &Client) {
    drop(timeout(FLUSH, client.flush()).await);
}

/// A header's value may hold no line breaks.
fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(512).map(plain).collect()
}
