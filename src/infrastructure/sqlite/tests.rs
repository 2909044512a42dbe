//! Promises of this adapter alone; those of every store are in `tests/store_contract`.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use crate::domain::{
    entities::{Attempt, Batching, Delivery, DeliveryStatus},
    interfaces::{
        DeliveryStore as _, FirstRecord, OutboxStore as _, Queries as _, RecordBatch,
        RegistryReader as _, StoreError, StoredEvent, UnitOfWorkFactory as _,
    },
    values::{DeliveryId, TenantId, Timestamp, WebhookId},
};

use super::{SqliteStore, batches, claim, lanes};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_timestamp_millis(1_772_350_000_000 + millis).expect("it is a time")
}

async fn store() -> (SqliteStore, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(&folder.path().join("store.db")).await;
    let store = store.expect("it opens");
    store.migrate().await.expect("it migrates");
    (store, folder)
}

fn first(number: u32) -> FirstRecord {
    let tenant = TenantId::try_new("valeo").expect("it is a tenant");
    let webhook_id = WebhookId(uuid::Uuid::from_u128(1));
    let event_id = format!("event-{number}");
    FirstRecord {
        delivery: Delivery {
            id: DeliveryId::derive(webhook_id, &tenant, &event_id),
            tenant,
            webhook_id,
            event_id,
            event_type: "order.created".to_owned(),
            correlation_id: None,
            source_sequence: None,
            status: DeliveryStatus::Delivered,
            attempt_count: 1,
            event_version: 1,
            budget_base: 0,
            next_attempt_at: None,
            error: None,
            created_at: at(0),
            completed_at: Some(at(0)),
            lane: None,
            batch: Batching::Alone,
        },
        attempt: Some(Attempt {
            number: 1,
            started_at: at(0),
            duration_ms: 3,
            status_code: Some(200),
            error: None,
            response: Some("x".repeat(2048)),
        }),
        event: None,
        events: Vec::new(),
    }
}

fn batch(numbers: std::ops::Range<u32>) -> RecordBatch {
    RecordBatch {
        first: numbers.map(first).collect(),
        leased: Vec::new(),
    }
}

fn told(error: &StoreError) -> String {
    crate::shared::error_chain::Chain(error).to_string()
}

#[tokio::test]
async fn a_folder_in_place_of_the_file_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = SqliteStore::open(folder.path()).await;
    let error = error.expect_err("a folder is no file");
    assert!(!error.is_retryable());
    assert!(told(&error).contains("is a folder"), "{}", told(&error));
}

#[tokio::test]
async fn a_missing_folder_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = folder.path().join("missing");
    let error = SqliteStore::open(&missing.join("store.db")).await;
    let error = error.expect_err("its folder is missing");
    let text = told(&error);
    assert!(!error.is_retryable());
    assert!(text.contains(&*missing.to_string_lossy()), "{text}");
    assert!(text.contains("create it first"), "{text}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    std::fs::write(&path, "name;street;city\n".repeat(1000)).expect("it is written");
    let error = SqliteStore::open(&path).await.expect_err("it is a table");
    let text = told(&error);
    assert!(!error.is_retryable());
    assert!(text.contains("not a database"), "{text}");
}

#[tokio::test]
async fn only_the_owner_may_read_what_is_made() {
    let (store, folder) = store().await;
    store.record(&batch(0..1)).await.expect("it records");
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_is_there_keeps_its_mode() {
    let (store, folder) = store().await;
    store.close().await;
    let path = folder.path().join("store.db");
    std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("it is ours");

    let store = SqliteStore::open(&path).await.expect("it opens");

    assert_eq!(store.registry_version().await.expect("it reads"), 0);
    assert_eq!(mode(&path), 0o640);
}

fn mode(path: &Path) -> u32 {
    let found = std::fs::metadata(path).expect("it is there");
    found.permissions().mode() & 0o777
}

#[tokio::test]
async fn two_processes_on_one_file_wait_for_each_other() {
    let (one, folder) = store().await;
    let other = SqliteStore::open(&folder.path().join("store.db")).await;
    let other = other.expect("it opens");
    let unit = one.begin().await.expect("it begins");
    let (records, nothing) = (batch(0..1), batch(0..0));
    let recording = other.record(&records);
    tokio::pin!(recording);
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut recording).await;
    assert!(waits.is_err(), "the other one has its turn");
    assert!(other.record(&nothing).await.is_ok());
    assert_eq!(other.registry_version().await.expect("reads go on"), 0);
    unit.commit().await.expect("it commits");
    assert_eq!(recording.await.expect("its turn has come").len(), 1);
}

