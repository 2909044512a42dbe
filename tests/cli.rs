//! The program as a user meets it: what it prints, and with which code it ends.

use std::process::{Command, Output};

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
