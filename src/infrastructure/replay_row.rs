//! Replays as both stores keep them.

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::domain::{
    entities::{DeliveryStatus, Replay, ReplayCursor, ReplayKind, ReplaySelection, ReplayStatus},
    interfaces::{Candidate, Candidates, ClaimedReplay, ReplayLease, StoreError},
    values::{EventPattern, ReplayId, TenantId, Timestamp, WebhookId},
};

/// How many recorded deliveries are looked at, at most, to find those of a page.
const MAX_LOOKED_AT: usize = 256;
/// No more of them are taken than until their events have so many bytes.
const MAX_BYTES: i64 = 8 << 20;

/// A row of `replays`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct ReplayRow {
    pub(super) id: Uuid,
    pub(super) tenant: String,
    pub(super) webhook_id: Uuid,
    pub(super) kind: String,
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    pub(super) statuses: String,
    pub(super) event_types: String,
    pub(super) status: String,
    pub(super) total: Option<i64>,
    pub(super) done: i64,
    pub(super) skipped: i64,
    pub(super) cursor: Option<String>,
    pub(super) version: i64,
    pub(super) error: Option<String>,
    pub(super) actor: String,
    pub(super) correlation_id: String,
    pub(super) causation_id: String,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) completed_at: Option<Timestamp>,
    pub(super) lease_epoch: i64,
}

impl ReplayRow {
    fn broken(&self, column: &'static str, problem: &str) -> StoreError {
        StoreError::BadRow {
            table: "replays",
            column,
            id: self.id.to_string(),
            problem: problem.to_owned(),
        }
    }

    fn selection(&self) -> Result<ReplaySelection, StoreError> {
        let tenant = TenantId::try_new(&self.tenant);
        let statuses: Vec<String> =
            from_json(&self.statuses).ok_or_else(|| self.broken("statuses", "no list of texts"))?;
        let statuses: Option<Vec<_>> = statuses
            .iter()
            .map(|status| DeliveryStatus::parse(status))
            .collect();
        let event_types: Option<Vec<EventPattern>> = from_json(&self.event_types);
        Ok(ReplaySelection {
            tenant: tenant.map_err(|_| self.broken("tenant", "it is no tenant"))?,
            webhook_id: WebhookId(self.webhook_id),
            since: self.since,
            until: self.until,
            statuses: statuses.ok_or_else(|| self.broken("statuses", "an unknown value"))?,
            event_types: event_types
                .ok_or_else(|| self.broken("event_types", "no list of patterns"))?,
        })
    }
}

impl TryFrom<ReplayRow> for Replay {
    type Error = StoreError;

    fn try_from(row: ReplayRow) -> Result<Self, StoreError> {
        let unknown = |column| row.broken(column, "an unknown value");
        let cursor = row.cursor.as_deref().map(ReplayCursor::parse);
        let cursor = match cursor {
            Some(None) => return Err(unknown("cursor")),
            Some(Some(cursor)) => Some(cursor),
            None => None,
        };
        Ok(Self {
            id: ReplayId(row.id),
            kind: ReplayKind::parse(&row.kind).ok_or_else(|| unknown("kind"))?,
            selection: row.selection()?,
            status: ReplayStatus::parse(&row.status).ok_or_else(|| unknown("status"))?,
            total: row.total,
            done: row.done,
            skipped: row.skipped,
            cursor,
            version: row.version,
            error: row.error,
            actor: row.actor,
            correlation_id: row.correlation_id,
            causation_id: row.causation_id,
            created_at: row.created_at,
            updated_at: row.updated_at,
            completed_at: row.completed_at,
        })
    }
}

/// As it was claimed.
pub(super) fn claimed(row: ReplayRow) -> Result<ClaimedReplay, StoreError> {
    Ok(ClaimedReplay {
        lease: ReplayLease {
            replay_id: ReplayId(row.id),
            epoch: row.lease_epoch,
        },
        replay: row.try_into()?,
    })
}

/// The columns `statuses` and `event_types`.
pub(super) fn lists(selection: &ReplaySelection) -> (String, String) {
    let statuses: Vec<&str> = selection.statuses.iter().map(|s| s.as_str()).collect();
    (to_json(&statuses), to_json(&selection.event_types))
}

fn to_json(list: &impl Serialize) -> String {
    serde_json::to_string(list).unwrap_or_default()
}

