//! A replay: deliveries of one webhook that go out again, or for the first time, behind live traffic.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::{
    events::{Context, DomainEvent},
    values::{DeliveryId, EventPattern, ReplayId, TenantId, Timestamp, WebhookId, format_time},
};

use super::{DeliveryStatus, InvalidTransition};

/// What goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayKind {
    /// What was recorded, again.
    Replay,
    /// Events of the source stream that match now and were never recorded.
    Backfill,
}

impl ReplayKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Replay, Self::Backfill];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Backfill => "backfill",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Where a replay stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayStatus {
    /// There may be more to hand out.
    Running,
    /// All is handed out; what failed goes on by the webhook's retry policy.
    Completed,
    /// Called off by a user, or its webhook receives nothing any more.
    Cancelled,
    /// It cannot go on.
    Failed,
}

impl ReplayStatus {
    /// All states.
    pub const ALL: [Self; 4] = [
        Self::Running,
        Self::Completed,
        Self::Cancelled,
        Self::Failed,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// How far a replay has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayCursor {
    /// All deliveries with a place in a lane up to this one, in the order of their turns.
    Turn(i64, DeliveryId),
    /// Those, and all others up to this one, in the order of their creation.
    Delivery(Timestamp, DeliveryId),
    /// All messages of the source stream below this sequence.
    Sequence(i64),
}

impl ReplayCursor {
    /// For keeping.
    pub fn to_text(self) -> String {
        match self {
            Self::Turn(turn, id) => format!("turn/{turn}/{id}"),
            Self::Delivery(at, id) => format!("delivery/{}/{id}", at.timestamp_millis()),
            Self::Sequence(sequence) => format!("sequence/{sequence}"),
        }
    }

    /// Reads what [`Self::to_text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let kind = parts.next()?;
        let number = parts.next()?.parse().ok()?;
        let id = parts.next().map(Uuid::try_parse);
        match (kind, id) {
            ("turn", Some(Ok(id))) => Some(Self::Turn(number, DeliveryId(id))),
            ("delivery", Some(Ok(id))) => {
                let at = Timestamp::from_timestamp_millis(number)?;
                Some(Self::Delivery(at, DeliveryId(id)))
            }
            ("sequence", None) => Some(Self::Sequence(number)),
            _ => None,
        }
    }
}

/// Which of the recorded deliveries of a webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplaySelection {
    /// Whose they are.
    pub tenant: TenantId,
    /// Of which webhook.
    pub webhook_id: WebhookId,
    /// Created (or, of a backfill, published) at or after.
    pub since: Timestamp,
    /// Created (or published) before.
    pub until: Timestamp,
    /// In one of these states; none is any.
    pub statuses: Vec<DeliveryStatus>,
    /// Of a type that one of these matches; none is any.
    pub event_types: Vec<EventPattern>,
}

impl ReplaySelection {
    /// How many patterns it may list.
    pub const MAX_EVENT_TYPES: usize = 100;

    /// Whether events of this type are meant.
    pub fn wants(&self, event_type: &str) -> bool {
        let types = &self.event_types;
        types.is_empty() || types.iter().any(|pattern| pattern.matches(event_type))
    }
}

/// Deliveries of one webhook that go out behind live traffic, page by page.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Its id.
    pub id: ReplayId,
    /// Again, or for the first time.
    pub kind: ReplayKind,
    /// What goes out.
    pub selection: ReplaySelection,
    /// Where it stands.
    pub status: ReplayStatus,
    /// What was counted when it began; `None` where there was too much to count.
    pub total: Option<i64>,
    /// Deliveries that were handed out.
    pub done: i64,
    /// Deliveries that were left alone: they wait anyway, or their event is gone.
    pub skipped: i64,
    /// How far it has come; `None` at the beginning.
    pub cursor: Option<ReplayCursor>,
    /// `aggregateversion` of its latest domain event.
    pub version: i64,
    /// Why it ended early.
    pub error: Option<String>,
    /// Who began it.
    pub actor: String,
    /// Carried from the command into its events.
    pub correlation_id: String,
    /// The command.
    pub causation_id: String,
    /// When it began.
    pub created_at: Timestamp,
    /// When it last came further.
    pub updated_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
}

