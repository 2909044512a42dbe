//! The worker's database, and what is asked of it directly.

use sqlx::{ConnectOptions as _, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use crate::support::postgres::Postgres;

/// Gone when it is dropped.
pub(crate) enum Database {
    Postgres(Postgres),
    Sqlite(TempDir),
}

impl Database {
    pub(crate) async fn postgres() -> Self {
        Self::Postgres(Postgres::database().await)
    }

    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres(database) => database.url(),
            Self::Sqlite(folder) => {
                format!("sqlite://{}", folder.path().join("bench.db").display())
            }
        }
    }

    /// Deliveries that wait.
    pub(crate) async fn parked_rows(&self) -> u64 {
        let count = "SELECT count(*) FROM deliveries WHERE status = 'pending'";
        u64::try_from(self.number(count).await).unwrap_or(0)
    }

    /// Runs a statement on a PostgreSQL.
    pub(crate) async fn run(&self, statement: &'static str) {
        let Self::Postgres(database) = self else {
            panic!("it is written for PostgreSQL");
        };
        let options: PgConnectOptions = database.url().parse().expect("a URL");
        let options = options.ssl_mode(sqlx::postgres::PgSslMode::Disable);
        let mut connection = options.connect().await.expect("it takes a connection");
        let done = sqlx::query(statement).execute(&mut connection).await;
        done.expect("the database does it");
    }

    /// One number, on a connection of its own.
    pub(crate) async fn number(&self, statement: &'static str) -> i64 {
        let number = match self {
            Self::Postgres(database) => {
                let options: PgConnectOptions = database.url().parse().expect("a URL");
                let options = options.ssl_mode(sqlx::postgres::PgSslMode::Disable);
                let mut connection = options.connect().await.expect("it takes a connection");
                sqlx::query_scalar(statement)
                    .fetch_one(&mut connection)
                    .await
            }
            Self::Sqlite(_) => {
                let options: SqliteConnectOptions = self.url().parse().expect("a URL");
                let options = options.read_only(true);
                let mut connection = options.connect().await.expect("it takes a connection");
                sqlx::query_scalar(statement)
                    .fetch_one(&mut connection)
                    .await
            }
        };
        number.expect("the database answers")
    }
}
