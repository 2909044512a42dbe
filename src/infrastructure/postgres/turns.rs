//! The turns of ordered deliveries. An index of their own has the highest ones, so that looking for those
//! passes by nothing else.

use sqlx::postgres::PgBindIterExt as _;
use uuid::Uuid;

use crate::domain::{entities::LanePlace, interfaces::StoreError, values::DeliveryId};

use super::{error::during, pool::Pool};

/// Implements [`crate::domain::interfaces::DeliveryStore::highest_turns`].
pub(super) async fn highest(pool: &Pool, limit: u32) -> Result<Vec<(DeliveryId, i64)>, StoreError> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT id, lane_turn FROM deliveries
         WHERE lane_key IS NOT NULL AND (status = 'pending' OR lane_blocks) AND lane_turn > 0
         ORDER BY lane_turn DESC LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await
    .map_err(during("look for the highest turns"))?;
    let turns = rows.into_iter().map(|(id, turn)| (DeliveryId(id), turn));
    Ok(turns.collect())
}

/// Implements [`crate::domain::interfaces::DeliveryStore::put_ahead`].
pub(super) async fn put_ahead(pool: &Pool, ids: &[DeliveryId]) -> Result<u64, StoreError> {
    // Locked in the order in which batches of outcomes lock theirs.
    let done = sqlx::query(
        "WITH locked AS MATERIALIZED (
             SELECT id FROM deliveries
             WHERE id = ANY($1::uuid[]) AND lane_key IS NOT NULL AND lane_turn > 0
             ORDER BY id FOR UPDATE
         )
         UPDATE deliveries d SET lane_turn = d.lane_turn - $2 FROM locked l WHERE d.id = l.id",
    )
    .bind(ids.iter().map(|id| id.0).bind_iter())
    .bind(LanePlace::AHEAD)
    .execute(pool)
    .await
    .map_err(during("put deliveries ahead in their lanes"))?;
    Ok(done.rows_affected())
}
