//! The walk through the main job, step by step.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde_json::Value;

use crate::{
    app::embedded::{
        receiver::{Received, Receiver, Secret},
        transcript::Transcript,
    },
    application::ports::Clock as _,
    infrastructure::clock::SystemClock,
};

use super::{
    domain_events::DomainEvents,
    expectations::{Expectation, Seen},
    inbox::Inbox,
    missed::{Missed, check},
    ops, steps,
    table::Names,
    user::User,
};

/// What the walk stands on.
pub(super) struct Ground {
    pub(super) nats_url: String,
    pub(super) ops: SocketAddr,
    pub(super) receiver: Receiver,
    pub(super) inbox: Arc<Inbox>,
    pub(super) out: Transcript,
}

/// A walk under way.
pub(super) struct Walk<'a> {
    pub(super) ground: Ground,
    pub(super) user: User,
    pub(super) events: DomainEvents,
    pub(super) names: Names,
    webhooks: BTreeMap<&'static str, Webhook>,
    seen: &'a mut Seen,
    step: usize,
}

struct Webhook {
    id: String,
    secret: Secret,
}

impl<'a> Walk<'a> {
    /// Waits until the worker is ready, and goes there.
    pub(super) async fn begin(ground: Ground, seen: &'a mut Seen) -> Result<Self, Missed> {
        ops::wait_ready(ground.ops).await?;
        let user = User::connect(&ground.nats_url).await?;
        let events = DomainEvents::read(&user.stream("INTEGRATION_EVENTS").await?).await?;
        Ok(Self {
            ground,
            user,
            events,
            names: Names::default(),
            webhooks: BTreeMap::new(),
            seen,
            step: 0,
        })
    }

    /// Makes all steps, whatever comes of each, as far as they make sense.
    pub(super) async fn make(mut self) {
        let mut made = steps::register(&mut self).await;
        if made.is_ok() {
            made = steps::publish(&mut self).await;
        }
        if let Err(missed) = made {
            return self.missed(&missed);
        }
        let result = steps::delivered(&mut self).await;
        self.note(result);
        let result = steps::recovered(&mut self).await;
        self.note(result);
        let result = steps::disabled(&mut self).await;
        self.note(result);
        let result = steps::without_match(&mut self).await;
        self.note(result);
        let result = steps::dead_letter(&mut self).await;
        self.note(result);
        let result = steps::domain_events(&mut self).await;
        self.note(result);
        let result = steps::ops_server(&mut self).await;
        self.note(result);
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) {
        self.step += 1;
        self.ground.out.heading(&format!("{}. {title}", self.step));
    }

    pub(super) fn out(&self) -> &Transcript {
        &self.ground.out
    }

    /// Something was seen.
    pub(super) fn saw(&mut self, expectation: Expectation) {
        self.seen.add(expectation);
        self.ground.out.seen(expectation.text());
    }

    fn note(&self, result: Result<(), Missed>) {
        if let Err(missed) = result {
            self.missed(&missed);
        }
    }

    fn missed(&self, missed: &Missed) {
        self.ground.out.missed(&missed.to_string());
    }

    /// Keeps a webhook that was created, by the path that it leads to.
    pub(super) fn keep(&mut self, path: &'static str, created: &Value) -> Result<(), Missed> {
        let text = |field: &str| created.get(field).and_then(Value::as_str);
        let id = text("id").map(str::to_owned);
        let secret = text("secret").and_then(Secret::parse);
        let (Some(id), Some(secret)) = (id, secret) else {
            return Err(Missed(format!(
                "the webhook to {path} has no id or no secret"
            )));
        };
        self.names.add(&id, text("name").unwrap_or_default());
        self.webhooks.insert(path, Webhook { id, secret });
        Ok(())
    }

    /// The id of the webhook that leads to the path.
    pub(super) fn id_of(&self, path: &str) -> &str {
        self.webhooks.get(path).map_or("", |webhook| &webhook.id)
    }

    /// Checks the signature of a request, as its receiver would.
    pub(super) fn verify(&self, request: &Received) -> Result<(), Missed> {
        let unknown = || Missed(format!("a request to {} is nobody's", request.path));
        let webhook = self
            .webhooks
            .get(request.path.as_str())
            .ok_or_else(unknown)?;
        let now = SystemClock::new().now().timestamp();
        let verified = webhook.secret.verify(&request.headers, &request.body, now);
        verified.map_err(|fault| Missed(format!("the request to {}: {fault}", request.path)))
    }

    /// Checks that all requests are signed and carry the same delivery.
    pub(super) fn verify_same(&self, requests: &[Received]) -> Result<(), Missed> {
        for request in requests {
            self.verify(request)?;
        }
        let mut ids = requests.iter().map(|request| request.header("webhook-id"));
        let first = ids.next();
        let same = ids.all(|id| Some(id) == first);
        check(same, "the tries of one delivery have several ids")
    }
}