impl Replay {
    /// Replays of a tenant that may run at a time.
    pub const MAX_RUNNING: i64 = 10;

    /// A new one, and its event.
    pub fn start(
        id: ReplayId,
        kind: ReplayKind,
        selection: ReplaySelection,
        total: Option<i64>,
        context: Context,
        now: Timestamp,
    ) -> (Self, DomainEvent) {
        let replay = Self {
            id,
            kind,
            selection,
            status: ReplayStatus::Running,
            total,
            done: 0,
            skipped: 0,
            cursor: None,
            version: 1,
            error: None,
            actor: context.actor.clone(),
            correlation_id: context.correlation_id.clone(),
            causation_id: context.causation_id.clone(),
            created_at: now,
            updated_at: now,
            completed_at: None,
        };
        let mut event = replay.event("webhook.replay_started", context, now);
        event.data["since"] = format_time(replay.selection.since).into();
        event.data["until"] = format_time(replay.selection.until).into();
        (replay, event)
    }

    /// So many more are handed out and left alone. Where there are any, that is an event.
    #[must_use]
    pub fn come_further(
        &mut self,
        done: i64,
        skipped: i64,
        cursor: ReplayCursor,
        now: Timestamp,
    ) -> Option<DomainEvent> {
        self.done += done;
        self.skipped += skipped;
        self.cursor = Some(cursor);
        self.updated_at = now;
        if done == 0 && skipped == 0 {
            return None;
        }
        self.version += 1;
        Some(self.event("webhook.replay_progressed", self.own_context(), now))
    }

    /// All is handed out.
    #[must_use]
    pub fn complete(&mut self, now: Timestamp) -> DomainEvent {
        self.end(ReplayStatus::Completed, None, self.own_context(), now)
    }

    /// It cannot go on.
    #[must_use]
    pub fn fail(&mut self, error: &str, now: Timestamp) -> DomainEvent {
        self.end(ReplayStatus::Failed, Some(error), self.own_context(), now)
    }

    /// Its webhook receives nothing any more.
    #[must_use]
    pub fn call_off(&mut self, reason: &str, now: Timestamp) -> DomainEvent {
        let context = self.own_context();
        self.end(ReplayStatus::Cancelled, Some(reason), context, now)
    }

    /// A user calls it off; `None` when it is called off already.
    ///
    /// # Errors
    /// Refused when it has ended otherwise.
    pub fn cancel(
        &mut self,
        context: Context,
        now: Timestamp,
    ) -> Result<Option<DomainEvent>, InvalidTransition> {
        match self.status {
            ReplayStatus::Running => {
                Ok(Some(self.end(ReplayStatus::Cancelled, None, context, now)))
            }
            ReplayStatus::Cancelled => Ok(None),
            ReplayStatus::Completed | ReplayStatus::Failed => Err(InvalidTransition {
                entity: "replay",
                state: self.status.as_str(),
                remedy: "only a running replay can be cancelled",
            }),
        }
    }

    fn end(
        &mut self,
        status: ReplayStatus,
        error: Option<&str>,
        context: Context,
        now: Timestamp,
    ) -> DomainEvent {
        self.status = status;
        self.error = error.map(str::to_owned);
        self.updated_at = now;
        self.completed_at = Some(now);
        self.version += 1;
        let event_type = match status {
            ReplayStatus::Failed => "webhook.replay_failed",
            ReplayStatus::Cancelled => "webhook.replay_cancelled",
            ReplayStatus::Completed | ReplayStatus::Running => "webhook.replay_completed",
        };
        self.event(event_type, context, now)
    }

    /// The worker acts, because of the command.
    fn own_context(&self) -> Context {
        Context {
            tenant: self.selection.tenant.clone(),
            actor: "system".to_owned(),
            correlation_id: self.correlation_id.clone(),
            causation_id: self.causation_id.clone(),
            trace: None,
        }
    }

