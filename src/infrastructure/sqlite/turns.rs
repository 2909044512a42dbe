//! The turns of ordered deliveries. An index of their own has the highest ones, so that looking for those
//! passes by nothing else.

use uuid::Uuid;

use crate::domain::{entities::LanePlace, interfaces::StoreError, values::DeliveryId};

use super::{SqliteStore, batch::hex_array, error::failed};

/// Implements [`crate::domain::interfaces::DeliveryStore::highest_turns`].
pub(super) async fn highest(
    store: &SqliteStore,
    limit: u32,
) -> Result<Vec<(DeliveryId, i64)>, StoreError> {
    const LOOK: &str = "look for the highest turns";
    let mut connection = store.read(LOOK).await?;
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT id, lane_turn FROM deliveries INDEXED BY deliveries_high_turns
        WHERE lane_key IS NOT NULL AND (status = 'pending' OR lane_blocks) AND lane_turn > 0
        ORDER BY lane_turn DESC LIMIT ?1",
    )
    .bind(limit)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed(LOOK))?;
    let turns = rows.into_iter().map(|(id, turn)| (DeliveryId(id), turn));
    Ok(turns.collect())
}

/// Implements [`crate::domain::interfaces::DeliveryStore::put_ahead`].
pub(super) async fn put_ahead(store: &SqliteStore, ids: &[DeliveryId]) -> Result<u64, StoreError> {
    let query = sqlx::query(
        "UPDATE deliveries SET lane_turn = lane_turn - ?2
        WHERE id IN (SELECT unhex(value) FROM json_each(?1))
            AND lane_key IS NOT NULL AND lane_turn > 0",
    )
    .bind(hex_array(ids.iter().map(|id| id.0)))
    .bind(LanePlace::AHEAD);
    store
        .execute("put deliveries ahead in their lanes", query)
        .await
}