#[tokio::test]
async fn two_processes_migrate_one_file_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.db");
    let one = SqliteStore::open(&path).await.expect("it opens");
    let other = SqliteStore::open(&path).await.expect("it opens");
    assert!(!one.migrations_current().await.expect("it reads"));
    let (first, second) = tokio::join!(one.migrate(), other.migrate());
    first.expect("it migrates");
    second.expect("it waits and finds nothing to do");
    assert!(other.migrations_current().await.expect("it reads"));
}

#[tokio::test]
async fn a_full_disk_is_retryable_and_leaves_nothing_behind() {
    let (store, _folder) = store().await;
    limit_pages(&store, 80).await;
    let error = store.record(&batch(0..2000)).await;
    let error = error.expect_err("there is no room");
    assert!(error.is_retryable(), "{error:?}");
    assert!(told(&error).contains("full"), "{}", told(&error));

    limit_pages(&store, 1_000_000).await;
    let changed = store.record(&batch(0..2000)).await.expect("there is room");
    assert_eq!(changed.len(), 2000, "nothing was left of the first try");
}

/// The limit of one connection: it goes with it.
async fn limit_pages(store: &SqliteStore, pages: u32) {
    let pragma = AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
    let mut writer = store.writer.acquire().await.expect("it is free");
    let done = sqlx::raw_sql(pragma).execute(&mut *writer).await;
    done.expect("it is set");
}

#[tokio::test]
async fn a_cancelled_caller_leaves_the_turn_to_the_next() {
    let (store, _folder) = store().await;
    for number in 0..50 {
        let records = batch(0..500);
        let patience = Duration::from_micros(200 * number);
        // Cut off anywhere: before it begins, in mid-statement, while it commits.
        let cut = tokio::time::timeout(patience, store.record(&records)).await;
        if let Ok(done) = cut {
            done.expect("it is recorded");
        }
    }
    let changed = store.record(&batch(500..501)).await;
    assert_eq!(changed.expect("it is recorded").len(), 1);
    let ids: Vec<DeliveryId> = (0..500).map(|number| first(number).delivery.id).collect();
    let known = store.recorded(&ids);
    let known = known.await.expect("it reads").len();
    assert!(known == 0 || known == 500, "all or nothing, not {known}");
}

#[tokio::test]
async fn of_two_first_records_of_one_delivery_the_first_counts() {
    let (store, _folder) = store().await;
    let mut records = batch(0..3);
    let mut again = first(1);
    again.delivery.status = DeliveryStatus::Pending;
    again.delivery.next_attempt_at = Some(at(1));
    again.event = Some(StoredEvent {
        meta: "{}".to_owned(),
        raw: bytes::Bytes::new(),
    });
    records.first.push(again);
    records.first.push(first(3));
    let changed = store.record(&records).await.expect("it is recorded");
    assert_eq!(changed.len(), 4);
    let stats = store.stats(at(1)).await.expect("it counts");
    assert_eq!(stats.parked, 0);
    let changed = store.record(&records).await.expect("it is recorded");
    assert!(changed.is_empty(), "once more is harmless");
}

#[tokio::test]
async fn the_audit_log_is_append_only() {
    let (store, _folder) = store().await;
    let mut writer = store.writer.acquire().await.expect("it is free");
    let row = "INSERT INTO audit (tenant, at, actor, action, entity_id, command_id, correlation_id)
        VALUES ('t', 1, 'a', 'a', 'e', 'c', 'c')";
    let done = sqlx::query(row).execute(&mut *writer).await;
    done.expect("a line is added");
    for refused in ["UPDATE audit SET at = 2", "DELETE FROM audit"] {
        let error = sqlx::query(refused).execute(&mut *writer).await;
        let text = error.expect_err("it stays as it is").to_string();
        assert!(text.contains("append-only"), "{text}");
    }
}