fn from_json<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// A recorded delivery that was looked at.
pub(super) struct LookedAt<T> {
    pub(super) place: ReplayCursor,
    pub(super) event_type: String,
    /// Of the event, where it is kept with the delivery.
    pub(super) bytes: i64,
    pub(super) row: T,
}

/// Of those that were looked at, in their order, those that are meant, at most `limit` and not many more
/// bytes than [`MAX_BYTES`], and how far that goes; `None` when there is nothing more.
pub(super) fn choose<T>(
    selection: &ReplaySelection,
    looked_at: Vec<LookedAt<T>>,
    limit: usize,
) -> (Vec<T>, Option<ReplayCursor>) {
    let mut cursor = None;
    let mut chosen = Vec::new();
    let mut bytes = 0_i64;
    for one in looked_at {
        if chosen.len() == limit || bytes >= MAX_BYTES {
            break;
        }
        cursor = Some(one.place);
        if selection.wants(&one.event_type) {
            bytes = bytes.saturating_add(one.bytes);
            chosen.push(one.row);
        }
    }
    (chosen, cursor)
}

/// How many rows are worth looking at for so many candidates.
pub(super) fn look_at(selection: &ReplaySelection, limit: usize) -> i64 {
    let rows = if selection.event_types.is_empty() {
        limit.min(MAX_LOOKED_AT)
    } else {
        MAX_LOOKED_AT
    };
    i64::try_from(rows).unwrap_or(i64::MAX)
}

/// Candidates of rows, without those that cannot be understood.
pub(super) fn candidates(
    rows: impl Iterator<Item = Result<Candidate, StoreError>>,
    cursor: Option<ReplayCursor>,
) -> Candidates {
    let mut items = Vec::new();
    let mut broken = 0;
    for row in rows {
        match row {
            Ok(candidate) => items.push(candidate),
            Err(error) => {
                tracing::error!(%error, "a recorded delivery cannot be read and is not sent again");
                broken += 1;
            }
        }
    }
    Candidates {
        items,
        broken,
        cursor,
    }
}

/// After which place to go on among the deliveries with a turn; `None` when they are all behind.
pub(super) fn after_turn(cursor: Option<ReplayCursor>) -> Option<(i64, Uuid)> {
    match cursor {
        None => Some((i64::MIN, Uuid::nil())),
        Some(ReplayCursor::Turn(turn, id)) => Some((turn, id.0)),
        Some(ReplayCursor::Delivery(..) | ReplayCursor::Sequence(_)) => None,
    }
}

/// After which place to go on among the other deliveries; `None` is the beginning.
pub(super) fn after(cursor: Option<ReplayCursor>) -> Option<(Timestamp, Uuid)> {
    match cursor {
        Some(ReplayCursor::Delivery(at, id)) => Some((at, id.0)),
        Some(ReplayCursor::Turn(..) | ReplayCursor::Sequence(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded_in_bytes_and_goes_on_behind_the_last_that_was_taken() {
        let at = chrono::DateTime::from_timestamp(1_772_350_000, 0).unwrap();
        let selection = ReplaySelection {
            tenant: TenantId::try_new("nord").unwrap(),
            webhook_id: WebhookId(Uuid::nil()),
            since: at,
            until: at,
            statuses: Vec::new(),
            event_types: vec![EventPattern::try_new("a").unwrap()],
        };
        let of = |row: i64, event_type: &str, bytes| LookedAt {
            place: ReplayCursor::Sequence(row),
            event_type: event_type.to_owned(),
            bytes,
            row,
        };
        let whole = MAX_BYTES;
        for (sizes, limit, chosen, end) in [
            (vec![("a", 1), ("a", 1)], 9, vec![0, 1], Some(1)),
            (vec![("a", 1), ("a", 1)], 1, vec![0], Some(0)),
            (vec![("a", whole), ("a", 1)], 9, vec![0], Some(0)),
            (
                vec![("a", whole - 1), ("a", whole), ("a", 1)],
                9,
                vec![0, 1],
                Some(1),
            ),
            (vec![("b", whole), ("a", 1)], 9, vec![1], Some(1)),
            (vec![], 9, vec![], None),
        ] {
            let looked_at = (0..)
                .zip(&sizes)
                .map(|(row, (kind, bytes))| of(row, kind, *bytes));
            let found = choose(&selection, looked_at.collect(), limit);
            let expected = (chosen, end.map(ReplayCursor::Sequence));
            assert_eq!(found, expected, "{sizes:?} {limit}");
        }
    }
}
