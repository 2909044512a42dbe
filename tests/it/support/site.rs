//! One worker with everything around it, on either database.

use std::path::PathBuf;

use tempfile::TempDir;

use super::{
    erp::Erp,
    nats::NatsServer,
    postgres::Postgres,
    receiver::Receiver,
    worker::{Environment, Worker},
};

/// One worker, on PostgreSQL or SQLite, with everything around it.
pub(crate) struct Site {
    pub(crate) server: NatsServer,
    pub(crate) erp: Erp,
    pub(crate) receiver: Receiver,
    pub(crate) worker: Worker,
    pub(crate) database: Database,
}

pub(crate) enum Database {
    Postgres(Postgres),
    Sqlite(TempDir),
}

impl Database {
    /// The database's file, where it is one.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Postgres(_) => None,
            Self::Sqlite(folder) => Some(folder.path().join("it.db")),
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres(database) => database.url(),
            Self::Sqlite(folder) => format!("sqlite://{}", folder.path().join("it.db").display()),
        }
    }
}

pub(crate) async fn on_postgres() -> Site {
    site(Database::Postgres(Postgres::database().await)).await
}

pub(crate) async fn on_sqlite() -> Site {
    site(Database::Sqlite(tempfile::tempdir().expect("a folder"))).await
}

async fn site(database: Database) -> Site {
    let server = NatsServer::start().await;
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    Site {
        server,
        erp,
        receiver: Receiver::start(),
        worker,
        database,
    }
}

/// Makes a test on PostgreSQL and one on SQLite of each function, which takes a [`Site`].
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test] async fn $name() {
                super::$name($crate::support::site::on_postgres().await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test] async fn $name() {
                super::$name($crate::support::site::on_sqlite().await).await;
            })*
        }
    };
}

pub(crate) use on_both;
