//! The request–reply twin of the commands, and the queries: a NATS micro service.

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
    stream::{SelectAll, select_all},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
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

/// Answers requests.
pub struct RequestService {
    /// The connection.
    pub client: Client,
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
    entity: &'static str,
    action: &'static str,
    request: Request,
}

type Requests = SelectAll<futures_util::stream::BoxStream<'static, Asked>>;

impl RequestService {
    /// Registers an endpoint for each action, and answers until the group stops; what has arrived
    /// by then is answered. The client keeps the registrations over lost connections.
    ///
    /// # Errors
    /// [`ServiceError`] for a wrong name or a closed client.
    pub async fn spawn(self, group: &Group) -> Result<(), ServiceError> {
        let (service, requests) = self.register().await.map_err(|source| ServiceError {
            name: self.settings.name.clone(),
            source,
        })?;
        self.wait_until_the_server_knows().await;
        let tasks = group.clone();
        group.spawn_loop("requests", Arc::new(self).run(service, requests, tasks));
        Ok(())
    }

    async fn register(&self) -> Result<(Service, Requests), async_nats::Error> {
        let service = self
            .client
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
            let asked = move |request| Asked {
                entity,
                action,
                request,
            };
            endpoints.push(endpoint.map(asked).boxed());
        }
        Ok((service, select_all(endpoints)))
    }

    /// One round trip: the server takes what a connection sends in its order, so it has the
    /// registrations once it answers this, which nobody else does.
    async fn wait_until_the_server_knows(&self) {
        let nobody = format!("{}.nobody", self.settings.subject_root);
        let asked = self.client.request(nobody, "".into());
        if tokio::time::timeout(ROUND_TRIP, asked).await.is_err() {
            tracing::debug!("the server did not answer; requests are answered once it is back");
        }
    }

    async fn run(self: Arc<Self>, service: Service, mut requests: Requests, group: Group) {
        let stopping = group.stopping();
        let permits = Arc::new(Semaphore::new(self.settings.concurrency.max(1)));
        loop {
            let next = async {
                // The permit comes first: a request is taken when it can be handled.
                let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
                Some((requests.next().await?, permit))
            };
            let next = tokio::select! {
                () = stopping.cancelled() => break,
                next = next => next,
            };
            let Some((asked, permit)) = next else { return };
            self.answer_in(&group, asked, permit);
        }
        self.drain(service, requests, &permits, &group).await;
    }

    /// Takes leave of the server, and answers what it has sent until then.
    async fn drain(
        self: &Arc<Self>,
        service: Service,
        mut requests: Requests,
        permits: &Arc<Semaphore>,
        group: &Group,
    ) {
        if let Err(error) = service.stop().await {
            tracing::debug!(error = %Chain(&*error), "the NATS service did not stop");
        }
        let until = Instant::now() + DRAIN;
        while let Ok(Some(asked)) = timeout_at(until, requests.next()).await {
            let permit = timeout_at(until, Arc::clone(permits).acquire_owned()).await;
            let Ok(Ok(permit)) = permit else { return };
            self.answer_in(group, asked, permit);
        }
    }

    fn answer_in(
        self: &Arc<Self>,
        group: &Group,
        asked: Asked,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) {
        let service = Arc::clone(self);
        group.spawn("request", async move {
            service.answer(asked).await;
            drop(permit);
        });
    }

    async fn answer(&self, asked: Asked) {
        let started = Instant::now();
        let Asked {
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
        let (reply, body) = self.fitting(reply);
        let label = format!("{entity}.{action}");
        measure(label, PATH, result_of(&reply), started.elapsed());
        self.respond(request, reply, body).await;
    }

    /// The reply and its body, no larger than the server takes.
    fn fitting(&self, reply: Reply) -> (Reply, String) {
        let body = reply.to_json().to_string();
        let room = self.client.max_payload().saturating_sub(HEADERS);
        if body.len() <= room {
            return (reply, body);
        }
        let reply = reply.shortened(room);
        let body = reply.to_json().to_string();
        (reply, body)
    }

    async fn respond(&self, request: Request, reply: Reply, body: String) {
        // Nobody waits for an answer to a plain publication.
        if request.message.reply.is_none() {
            return;
        }
        let sent = match reply {
            Reply::Success(_) => request.respond(Ok(body.into())).await,
            Reply::Failure(refusal) => self.respond_with_error(request, refusal).await,
        };
        if let Err(error) = sent {
            tracing::warn!(error = %Chain(&error), "a request could not be answered");
        }
    }

    /// The library's own error response has no body, but it is what counts errors for
    /// `nats micro stats`: so the answer is sent by hand, and the library's goes to an inbox that
    /// nobody reads.
    async fn respond_with_error(
        &self,
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
        let nowhere = self.client.new_inbox().into();
        if let Some(reply) = request.message.reply.replace(nowhere) {
            let sent = self
                .client
                .publish_with_headers(reply, headers, body.into());
            sent.await?;
        }
        request.respond(Err(fault)).await
    }
}

fn headers(map: Option<&HeaderMap>) -> Vec<(String, String)> {
    map.into_iter()
        .flat_map(HeaderMap::iter)
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
        .map(|(name, value)| (name.to_string(), value.as_str().to_owned()))
        .collect()
}

/// A header's value may hold no line breaks.
fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(512).map(plain).collect()
}
