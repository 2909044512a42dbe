//! A store on an empty database of its own, and what the interfaces do not offer: raw SQL.

use std::sync::Arc;

use integration_worker::{
    domain::{
        entities::{Delivery, Integration, Webhook},
        interfaces::{
            ClaimRequest, ClaimedDelivery, FirstRecord, Inserted, LeasedRecord, OutboxClaim,
            OutboxRow, RecordBatch, Store, StoreError, UnitOfWork,
        },
        values::{DeliveryId, Timestamp},
    },
    infrastructure::{
        postgres::{ConnectOptions, PostgresStore},
        sqlite::SqliteStore,
    },
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;

use crate::{samples::at, support::postgres::Postgres};

/// Makes two tests of each promise, `postgres::name` and `sqlite::name`.
macro_rules! both {
    ($($promise:ident),* $(,)?) => {
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    crate::harness::on_postgres(super::$promise).await;
                }
            )*
        }

        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    crate::harness::on_sqlite(super::$promise).await;
                }
            )*
        }
    };
}

/// A store on a database that nobody else uses.
pub(crate) struct Database {
    pub(crate) store: Arc<dyn Store>,
    place: Place,
}

enum Place {
    Postgres {
        store: PostgresStore,
        database: Postgres,
    },
    Sqlite {
        store: SqliteStore,
        folder: TempDir,
    },
}

pub(crate) async fn on_postgres(promise: impl AsyncFnOnce(&Database)) {
    let database = Postgres::database().await;
    let store = connect(&database.url()).await;
    let database = Database {
        store: Arc::new(store.clone()),
        place: Place::Postgres { store, database },
    };
    database.migrate().await.expect("it migrates");
    promise(&database).await;
    database.close().await;
}

pub(crate) async fn on_sqlite(promise: impl AsyncFnOnce(&Database)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = SqliteStore::open(&folder.path().join("store.db"))
        .await
        .expect("it opens");
    let database = Database {
        store: Arc::new(store.clone()),
        place: Place::Sqlite { store, folder },
    };
    database.migrate().await.expect("it migrates");
    promise(&database).await;
    database.close().await;
}

pub(crate) async fn connect(url: &str) -> PostgresStore {
    PostgresStore::connect(
        url,
        ConnectOptions {
            max_connections: 10,
        },
    )
    .await
    .expect("it connects")
}

// ---- Short ways to do what most promises begin with ---------------------------------------

impl Database {
    /// One unit of work, committed.
    pub(crate) async fn work(&self, body: impl AsyncFnOnce(&mut dyn UnitOfWork)) {
        let mut work = self.store.begin().await.expect("it begins");
        body(work.as_mut()).await;
        work.commit().await.expect("it commits");
    }

    /// One unit of work, dropped at its end.
    pub(crate) async fn drop_work(&self, body: impl AsyncFnOnce(&mut dyn UnitOfWork)) {
        let mut work = self.store.begin().await.expect("it begins");
        body(work.as_mut()).await;
        drop(work);
    }

    pub(crate) async fn insert_integrations(&self, all: &[Integration]) {
        self.work(async |work| {
            for one in all {
                let inserted = work.insert_integration(one).await.expect("it is in");
                assert_eq!(inserted, Inserted::Yes, "{}", one.meta.name);
            }
        })
        .await;
    }

    pub(crate) async fn insert_webhooks(&self, all: &[Webhook]) {
        self.work(async |work| {
            for one in all {
                let inserted = work.insert_webhook(one).await.expect("it is in");
                assert_eq!(inserted, Inserted::Yes, "{}", one.meta.name);
            }
        })
        .await;
    }

    /// Records from the fast lane; each must be new.
    pub(crate) async fn record_first(&self, first: Vec<FirstRecord>) {
        let count = first.len();
        let batch = RecordBatch {
            first,
            leased: Vec::new(),
        };
        let changed = self.store.record(&batch).await.expect("it is recorded");
        assert_eq!(changed.len(), count, "each is new");
    }

    /// Records from the parked lane; answers which leases still held.
    pub(crate) async fn record_leased(&self, leased: Vec<LeasedRecord>) -> Vec<DeliveryId> {
        let batch = RecordBatch {
            first: Vec::new(),
            leased,
        };
        let changed = self.store.record(&batch).await.expect("it is recorded");
        changed.into_iter().collect()
    }

    pub(crate) async fn claim(&self, request: &ClaimRequest) -> Vec<ClaimedDelivery> {
        self.store
            .claim_due(request)
            .await
            .expect("it claims")
            .deliveries
    }

