//! Durable commands: taken from the command stream, handled, and settled in one place.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    application::{
        commands::{ErrorCode, Incoming, Reply},
        dead_letters::bury,
        ports::{
            BusError, Clock, DeadLetter, EventPublisher, MessageSource, ReplyPublisher, Settle,
            SourceMessage,
        },
    },
    domain::values::TenantId,
    shared::{error_chain::Chain, lifecycle::Group, metrics::LOOP_FAULTS},
};

use super::{HandleCommand, command_id::derived_id, handle_safely, measure, result_of};

const PATH: &str = "durable";
const REPLY_TO: &str = "Integration-Reply-To";
const TENANT: &str = "X-Tenant-Id";
/// The first wait of a command that failed for now, doubled with each delivery.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_mins(1);
/// The wait after a failed pull.
const PULL_RETRY: Duration = Duration::from_millis(500);

/// What is fixed for all durable commands.
#[derive(Debug, Clone)]
pub struct DurableSettings {
    /// Above all commands: `<prefix>.commands`.
    pub subject_root: String,
    /// The stream that they come from.
    pub stream: String,
    /// Commands at a time.
    pub concurrency: usize,
    /// After this much silence the server gives a command to another worker; progress is signalled
    /// every third of it.
    pub ack_wait: Duration,
    /// For dead letters that name no tenant.
    pub default_tenant: TenantId,
}

/// Takes commands from the command stream.
pub struct DurableCommands {
    /// The command stream.
    pub source: Arc<dyn MessageSource>,
    /// What handles them.
    pub handler: Arc<dyn HandleCommand>,
    /// For dead letters.
    pub publisher: Arc<dyn EventPublisher>,
    /// For `Integration-Reply-To`.
    pub replies: Arc<dyn ReplyPublisher>,
    /// The time of dead letters.
    pub clock: Arc<dyn Clock>,
    /// What is fixed.
    pub settings: DurableSettings,
}

impl fmt::Debug for DurableCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableCommands")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What is to become of a message.
enum Outcome {
    /// It is done, or refused for good.
    Done,
    /// It may succeed later.
    Again(String),
    /// It cannot be understood.
    Buried { reason: String, tenant: TenantId },
}

impl DurableCommands {
    /// Runs until the group stops; what is in hand then is finished.
    pub fn spawn(self, group: &Group) {
        let tasks = group.clone();
        group.spawn_loop("commands", Arc::new(self).run(tasks));
    }

    async fn run(self: Arc<Self>, group: Group) {
        let stopping = group.stopping();
        let permits = Arc::new(Semaphore::new(self.settings.concurrency.max(1)));
        while !stopping.is_cancelled() {
            let permit = tokio::select! {
                () = stopping.cancelled() => break,
                permit = Arc::clone(&permits).acquire_owned() => permit,
            };
            // The permits come first: what is pulled is handled at once.
            let Some(mut taken) = permit.ok().map(|first| with_free(first, &permits)) else {
                break;
            };
            // Not abandoned when the group stops: it would lose sight of what is under way.
            let messages = match self.source.pull(taken.num_permits()).await {
                Ok(messages) => messages,
                Err(error) => {
                    metrics::counter!(LOOP_FAULTS, "loop" => "commands").increment(1);
                    tracing::warn!(error = %Chain(&error), "no commands can be taken; trying again");
                    drop(taken);
                    tokio::select! {
                        () = stopping.cancelled() => {}
                        () = tokio::time::sleep(PULL_RETRY) => {}
                    }
                    continue;
                }
            };
            for (message, handle) in messages {
                let permit = taken.split(1);
                let commands = Arc::clone(&self);
                group.spawn("command", async move {
                    commands.process(&message, &*handle).await;
                    drop(permit);
                });
            }
        }
    }

    /// Decides and settles, and signals progress until then.
    async fn process(&self, message: &SourceMessage, handle: &dyn Settle) {
        let work = async {
            let outcome = self.decide(message).await;
            self.settle(outcome, message, handle).await
        };
        tokio::pin!(work);
        let every = (self.settings.ack_wait / 3).max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let settled = loop {
            tokio::select! {
                biased;
                settled = &mut work => break settled,
                _ = ticks.tick() => {
                    if let Err(error) = handle.progress().await {
                        tracing::debug!(error = %Chain(&error), "no progress could be signalled");
                    }
                }
            }
        };
        if let Err(error) = settled {
            tracing::warn!(
                error = %Chain(&error),
                subject = message.subject,
                sequence = message.sequence,
                "a command could not be settled; it comes again"
            );
        }
    }

