//! The program as a user meets it: what it prints, and with which code it ends.

use std::{
    fs::File,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use integration_worker as _;

/// Runs the program with these variables alone.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_integration-worker"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn faults_of_the_configuration_are_all_told_and_end_it_with_78() {
    for command in ["run", "doctor"] {
        let ended = run(&[command], &[("OPS_ADDR", "nowhere"), ("AUTH_MODE", "jwt")]);
        assert_eq!(ended.status.code(), Some(78), "{ended:?}");
        let told = text(&ended.stdout) + &text(&ended.stderr);
        for variable in [
            "DATABASE_URL",
            "ENCRYPTION_KEYS_FILE",
            "OPS_ADDR",
            "AUTH_MODE",
        ] {
            assert!(told.contains(&format!("{variable}: ")), "{told}");
        }
    }
    let ended = run(&["migrate"], &[("DATABASE_URL", "mysql://root:c4n4ry@a/b")]);
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(!text(&ended.stderr).contains("c4n4ry"), "{ended:?}");
}

#[test]
fn wrong_usage_ends_it_with_2_and_help_with_0() {
    for arguments in [&[][..], &["fly"], &["webhook"], &["keys", "rotate"]] {
        let ended = run(arguments, &[]);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
    }
    let ended = run(&["--help"], &[]);
    assert_eq!(ended.status.code(), Some(0));
    assert!(text(&ended.stdout).contains("NATS_SUBJECT_PREFIX"));
}

/// Runs `keys list` with this standard output.
fn list_keys_to(out: impl Into<Stdio>) -> Output {
    let key = format!("k1:{}=", "A".repeat(43));
    Command::new(env!("CARGO_BIN_EXE_integration-worker"))
        .args(["keys", "list"])
        .env_clear()
        .env("ENCRYPTION_KEYS", key)
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(Child::wait_with_output)
        .expect("it runs")
}

#[test]
fn a_result_that_is_lost_is_told_and_ends_it_with_1() {
    let full = File::create("/dev/full").expect("Linux has it");
    let ended = list_keys_to(full);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let told = text(&ended.stderr);
    assert!(
        told.starts_with("integration-worker: standard output cannot be written: No space left"),
        "{told}"
    );
}

#[test]
fn a_reader_that_has_gone_ends_it_quietly() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let ended = list_keys_to(writer);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(text(&ended.stderr), "");
}

#[test]
fn an_unknown_action_ends_it_with_2_before_anybody_is_asked() {
    let ended = run(
        &["integration", "bogus"],
        &[("NATS_URL", "nats://127.0.0.1:1")],
    );
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let told = text(&ended.stderr);
    assert!(
        told.contains("\"bogus\" is no action of integration"),
        "{told}"
    );
    assert!(told.contains("rotate_credentials"), "{told}");
}

#[test]
fn a_client_that_reaches_nobody_ends_with_69() {
    // Nobody may listen on port 1 but root's own services of old.
    let nowhere = [("NATS_URL", "nats://127.0.0.1:1")];
    for arguments in [&["webhook", "list"][..], &["status"], &["events", "tail"]] {
        let ended = run(arguments, &nowhere);
        assert_eq!(ended.status.code(), Some(69), "{arguments:?}: {ended:?}");
        assert!(
            text(&ended.stderr).contains("nats://127.0.0.1:1 cannot be reached"),
            "{ended:?}"
        );
    }
}

