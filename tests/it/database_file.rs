//! A worker on a SQLite file: where it may lie, and who else may have it.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};

use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    nats::NatsServer,
    worker::{Environment, Worker},
};

fn environment(nats_url: &str, file: &Path) -> Environment {
    Environment::new(nats_url, &format!("sqlite://{}", file.display()))
}

fn in_new_folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("worker.db");
    (folder, file)
}

#[tokio::test]
async fn a_place_that_cannot_be_a_database_is_a_fault_of_the_configuration() {
    let (folder, file) = in_new_folder();
    fs::write(&file, "name;street;city\n".repeat(1000)).expect("it is ours");
    for (path, remedy) in [
        (folder.path().to_owned(), "name a file in it"),
        (folder.path().join("missing/worker.db"), "create it first"),
        (file, "name another file, or move this one away"),
        ("/proc/nowhere.db".into(), "must be able to read and write"),
    ] {
        for command in ["run", "migrate"] {
            let environment = environment("nats://127.0.0.1:1", &path);
            let mut worker = Worker::command(&[command], &environment);

            let code = worker.exit_code(PATIENCE).await;

            let text = worker.output().text();
            assert_eq!(code, 78, "{command}: {text}");
            for part in ["DATABASE_URL: ", remedy, &*path.to_string_lossy()] {
                let part = part.strip_suffix("/missing/worker.db").unwrap_or(part);
                assert!(text.contains(part), "{part} in {text}");
            }
        }
    }
}

/// Holds the file as a program does that lets nobody else read or write it.
async fn hold(file: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(file);
    let options = options.create_if_missing(true);
    let mut connection = options.connect().await.expect("it opens");
    let begun = sqlx::query("BEGIN EXCLUSIVE").execute(&mut connection);
    begun.await.expect("nobody else has it");
    connection
}

#[tokio::test]
async fn a_worker_waits_for_a_file_that_another_program_holds_and_says_so() {
    let server = NatsServer::start().await;
    let (_folder, file) = in_new_folder();
    let holder = hold(&file).await;
    let mut worker = Worker::start(&environment(&server.url(), &file));
    let told = Cell::new(0);
    let often_told = |line: &str| {
        let waits = line.contains("waiting for the database") && line.contains("is locked");
        told.set(told.get() + u32::from(waits && line.contains("another program holds it")));
        (told.get() == 4).then_some(())
    };
    worker.output().wait_for(PATIENCE, often_told).await;
    assert_eq!(worker.ops("/ready").await.0, 503);

    holder.close().await.expect("it lets go");

    worker.wait_ready().await;
    assert_eq!(worker.terminate().await, 0);
}

#[tokio::test]
async fn a_file_has_one_worker_at_a_time() {
    let server = NatsServer::start().await;
    let (folder, file) = in_new_folder();
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&file, &link).expect("it is ours");
    let environment_of = |path: &Path| environment(&server.url(), path);
    let mut first = Worker::start(&environment_of(&link));
    first.wait_ready().await;

    for (command, path) in [("run", &file), ("run", &link), ("migrate", &file)] {
        let mut second = Worker::command(&[command], &environment_of(path));
        let code = second.exit_code(PATIENCE).await;
        let text = second.output().text();
        assert_eq!(code, 1, "{command}: {text}");
        let told = format!("file {} is in use by another process", path.display());
        assert!(
            text.contains(&told) && text.contains("PostgreSQL"),
            "{text}"
        );
    }
    let mut doctor = Worker::command(&["doctor"], &environment_of(&file));
    assert_eq!(doctor.exit_code(PATIENCE).await, 0);
    assert_eq!(first.ops("/ready").await.0, 200);

    first.kill9();

    let mut next = Worker::start(&environment_of(&file));
    next.wait_ready().await;
    assert_eq!(next.terminate().await, 0);
}