    /// What the store has of a delivery, without its attempts.
    pub(crate) async fn stored(&self, delivery: &Delivery) -> Option<Delivery> {
        let found = self.store.delivery(&delivery.tenant, delivery.id).await;
        found.expect("it reads").map(|(delivery, _)| delivery)
    }

    /// Whether the event of a delivery is still kept.
    pub(crate) async fn keeps_event(&self, delivery: &Delivery) -> bool {
        let mut work = self.store.begin().await.expect("it begins");
        let found = work.delivery(&delivery.tenant, delivery.id).await;
        let (_, keeps) = found.expect("it reads").expect("it is there");
        // Not dropped: the rollback may come later, and until then the row is locked.
        work.commit().await.expect("it commits");
        keeps
    }

    /// All unpublished events, oldest first.
    pub(crate) async fn outbox(&self) -> Vec<OutboxRow> {
        let holder = uuid::Uuid::from_u128(1);
        let mut rows = Vec::new();
        for responses in [false, true] {
            let claim = OutboxClaim {
                holder,
                now: at(0),
                lease: std::time::Duration::from_mins(1),
                responses,
                limit: 100_000,
                max_bytes: u32::MAX,
            };
            let found = self.store.outbox_batch(claim).await.expect("it reads");
            rows.extend(found.expect("nobody else holds the lease"));
        }
        let released = self.store.outbox_release(holder).await;
        released.expect("it is given up");
        rows
    }
}

// ---- What the interfaces do not offer -----------------------------------------------------

impl Database {
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        match &self.place {
            Place::Postgres { store, .. } => store.migrate().await,
            Place::Sqlite { store, .. } => store.migrate().await,
        }
    }

    /// Runs statements that both databases understand, past the store and its checks.
    pub(crate) async fn execute(&self, sql: &str) {
        match &self.place {
            Place::Postgres { database, .. } => {
                let sql = format!("{UNCHECKED}{sql}");
                crate::support::postgres::execute(&database.url(), &sql).await;
            }
            Place::Sqlite { .. } => {
                let sql = format!("PRAGMA ignore_check_constraints = ON; {sql}");
                let mut connection = self.sqlite().await;
                let done = sqlx::raw_sql(AssertSqlSafe(sql.as_str()))
                    .execute(&mut connection)
                    .await;
                done.unwrap_or_else(|error| panic!("{sql}: {error}"));
                connection.close().await.expect("it says goodbye");
            }
        }
    }

    /// How many rows a table has.
    pub(crate) async fn count(&self, table: &str) -> i64 {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let count = match &self.place {
            Place::Postgres { database, .. } => {
                let mut connection = PgConnection::connect(&database.url())
                    .await
                    .expect("it connects");
                sqlx::query_scalar(sql).fetch_one(&mut connection).await
            }
            Place::Sqlite { .. } => {
                let mut connection = self.sqlite().await;
                sqlx::query_scalar(sql).fetch_one(&mut connection).await
            }
        };
        count.unwrap_or_else(|error| panic!("{table}: {error}"))
    }

    /// A list of texts, as SQL writes it.
    pub(crate) fn text_list(&self, items: &[&str]) -> String {
        match &self.place {
            Place::Postgres { .. } => format!("'{{{}}}'", items.join(",")),
            Place::Sqlite { .. } => format!("'[\"{}\"]'", items.join("\",\"")),
        }
    }

    async fn sqlite(&self) -> SqliteConnection {
        let Place::Sqlite { folder, .. } = &self.place else {
            unreachable!("only asked for SQLite");
        };
        let path = folder.path().join("store.db");
        SqliteConnection::connect(&format!("sqlite://{}", path.display()))
            .await
            .expect("it opens")
    }

    async fn close(self) {
        match self.place {
            Place::Postgres { store, .. } => store.close().await,
            Place::Sqlite { store, .. } => store.close().await,
        }
    }
}

/// Takes away the checks that would refuse a broken row.
const UNCHECKED: &str = "DO $$ DECLARE c record; BEGIN
    FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
        WHERE contype = 'c' AND connamespace = 'public'::regnamespace
    LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.conname); END LOOP;
END $$; ";

/// In order, for what may come in any.
pub(crate) fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort();
    items
}

/// What to claim when nothing limits it: everything due at `now`, for a minute.
pub(crate) fn everything_due(now: Timestamp) -> ClaimRequest {
    ClaimRequest {
        now,
        lease_until: now + chrono::TimeDelta::seconds(60),
        limit: 10_000,
        per_webhook: 10_000,
        exclude: Vec::new(),
        only: None,
    }
}