#[test]
fn keys_are_made_listed_and_taken_by_the_doctor_and_a_database_is_migrated_twice() {
    let folder = tempfile::tempdir().expect("there is room");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (keys, database) = (at("keys"), format!("sqlite://{}", at("worker.db")));
    let variables = [
        ("ENCRYPTION_KEYS_FILE", keys.as_str()),
        ("DATABASE_URL", database.as_str()),
        ("NATS_URL", "nats://127.0.0.1:1"),
    ];
    for expected in [
        (&["keys", "rotate"][..], "k1 is now the key that encrypts"),
        (&["keys", "rotate"], "k2 is now the key that encrypts"),
        (
            &["keys", "list"],
            "k2  encrypts and decrypts\nk1  decrypts, the database does not need it\n",
        ),
        (&["migrate"], "was brought up to this program's tables"),
        (&["migrate"], "is up to date"),
        (&["keys", "rewrap"], "0 rows were sealed anew with k2"),
        (
            &["keys", "list"],
            "k1  decrypts, the database does not need it\n",
        ),
    ] {
        let (arguments, told) = expected;
        let ended = run(arguments, &variables);
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
        assert!(
            text(&ended.stdout).contains(told),
            "{arguments:?}: {ended:?}"
        );
    }
    let ended = run(&["doctor"], &variables);
    assert_eq!(ended.status.code(), Some(1), "NATS is not there: {ended:?}");
    let told = text(&ended.stdout);
    for line in ["✓ configuration: ", "✗ NATS: ", "✓ database: ", "✓ keys: "] {
        assert!(told.contains(line), "{told}");
    }
}

#[test]
fn a_database_that_does_not_answer_ends_a_migration_with_69_and_the_reason() {
    for (host, reason) in [
        ("127.0.0.1:1", "onnection refused"),
        ("nowhere.invalid:5432", "failed to lookup address"),
    ] {
        let url = format!("postgresql://user:c4n4ry@{host}/integration");
        let ended = run(&["migrate"], &[("DATABASE_URL", url.as_str())]);
        assert_eq!(ended.status.code(), Some(69), "{ended:?}");
        let told = text(&ended.stderr);
        assert!(told.contains(reason) && told.contains(host), "{told}");
        assert!(!told.contains("c4n4ry"), "{told}");
    }
}

#[test]
fn a_worker_whose_log_nobody_reads_goes_on() {
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("worker.db");
    let (reader, log) = std::io::pipe().expect("there are pipes");
    drop(reader);
    let mut worker = Command::new(env!("CARGO_BIN_EXE_integration-worker"))
        .arg("run")
        .env_clear()
        .env("DATABASE_URL", format!("sqlite://{}", file.display()))
        .env("ENCRYPTION_KEYS", format!("k1:{}=", "A".repeat(43)))
        .env("NATS_URL", "nats://127.0.0.1:1")
        .env("OPS_ADDR", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("it starts");
    // Where the file is, a log line was before: where the ops server listens.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !file.exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
        if worker.try_wait().expect("it is ours").is_some() {
            break;
        }
    }

    let kill = format!("kill -TERM {}", worker.id());
    let killed = Command::new("sh").args(["-c", &kill]).status();

    assert!(killed.is_ok_and(|status| status.success()));
    let ended = worker.wait().expect("it is ours");
    assert_eq!(ended.code(), Some(0), "{ended:?}");
}

#[test]
fn a_rewrap_tells_all_faults_at_once_and_a_database_that_is_not_there() {
    let ended = run(&["keys", "rewrap"], &[]);
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    let told = text(&ended.stderr);
    for variable in ["DATABASE_URL: ", "ENCRYPTION_KEYS_FILE: "] {
        assert!(told.contains(variable), "{told}");
    }
    let folder = tempfile::tempdir().expect("there is room");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let keys = at("keys");
    let made = run(&["keys", "rotate", "--file", &keys], &[]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let missing = format!("sqlite://{}", at("worker.db"));
    for (database, code) in [("postgresql://127.0.0.1:1/erp", 69), (missing.as_str(), 1)] {
        let variables = [
            ("DATABASE_URL", database),
            ("ENCRYPTION_KEYS_FILE", keys.as_str()),
        ];
        let ended = run(&["keys", "rewrap"], &variables);
        assert_eq!(ended.status.code(), Some(code), "{database}: {ended:?}");
    }
    assert!(!folder.path().join("worker.db").exists(), "it is not made");
}
