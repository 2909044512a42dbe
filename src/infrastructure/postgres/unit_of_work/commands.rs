//! What is kept of the commands themselves: their replies and the audit log.

use sqlx::postgres::{PgBindIterExt as _, PgConnection};

use crate::domain::{
    interfaces::{AuditRow, CommandKey, StoreError, StoredReply},
    values::Timestamp,
};

use super::super::{error::during, text::clean};

pub(super) async fn reply(
    connection: &mut PgConnection,
    key: &CommandKey,
) -> Result<Option<StoredReply>, StoreError> {
    const OPERATION: &str = "look the reply of a command up";
    // There may be no row to lock yet. The lock is of the key's hash: two keys that share one wait for
    // each other in vain, and that is all.
    sqlx::query(
        "SELECT pg_advisory_xact_lock(
             hashtextextended($1 || chr(31) || $2 || chr(31) || $3, 0))",
    )
    .bind(key.tenant.as_str())
    .bind(clean(&key.action))
    .bind(clean(&key.key))
    .execute(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    // Its own statement: only now it sees what the former holder of the lock committed.
    let row: Option<(Option<String>, Vec<u8>, Timestamp)> = sqlx::query_as(
        "SELECT key_id, reply, created_at FROM idempotency
         WHERE tenant = $1 AND action = $2 AND key = $3",
    )
    .bind(key.tenant.as_str())
    .bind(clean(&key.action))
    .bind(clean(&key.key))
    .fetch_optional(&mut *connection)
    .await
    .map_err(during(OPERATION))?;
    Ok(row.map(|(key_id, reply, created_at)| StoredReply {
        key_id,
        reply,
        created_at,
    }))
}

pub(super) async fn keep_reply(
    connection: &mut PgConnection,
    key: &CommandKey,
    reply: &StoredReply,
) -> Result<(), StoreError> {
    // An older one gives way: whoever asked for it found it outdated.
    sqlx::query(
        "INSERT INTO idempotency (tenant, action, key, key_id, reply, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (tenant, action, key) DO UPDATE
         SET key_id = excluded.key_id, reply = excluded.reply,
             created_at = excluded.created_at",
    )
    .bind(key.tenant.as_str())
    .bind(clean(&key.action))
    .bind(clean(&key.key))
    .bind(&reply.key_id)
    .bind(&reply.reply)
    .bind(reply.created_at)
    .execute(connection)
    .await
    .map_err(during("keep the reply of a command"))?;
    Ok(())
}

pub(super) async fn add_audit(
    connection: &mut PgConnection,
    rows: &[AuditRow],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let each = || rows.iter();
    sqlx::query(
        "INSERT INTO audit (tenant, at, actor, action, entity_id, command_id, correlation_id)
         SELECT r.tenant, r.at, r.actor, r.action, r.entity_id, r.command_id, r.correlation_id
         FROM UNNEST($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[],
             $6::text[], $7::text[]) WITH ORDINALITY
             AS r (tenant, at, actor, action, entity_id, command_id, correlation_id, place)
         ORDER BY r.place",
    )
    .bind(each().map(|r| r.tenant.as_str()).bind_iter())
    .bind(each().map(|r| r.at).bind_iter())
    .bind(each().map(|r| clean(&r.actor)).bind_iter())
    .bind(each().map(|r| clean(&r.action)).bind_iter())
    .bind(each().map(|r| clean(&r.entity_id)).bind_iter())
    .bind(each().map(|r| clean(&r.command_id)).bind_iter())
    .bind(each().map(|r| clean(&r.correlation_id)).bind_iter())
    .execute(connection)
    .await
    .map_err(during("write the audit log"))?;
    Ok(())
}
