use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use clap::{CommandFactory as _, error::ErrorKind};
use serde_json::Value;

use crate::{
    application::{commands::CommandHandler, ports::Clock, rewrap::Rewrapped},
    domain::values::Timestamp,
    shared::config::{keys::parse_keys, variables},
};

use super::{client::*, *};

const A: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// Runs `command` on its own output: what it answers, standard output, and standard error.
fn printed<T>(command: impl FnOnce(&mut Output<'_>) -> T) -> (T, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let answer = command(&mut Output::new(&mut out, &mut err));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (answer, text(out), text(err))
}

fn parse(arguments: &[&str]) -> Result<Command, ErrorKind> {
    let arguments = ["integration-worker"].iter().chain(arguments);
    Cli::try_parse_from(arguments)
        .map(|cli| cli.command)
        .map_err(|error| error.kind())
}

fn entity(arguments: &[&str]) -> EntityRequest {
    match parse(&[&["webhook"], arguments].concat()).unwrap() {
        Command::Webhook(request) => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_sound_and_its_help_names_every_variable() {
    Cli::command().debug_assert();
    let mut command = Cli::command();
    let help = command.render_long_help().to_string();
    assert!(help.contains("rotate_secret"), "{help}");
    let run = command.find_subcommand_mut("run").unwrap();
    for help in [help, run.render_long_help().to_string()] {
        for name in variables::all().map(|variable| variable.name) {
            assert!(help.contains(name), "{name} in\n{help}");
        }
        assert!(help.contains("78 configuration"), "{help}");
    }
}

#[test]
fn commands_are_read() {
    for arguments in [
        &["run"][..],
        &["dev"],
        &["demo"],
        &["migrate"],
        &["doctor", "--json"],
        &["keys", "list", "--json"],
        &["keys", "rotate", "--file", "a", "--id", "k9"],
        &["keys", "rewrap"],
        &["deadletter", "replay", "--id", "42-1790230470084"],
        &["status", "--json", "--wait", "500ms"],
        &[
            "events",
            "tail",
            "--type",
            "webhook.*",
            "--count",
            "1",
            "--json",
        ],
        &["integration", "create", "--data", "{}"],
        &["delivery", "explain", "--event", "e-1", "--webhook", "w"],
        &[
            "delivery", "list", "--json", "--tenant", "acme", "--user", "me", "--key", "k",
        ],
    ] {
        assert!(parse(arguments).is_ok(), "{arguments:?}");
    }
    for (arguments, kind) in [
        (&["fly"][..], ErrorKind::InvalidSubcommand),
        (&["webhook"], ErrorKind::MissingRequiredArgument),
        (&["run", "--fast"], ErrorKind::UnknownArgument),
        (
            &["webhook", "get", "--timeout", "soon"],
            ErrorKind::ValueValidation,
        ),
        (&["--help"], ErrorKind::DisplayHelp),
        (&["--version"], ErrorKind::DisplayVersion),
    ] {
        assert_eq!(parse(arguments).unwrap_err(), kind, "{arguments:?}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_contract() {
    let codes = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Unreachable,
        Exit::Configuration,
    ];
    assert_eq!(codes.map(|exit| exit as u8), [0, 1, 2, 69, 78]);
}

#[test]
fn a_request_is_named_after_its_action() {
    assert_eq!(
        subject("integration", "webhook", "rotate_secret").unwrap(),
        "integration.api.webhook.rotate_secret"
    );
    for action in ["", "a.b", "*", "get list", "Create", "mark_error"] {
        assert_eq!(
            subject("p", "webhook", action).unwrap_err().exit,
            Exit::Usage
        );
    }
    assert_eq!(
        check_action("delivery", "bo\u{202e}gus").unwrap_err().text,
        "\"bo\\u{202e}gus\" is no action of delivery; there are: get, list, retry, cancel, explain"
    );
}

#[test]
fn the_help_names_every_action() {
    let command = Cli::command();
    for entity in ["integration", "webhook", "delivery"] {
        let about = command.find_subcommand(entity).unwrap().get_about();
        let about = about.unwrap().to_string();
        let actions = CommandHandler::ACTIONS.iter();
        let actions = actions.filter(|(of, _)| *of == entity);
        let names: Vec<&str> = actions.map(|(_, name)| *name).collect();
        assert!(
            about.ends_with(&format!(": {}", names.join(" "))),
            "{about}"
        );
    }
}

#[test]
fn a_request_about_deliveries_takes_event_and_webhook() {
    let of = |arguments: &[&str]| {
        let arguments = [&["delivery", "explain"], arguments].concat();
        let Ok(Command::Delivery(request)) = parse(&arguments) else {
            panic!("{arguments:?}");
        };
        let body = body(&request.whole())?;
        Ok::<_, Trouble>(String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(
        of(&["--event", "e \"1\"", "--webhook", "w"]).unwrap(),
        r#"{"eventId":"e \"1\"","webhookId":"w"}"#
    );
    let data = r#"{"eventId":"e-1","limit":5}"#;
    assert_eq!(
        of(&["--data", data, "--event", "e-1"]).unwrap(),
        r#"{"eventId":"e-1","limit":5}"#
    );
    let differ = of(&["--data", data, "--event", "e-2"]).unwrap_err();
    assert_eq!(differ.text, "--event and the \"eventId\" of --data differ");
}

#[test]
fn the_body_keeps_its_numbers_and_takes_the_id() {
    let of = |arguments: &[&str]| {
        let body = body(&entity(&[&["update"], arguments].concat()))?;
        Ok::<_, Trouble>(String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(of(&[]).unwrap(), "{}");
    assert_eq!(
        of(&["--data", r#"{ "n": 1.10 }"#]).unwrap(),
        r#"{ "n": 1.10 }"#
    );
    assert_eq!(
        of(&["--id", "a\"b", "--data", r#"{"n":1.10}"#]).unwrap(),
        r#"{"id":"a\"b","n":1.10}"#
    );
    assert_eq!(
        of(&["--id", "a", "--data", r#"{"id":"a"}"#]).unwrap(),
        r#"{"id":"a"}"#
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body.json");
    fs::write(&file, "{\"a\":1}").unwrap();
    let at = format!("@{}", file.display());
    assert_eq!(of(&["--data", &at]).unwrap(), "{\"a\":1}");
    for bad in ["[]", "1", "{", "{} {}", "", "@/nowhere/body.json"] {
        assert_eq!(of(&["--data", bad]).unwrap_err().exit, Exit::Usage, "{bad}");
    }
    let differing = of(&["--id", "a", "--data", r#"{"id":"b"}"#]);
    assert_eq!(differing.unwrap_err().exit, Exit::Usage);
}

#[test]
fn only_what_is_given_becomes_a_header() {
    assert!(headers(&entity(&["get"])).unwrap().is_empty());
    let given = entity(&["get", "--tenant", "acme", "--user", "me", "--key", "k1"]);
    let headers_given = headers(&given).unwrap();
    for (name, value) in [
        ("X-Tenant-Id", "acme"),
        ("X-User-Id", "me"),
        ("Idempotency-Key", "k1"),
    ] {
        assert_eq!(headers_given.get(name).unwrap().as_str(), value);
    }
    let broken = entity(&["get", "--user", "a\r\nb"]);
    assert_eq!(headers(&broken).unwrap_err().exit, Exit::Usage);
}

#[test]
fn a_list_is_a_table_and_an_entity_its_fields() {
    let list = br#"{"success":true,"data":{"items":[
        {"id":"1","name":"a","status":"active","events":["x.y",">"],"config":{"url":"u"}},
        {"id":"2","name":"long name","status":"pending"}],"nextCursor":"abc"}}"#;
    let (exit, out, _) = printed(|output| print(list, false, output).unwrap());
    assert_eq!(exit, Exit::Done);
    assert_eq!(
        out,
        "id  name       events  status\n\
         1   a          x.y, >  active\n\
         2   long name          pending\n\
         more with \"cursor\": \"abc\"\n"
    );
    let entity = br#"{"success":true,"data":{"id":"1","config":{"url":"u","n":1.5},
        "attempts":[{"number":1,"error":"a\u001b[31mb"}],"description":null}}"#;
    let (_, out, _) = printed(|output| print(entity, false, output).unwrap());
    assert_eq!(
        out,
        "id                  1\n\
         config.url          u\n\
         config.n            1.5\n\
         attempts[0].number  1\n\
         attempts[0].error   a\\u{1b}[31mb\n\
         description         -\n"
    );
}

#[test]
fn a_refusal_is_told_with_its_details_and_json_as_it_came() {
    let refusal = br#"{"success":false,"error":{"code":"validation_failed","message":"2 faults",
        "details":[{"path":"name","message":"is missing"}],"retryable":true}}"#;
    let (exit, out, err) = printed(|output| print(refusal, false, output).unwrap());
    assert_eq!((exit, out.as_str()), (Exit::Failed, ""));
    assert_eq!(
        err,
        "validation_failed: 2 faults\n  name: is missing\ntrying again may help\n"
    );
    let (exit, out, err) = printed(|output| print(refusal, true, output).unwrap());
    assert_eq!((exit, err.as_str()), (Exit::Failed, ""));
    assert_eq!(out.trim_end().as_bytes(), refusal);
    for stranger in [&b"hello"[..], b"{}", b"[1]"] {
        let (answer, ..) = printed(|output| print(stranger, false, output));
        assert_eq!(answer.unwrap_err().exit, Exit::Failed);
    }
}

#[test]
fn what_steers_or_hides_is_escaped_for_people_and_left_in_json() {
    let steering = "\u{1b}[2J\u{202e}\u{2066}\u{200b}\u{feff}\u{9b}\u{2028}";
    let escaped = r"\u{1b}[2J\u{202e}\u{2066}\u{200b}\u{feff}\u{9b}\u{2028}";
    let reply = |data: Value| serde_json::json!({ "success": true, "data": data }).to_string();
    let fields = serde_json::json!({ "name": steering, steering: { "n": [steering, "ü 名"] } });
    for reply in [
        reply(fields.clone()),
        reply(
            serde_json::json!({ "items": [{ "id": fields, "name": steering }], "nextCursor": steering }),
        ),
    ] {
        let (_, out, _) = printed(|output| print(reply.as_bytes(), false, output).unwrap());
        assert!(
            out.contains(escaped) && !out.contains(['\u{1b}', '\u{202e}', '\u{200b}']),
            "{out}"
        );
        let (_, out, _) = printed(|output| print(reply.as_bytes(), true, output).unwrap());
        assert_eq!(out, format!("{reply}\n"));
    }
    let refusal = serde_json::json!({ "success": false, "error": {
        "code": steering, "message": steering,
        "details": [{ "path": steering, "message": steering }],
    } });
    let refusal = refusal.to_string();
    let (_, _, err) = printed(|output| print(refusal.as_bytes(), false, output).unwrap());
    assert_eq!(
        err,
        format!("{escaped}: {escaped}\n  {escaped}: {escaped}\n")
    );
    let event = serde_json::json!({ "type": steering, "data": { steering: steering } });
    let line = events::line(event.to_string().as_bytes());
    assert!(
        line.contains(escaped) && !line.contains(['\u{1b}', '\u{202e}']),
        "{line}"
    );
}

#[test]
fn an_event_is_one_line() {
    let event = br#"{"time":"2026-11-02T08:14:09.120Z","type":"webhook.created","tenantid":"acme",
        "subject":"1","data":{"a":"b\nc"}}"#;
    assert_eq!(
        events::line(event),
        "2026-11-02T08:14:09.120Z  webhook.created           acme  1  {\"a\":\"b\\nc\"}"
    );
    assert_eq!(events::line(b"a\nb\xff"), "a\\nb\u{fffd}");
}

struct Sevens;

impl Clock for Sevens {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn new_id(&self) -> uuid::Uuid {
        uuid::Uuid::nil()
    }

    fn random(&self) -> f64 {
        0.5
    }

    fn secret_bytes(&self, length: usize) -> Vec<u8> {
        vec![7; length]
    }
}

fn rotate(path: &Path, id: Option<&str>) -> Result<String, Trouble> {
    let (answer, out, err) = printed(|output| rotate_keys(path, id, &Sevens, output));
    answer.map(|_| format!("{out}{err}"))
}

fn ids(path: &Path) -> Vec<String> {
    let keys = parse_keys(&fs::read_to_string(path).unwrap()).unwrap();
    keys.into_iter().map(|(id, _)| id).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_rotation_puts_a_new_key_first_and_keeps_the_rest_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let told = rotate(&path, None).unwrap();
    assert!(
        told.starts_with("k1 is now the key that encrypts"),
        "{told}"
    );
    assert!(!told.contains("Bwc"), "{told}");
    assert_eq!((ids(&path), mode(&path)), (vec!["k1".to_owned()], 0o600));

    let first = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("# ours\n{first}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    rotate(&link, None).unwrap();
    rotate(&path, Some("2026-11")).unwrap();

    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(
        (ids(&path), mode(&path)),
        (
            vec!["2026-11".to_owned(), "k2".to_owned(), "k1".to_owned()],
            0o640
        )
    );
    assert!(
        fs::read_to_string(&path)
            .unwrap()
            .ends_with(&format!("# ours\n{first}"))
    );
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "no temporary file is left");
}

#[test]
fn a_rotation_that_fails_leaves_the_file_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    rotate(&path, None).unwrap();
    let before = fs::read_to_string(&path).unwrap();
    assert_eq!(rotate(&path, Some("k1")).unwrap_err().exit, Exit::Failed);
    assert_eq!(rotate(&path, Some("a b")).unwrap_err().exit, Exit::Usage);
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    fs::write(&path, "k1:c4n4ry").unwrap();
    let trouble = rotate(&path, None).unwrap_err();
    assert_eq!(trouble.exit, Exit::Configuration);
    assert!(!trouble.text.contains("c4n4ry"), "{trouble}");
    let nowhere = rotate(Path::new("/nowhere/keys"), None);
    assert_eq!(nowhere.unwrap_err().exit, Exit::Failed);
}

#[test]
fn a_list_of_keys_shows_ids_alone() {
    let text = "k2:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\nk1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let (exit, out, _) = printed(|output| list_keys(text, None, false, output).unwrap());
    assert_eq!(
        (exit, out.as_str()),
        (Exit::Done, "k2  encrypts and decrypts\nk1  decrypts\n")
    );
    let (_, out, _) = printed(|output| list_keys(text, None, true, output).unwrap());
    assert_eq!(out, "{\"keys\":[\"k2\",\"k1\"]}\n");
}

#[test]
fn a_list_of_keys_tells_which_ones_the_database_needs() {
    let text = format!("k3:{A}\nk2:{A}\nk1:{A}");
    let needed = ["k0".to_owned(), "k2".to_owned()];
    let list = |json, needed: &[String]| {
        printed(|output| list_keys(&text, Some(needed), json, output).unwrap()).1
    };
    assert_eq!(
        list(false, &needed),
        "k3  encrypts and decrypts\nk2  decrypts, the database needs it\n\
         k1  decrypts, the database does not need it\nk0  is missing, the database needs it\n"
    );
    assert_eq!(
        list(true, &needed),
        "{\"keys\":[\"k3\",\"k2\",\"k1\"],\"needed\":[\"k0\",\"k2\"]}\n"
    );
    assert!(list(true, &[]).contains("\"needed\":[]"));
}

#[test]
fn a_rewrap_that_left_something_is_a_failure_and_says_what() {
    let tell =
        |done: &Rewrapped| printed(|output| tell_rewrapped(done, "k2", &["k2".to_owned()], output));
    let mut done = Rewrapped {
        integrations: 1,
        webhooks: 2,
        signing_secrets: 3,
        replies: 4,
        ..Rewrapped::default()
    };
    let (exit, out, err) = tell(&done);
    assert_eq!((exit, err.as_str()), (Exit::Done, ""));
    assert!(
        out.starts_with("10 rows were sealed anew with k2: "),
        "{out}"
    );
    assert!(out.ends_with("keys that the database needs: k2\n"), "{out}");

    done.left = 5;
    let (exit, _, err) = tell(&done);
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("5 rows were changed"), "{err}");
    done.left = 0;
    done.unopened.insert("no key".to_owned(), 6);
    let (exit, _, err) = tell(&done);
    assert_eq!(exit, Exit::Failed);
    assert!(
        err.contains("6 rows were left as they are: no key"),
        "{err}"
    );
}