    /// Its id is derived, so that one version is one event.
    fn event(&self, event_type: &str, context: Context, now: Timestamp) -> DomainEvent {
        let mut data = json!({
            "webhookId": self.selection.webhook_id,
            "replayId": self.id,
            "kind": self.kind.as_str(),
            "total": self.total,
            "done": self.done,
            "skipped": self.skipped,
        });
        if let Some(error) = &self.error {
            data["error"] = Value::String(error.clone());
        }
        DomainEvent {
            id: Uuid::new_v5(&self.id.0, &self.version.to_be_bytes()),
            event_type: event_type.to_owned(),
            subject: self.id.to_string(),
            time: now,
            aggregate_version: self.version,
            context,
            data,
            response: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = chrono::DateTime::UNIX_EPOCH;

    fn context() -> Context {
        Context {
            tenant: TenantId::try_new("nord").unwrap(),
            actor: "anna".to_owned(),
            correlation_id: "c".to_owned(),
            causation_id: "command".to_owned(),
            trace: None,
        }
    }

    fn started() -> (Replay, DomainEvent) {
        let selection = ReplaySelection {
            tenant: context().tenant,
            webhook_id: WebhookId(Uuid::from_u128(7)),
            since: NOW,
            until: NOW,
            statuses: Vec::new(),
            event_types: Vec::new(),
        };
        let id = ReplayId(Uuid::from_u128(1));
        Replay::start(id, ReplayKind::Replay, selection, Some(3), context(), NOW)
    }

    #[test]
    fn its_events_have_versions_without_gaps_and_ids_of_their_own() {
        let (mut replay, first) = started();
        let mut events = vec![first];
        let cursor = ReplayCursor::Sequence(7);
        events.extend(replay.come_further(2, 0, cursor, NOW));
        assert_eq!(
            replay.come_further(0, 0, cursor, NOW),
            None,
            "nothing to tell"
        );
        events.extend(replay.come_further(0, 1, cursor, NOW));
        events.push(replay.complete(NOW));
        let told: Vec<_> = events
            .iter()
            .map(|e| (e.event_type.as_str(), e.aggregate_version))
            .collect();
        assert_eq!(
            told,
            [
                ("webhook.replay_started", 1),
                ("webhook.replay_progressed", 2),
                ("webhook.replay_progressed", 3),
                ("webhook.replay_completed", 4),
            ]
        );
        assert_eq!(events[2].data["done"], 2);
        assert_eq!(events[2].data["skipped"], 1);
        let mut ids: Vec<Uuid> = events.iter().map(|e| e.id).collect();
        ids.dedup();
        assert_eq!(ids.len(), 4);
    }

    #[test]
    fn only_a_running_one_can_be_cancelled_and_twice_is_once() {
        let (mut replay, _) = started();
        let event = replay.cancel(context(), NOW).unwrap().unwrap();
        assert_eq!(event.event_type, "webhook.replay_cancelled");
        assert_eq!(replay.cancel(context(), NOW), Ok(None));
        let (mut replay, _) = started();
        assert_eq!(replay.complete(NOW).aggregate_version, 2);
        assert!(replay.cancel(context(), NOW).is_err());
    }

    #[test]
    fn a_cursor_survives_being_kept() {
        let at = Timestamp::from_timestamp_millis(1_772_350_000_123).unwrap();
        let id = DeliveryId(Uuid::from_u128(5));
        for cursor in [
            ReplayCursor::Delivery(at, id),
            ReplayCursor::Turn(i64::MIN, id),
            ReplayCursor::Sequence(0),
            ReplayCursor::Sequence(i64::MAX),
        ] {
            assert_eq!(ReplayCursor::parse(&cursor.to_text()), Some(cursor));
        }
        for bad in [
            "",
            "x",
            "turn/1",
            "sequence",
            "sequence/x",
            "sequence/1/2",
            "delivery/1/x",
        ] {
            assert_eq!(ReplayCursor::parse(bad), None, "{bad}");
        }
    }
}