    async fn decide(&self, message: &SourceMessage) -> Outcome {
        let started = Instant::now();
        let Some((entity, action)) = self.action_of(&message.subject) else {
            measure("unknown".to_owned(), PATH, "malformed", started.elapsed());
            return Outcome::Buried {
                reason: format!("unknown_action: {} is no command", message.subject),
                tenant: self.tenant_of(message),
            };
        };
        let incoming = Incoming {
            entity: entity.to_owned(),
            action: action.to_owned(),
            headers: message.headers.clone(),
            body: message.body.clone(),
            fallback_id: derived_id(
                message.published_at,
                &self.settings.stream,
                message.sequence,
            ),
            durable: true,
        };
        let label = format!("{entity}.{action}");
        let handled = match handle_safely(&*self.handler, incoming).await {
            Ok(handled) => handled,
            Err(panic) => {
                measure(label, PATH, "internal", started.elapsed());
                tracing::error!(
                    panic,
                    subject = message.subject,
                    sequence = message.sequence,
                    "the handler of a command panicked; the command is tried again"
                );
                return Outcome::Again("panic".to_owned());
            }
        };
        measure(label, PATH, result_of(&handled.reply), started.elapsed());
        match &handled.reply {
            Reply::Failure(refusal) if refusal.code.is_retryable() => {
                return Outcome::Again(refusal.message.clone());
            }
            _ => self.reply(message, &handled.reply).await,
        }
        match handled.reply {
            Reply::Failure(refusal) if refusal.code == ErrorCode::Malformed => Outcome::Buried {
                reason: format!("{}: {}", refusal.code.as_str(), refusal.message),
                tenant: handled.tenant,
            },
            _ => Outcome::Done,
        }
    }

    /// The one place that settles.
    async fn settle(
        &self,
        outcome: Outcome,
        message: &SourceMessage,
        handle: &dyn Settle,
    ) -> Result<(), BusError> {
        match outcome {
            Outcome::Done => handle.ack().await,
            Outcome::Again(reason) => {
                let delay = delay_after(message.deliveries);
                tracing::warn!(
                    reason,
                    subject = message.subject,
                    sequence = message.sequence,
                    deliveries = message.deliveries,
                    delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                    "a command is tried again"
                );
                handle.nak(delay).await
            }
            Outcome::Buried { reason, tenant } => {
                let letter = self.letter(message, reason, &tenant);
                let now = self.clock.now();
                let buried = bury(&*self.publisher, &letter, &tenant, now, handle).await;
                if buried.is_err() {
                    handle.nak(delay_after(message.deliveries)).await?;
                }
                buried
            }
        }
    }

    /// `<prefix>.commands.<entity>.<action>`, and both are known.
    fn action_of<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        let below = subject
            .strip_prefix(&self.settings.subject_root)?
            .strip_prefix('.')?;
        let named = below.split_once('.')?;
        self.handler.actions().contains(&named).then_some(named)
    }

    fn tenant_of(&self, message: &SourceMessage) -> TenantId {
        let named = message.header(TENANT).map(TenantId::try_new);
        match named {
            Some(Ok(tenant)) => tenant,
            _ => self.settings.default_tenant.clone(),
        }
    }

    fn letter(&self, message: &SourceMessage, reason: String, tenant: &TenantId) -> DeadLetter {
        DeadLetter {
            kind: "commands",
            reason,
            tenant: tenant.as_str().to_owned(),
            subject: message.subject.clone(),
            stream: self.settings.stream.clone(),
            sequence: message.sequence,
            published_at: message.published_at,
            headers: message.headers.clone(),
            body: message.body.clone(),
        }
    }

    /// It goes out on the connection that the acknowledgement takes after it: if one is lost, so
    /// is the other, and the command, handled once, answers again.
    async fn reply(&self, message: &SourceMessage, reply: &Reply) {
        let Some(subject) = message.header(REPLY_TO) else {
            return;
        };
        let body = reply.to_json().to_string().into();
        if let Err(error) = self.replies.publish_plain(subject, body).await {
            tracing::warn!(
                error = %Chain(&error),
                reply_to = subject,
                sequence = message.sequence,
                "the reply of a command was not published"
            );
        }
    }
}

/// The first permit and all that are free.
fn with_free(mut first: OwnedSemaphorePermit, permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let free = u32::try_from(permits.available_permits()).unwrap_or(u32::MAX);
    if let Ok(more) = Arc::clone(permits).try_acquire_many_owned(free) {
        first.merge(more);
    }
    first
}

/// The wait after so many deliveries.
fn delay_after(deliveries: i64) -> Duration {
    let doublings = u32::try_from(deliveries.clamp(1, 17) - 1).unwrap_or_default();
    FIRST_DELAY
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_minute() {
        let seconds: Vec<_> = [0, 1, 2, 3, 6, 7, 8, 1_000_000, i64::MAX]
            .map(|deliveries| delay_after(deliveries).as_secs())
            .into();
        assert_eq!(seconds, [1, 1, 2, 4, 32, 60, 60, 60, 60]);
    }
}