/// The steps of its plan.
async fn plan(store: &SqliteStore, sql: &str) -> Vec<String> {
    let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
    let mut reader = store.read("explain").await.expect("it reads");
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain)
        .fetch_all(&mut *reader)
        .await
        .expect("it has a plan");
    plan.into_iter().map(|(.., step)| step).collect()
}

#[tokio::test]
async fn claims_and_prunes_read_no_table_from_end_to_end() {
    let (store, _folder) = store().await;
    for sql in [
        claim::CANDIDATES,
        batches::WAITING,
        batches::MADE,
        batches::NEW,
        lanes::FRONTS,
        lanes::FOREMOST,
        super::queries::STATS,
        super::deliveries::PRUNABLE,
    ] {
        let plan = plan(&store, sql).await;
        for step in &plan {
            let mut words = step.split(' ');
            let scans = words.next() == Some("SCAN");
            let table = words
                .next()
                .is_some_and(|name| ["c", "d", "e", "f", "i", "n", "o"].contains(&name));
            let end_to_end = scans && table;
            assert!(!end_to_end, "{step} in {plan:#?}");
        }
    }
}

#[tokio::test]
async fn a_claim_finds_the_next_webhook_and_the_next_lane_in_the_index() {
    let (store, _folder) = store().await;
    let plan = plan(&store, lanes::FRONTS).await;
    for wanted in [
        "SEARCH d USING INDEX deliveries_lanes (webhook_id>?)",
        "SEARCH n USING INDEX deliveries_lanes (webhook_id=? AND lane_key>?)",
    ] {
        let is_found = plan.iter().any(|step| step.contains(wanted));
        assert!(is_found, "{wanted} is not in {plan:#?}");
    }
}

#[tokio::test]
async fn a_relay_of_another_process_is_let_in_when_the_lease_has_ended() {
    let (one, folder) = store().await;
    let other = SqliteStore::open(&folder.path().join("store.db")).await;
    let other = other.expect("it opens");
    let claim = |holder: u128, now| crate::domain::interfaces::OutboxClaim {
        holder: uuid::Uuid::from_u128(holder),
        now: at(now),
        lease: Duration::from_secs(10),
        responses: false,
        limit: 10,
        max_bytes: u32::MAX,
    };
    assert!(
        one.outbox_batch(claim(1, 0))
            .await
            .expect("it reads")
            .is_some()
    );
    assert!(
        other
            .outbox_batch(claim(2, 9_999))
            .await
            .expect("it reads")
            .is_none()
    );
    assert!(
        other
            .outbox_batch(claim(2, 10_000))
            .await
            .expect("it reads")
            .is_some()
    );
    assert!(
        one.outbox_batch(claim(1, 10_001))
            .await
            .expect("it reads")
            .is_none()
    );
}

#[tokio::test]
async fn a_relay_that_holds_its_lease_needs_no_turn_to_write() {
    let (store, _folder) = store().await;
    let claim = |holder: u128, now| crate::domain::interfaces::OutboxClaim {
        holder: uuid::Uuid::from_u128(holder),
        now: at(now),
        lease: Duration::from_secs(10),
        responses: false,
        limit: 10,
        max_bytes: u32::MAX,
    };
    let taken = store.outbox_batch(claim(1, 0)).await;
    assert!(taken.expect("it reads").is_some());
    let unit = store.begin().await.expect("it begins");

    for (holder, now, let_in) in [(1, 1, true), (1, 5_000, true), (2, 9_999, false)] {
        let asked = store.outbox_batch(claim(holder, now));
        let asked = tokio::time::timeout(Duration::from_secs(5), asked).await;
        let answer = asked.expect("it does not wait").expect("it reads");
        assert_eq!(answer.is_some(), let_in, "{holder} at {now}");
    }
    let late = store.outbox_batch(claim(1, 5_001));
    tokio::pin!(late);
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut late).await;
    assert!(waits.is_err(), "half of the lease is over: it is renewed");
    unit.commit().await.expect("it commits");
    assert!(late.await.expect("its turn has come").is_some());
    let other = store.outbox_batch(claim(2, 15_000)).await;
    assert!(other.expect("it reads").is_none(), "it was renewed");
}
