//! A page of a replay: its deliveries, the replay and its event in one transaction.

use std::sync::LazyLock;

use sqlx::{SqliteConnection, sqlite::SqliteRow};

use crate::domain::{
    interfaces::{ClaimedReplay, Lease, PageDone, Reopened, ReplayPage, StoreError, StoredEvent},
    values::{DeliveryId, Timestamp, WebhookId},
};

use super::{
    super::{
        SqliteStore,
        batch::{ManyRows, hex_array},
        error::failed,
        outbox, record, rows,
    },
    row::{is_held, write},
};

pub(super) async fn record(
    store: &SqliteStore,
    claimed: &ClaimedReplay,
    page: &ReplayPage,
    now: Timestamp,
) -> Result<Option<PageDone>, StoreError> {
    const RECORD: &str = "record a page of a replay";
    let mut transaction = store.write(RECORD).await?;
    let mut replay = claimed.replay.clone();
    if !is_held(&mut transaction, claimed.lease, replay.version).await?
        || !is_there(&mut transaction, replay.selection.webhook_id).await?
    {
        return Ok(None);
    }
    let mut leases = reopen(&mut transaction, &page.reopened, page.lease_until).await?;
    let new = record::insert_unattempted(&mut transaction, &page.first).await?;
    let done = count(leases.len() + new.len());
    let skipped = page.skipped + count(page.reopened.len() + page.first.len()) - done;
    match page.lease_until {
        Some(until) => {
            let new = new.iter().map(|id| id.0);
            leases.extend(lease_new(&mut transaction, &hex_array(new), until).await?);
        }
        None => leases.clear(),
    }
    let event = replay.come_further(done, skipped, page.cursor, now);
    write(&mut transaction, &replay).await?;
    outbox::add_events(&mut transaction, &event.iter().collect::<Vec<_>>()).await?;
    transaction.commit().await.map_err(failed(RECORD))?;
    Ok(Some(PageDone { replay, leases }))
}

/// Nobody would ever see to what waits for a webhook that is gone.
async fn is_there(
    connection: &mut SqliteConnection,
    webhook: WebhookId,
) -> Result<bool, StoreError> {
    let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM webhooks WHERE id = ?1")
        .bind(webhook.0)
        .fetch_optional(connection)
        .await
        .map_err(failed("look for the webhook of a replay"))?;
    Ok(found.is_some())
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

static REOPEN: LazyLock<ManyRows> = LazyLock::new(|| {
    ManyRows::new(
        64,
        "WITH v (id, epoch, budget_base, next_attempt_at, due_at, batched, batch_id, lane_key)
        AS (VALUES",
        8,
        ")
        UPDATE deliveries SET status = 'pending', budget_base = v.budget_base,
            next_attempt_at = v.next_attempt_at, due_at = v.due_at, completed_at = NULL,
            lease_epoch = lease_epoch + 1, lane_blocks = 0, batched = v.batched,
            batch_id = v.batch_id, lane_key = v.lane_key
        FROM v
        WHERE deliveries.id = v.id AND deliveries.lease_epoch = v.epoch
            AND deliveries.status <> 'pending'
        RETURNING deliveries.id, deliveries.lease_epoch",
    )
});

/// Makes recorded deliveries pending again, those that are still as they were read.
async fn reopen(
    connection: &mut SqliteConnection,
    reopened: &[Reopened],
    lease_until: Option<Timestamp>,
) -> Result<Vec<Lease>, StoreError> {
    const REOPENING: &str = "reopen deliveries";
    let mut leases = Vec::with_capacity(reopened.len());
    for (sql, piece) in REOPEN.pieces(reopened) {
        let mut query = sqlx::query(sql);
        for one in piece {
            let next = one.delivery.next_attempt_at;
            let due = next.max(lease_until);
            query = query
                .bind(one.delivery.id.0)
                .bind(one.epoch)
                .bind(one.delivery.budget_base)
                .bind(next.map(|at| at.timestamp_millis()))
                .bind(due.map(|at| at.timestamp_millis()))
                .bind(one.delivery.batch.is_shared())
                .bind(one.delivery.batch.id().map(|id| id.0))
                .bind(one.delivery.lane_key());
        }
        let rows = query.fetch_all(&mut *connection).await;
        let rows = rows.map_err(failed(REOPENING))?;
        leases.extend(rows.iter().map(lease).collect::<Result<Vec<_>, _>>()?);
    }
    let changed = |one: &&Reopened| {
        let id = one.delivery.id;
        leases.iter().any(|lease| lease.delivery_id == id)
    };
    let events: Vec<(DeliveryId, &StoredEvent)> = reopened
        .iter()
        .filter(changed)
        .map(|one| (one.delivery.id, &one.event))
        .collect();
    // Some keep theirs still.
    let ids = hex_array(events.iter().map(|(id, _)| id.0));
    sqlx::query(
        "DELETE FROM delivery_events WHERE delivery IN (
            SELECT d.seq FROM json_each(?1) j CROSS JOIN deliveries d ON d.id = unhex(j.value))",
    )
    .bind(ids)
    .execute(&mut *connection)
    .await
    .map_err(failed(REOPENING))?;
    record::insert_events(connection, &events).await?;
    Ok(leases)
}

/// `new` is a JSON array of ids in hex.
async fn lease_new(
    connection: &mut SqliteConnection,
    new: &str,
    until: Timestamp,
) -> Result<Vec<Lease>, StoreError> {
    let rows = sqlx::query(
        "UPDATE deliveries SET lease_epoch = lease_epoch + 1, due_at = max(next_attempt_at, ?2)
        WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND status = 'pending'
        RETURNING id, lease_epoch",
    )
    .bind(new)
    .bind(until.timestamp_millis())
    .fetch_all(connection)
    .await
    .map_err(failed("lease deliveries"))?;
    rows.iter().map(lease).collect()
}

fn lease(row: &SqliteRow) -> Result<Lease, StoreError> {
    let cells = rows::Cells::new(row, "deliveries");
    Ok(Lease {
        delivery_id: DeliveryId(cells.get("id")?),
        epoch: cells.get("lease_epoch")?,
    })
}
