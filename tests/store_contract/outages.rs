//! A database that is not there: told as such, and used again when it is back. Of PostgreSQL alone:
//! SQLite is a file beside us.

use integration_worker::domain::interfaces::{
    Inserted, Queries as _, Store, StoreError, UnitOfWorkFactory as _,
};

use crate::{
    harness::connect,
    samples::{at, integration},
    support::{PATIENCE, eventually, postgres::PostgresServer},
};

fn assert_unavailable<T>(answer: Result<T, StoreError>, what: &str) {
    let error = answer.err().unwrap_or_else(|| panic!("{what}: it is down"));
    assert!(
        matches!(error, StoreError::Unavailable { .. }),
        "{what}: {error:?}"
    );
}

/// All at once: each may wait a while for a connection.
async fn assert_all_unavailable(store: &dyn Store) {
    let (ping, begun, version, pruned, stats) = tokio::join!(
        store.ping(),
        store.begin(),
        store.registry_version(),
        store.prune_outbox(at(0), 1),
        store.stats(at(0)),
    );
    assert_unavailable(ping, "ping");
    assert_unavailable(begun, "begin");
    assert_unavailable(version, "registry");
    assert_unavailable(pruned, "prune");
    assert_unavailable(stats, "stats");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_that_is_down_is_unavailable_and_used_again_when_it_is_back() {
    let server = PostgresServer::start().await;
    let store = connect(&server.url()).await;
    store.migrate().await.expect("it migrates");
    for crash in [false, true] {
        let mut work = store.begin().await.expect("it begins");
        let one = integration(if crash { "one" } else { "two" });
        let inserted = work.insert_integration(&one).await;
        assert_eq!(inserted.expect("it is in"), Inserted::Yes);
        if crash {
            server.crash().await;
        } else {
            server.stop().await;
        }

        assert_unavailable(work.commit().await, "commit");
        assert_all_unavailable(&store).await;
        server.restart().await;

        eventually(PATIENCE, async || store.ping().await.ok()).await;
        let stats = store.stats(at(0)).await.expect("it counts");
        assert_eq!(stats.outbox, 0);
        let read = store.get_integration(&one.meta.tenant, one.id).await;
        assert_eq!(read.expect("it reads"), None, "it was not committed");
    }
    store.close().await;
}
