use std::io::Write;

use tempfile::NamedTempFile;

use super::*;

fn settings(servers: &[&str]) -> NatsSettings {
    NatsSettings {
        servers: servers.iter().map(|s| (*s).to_owned()).collect(),
        auth: NatsAuth::None,
        tls: NatsTls::default(),
        client_name: "test".to_owned(),
    }
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

async fn problem(settings: &NatsSettings) -> String {
    prepare(settings).await.expect_err("a fault").to_string()
}

#[tokio::test]
async fn a_user_in_the_url_is_taken_out_of_it() {
    let (addresses, auth) = addresses(&[
        "nats://worker:hunter%402@a:4222".to_owned(),
        "b:4223".to_owned(),
    ])
    .unwrap();
    let texts: Vec<_> = addresses.iter().map(ServerAddr::as_url_str).collect();
    assert_eq!(texts, ["nats://a:4222", "nats://b:4223"]);
    let Some(NatsAuth::UserPassword { user, password }) = auth else {
        panic!("{auth:?}");
    };
    assert_eq!(
        (user.as_str(), password.expose_secret()),
        ("worker", "hunter@2")
    );
}

#[tokio::test]
async fn a_name_alone_in_the_url_is_a_token() {
    let (_, auth) = addresses(&["nats://t0ken@a".to_owned()]).unwrap();
    assert!(matches!(auth, Some(NatsAuth::Token(t)) if t.expose_secret() == "t0ken"));
}

#[tokio::test]
async fn faults_name_the_setting_and_no_secret() {
    let mut two_users = settings(&["nats://worker:hunter2@a"]);
    two_users.auth = NatsAuth::Token("hunter2".into());
    let bad_port = settings(&["nats://worker:hunter2@a:notaport"]);
    let web = settings(&["http://worker:hunter2@a"]);
    for wrong in [two_users, bad_port, web, settings(&[])] {
        let text = problem(&wrong).await;
        assert!(text.starts_with("NATS_URL: "), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!format!("{wrong:?}").contains("hunter2"), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_credentials_is_a_fault_of_its_setting() {
    let wrong = file("hunter2");
    let path = wrong.path().to_owned();
    let missing = PathBuf::from("/nowhere/at/all");
    for (auth, setting) in [
        (NatsAuth::CredentialsFile(path.clone()), "NATS_CREDS_FILE"),
        (
            NatsAuth::CredentialsFile(missing.clone()),
            "NATS_CREDS_FILE",
        ),
        (NatsAuth::NkeyFile(path), "NATS_NKEY_FILE"),
        (NatsAuth::NkeyFile(missing), "NATS_NKEY_FILE"),
    ] {
        let mut settings = settings(&["a"]);
        settings.auth = auth;
        let text = problem(&settings).await;
        assert!(text.starts_with(setting), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_seed_is_checked_before_the_first_connection() {
    let good = "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM";
    assert_eq!(
        seed_in(&format!("# a comment\n{good}\n")).as_deref(),
        Some(good)
    );
    let flipped = good.replace("IO3F", "IO3G");
    assert_eq!(seed_in(&flipped), None);
}

#[tokio::test]
async fn tls_files_are_checked_before_the_first_connection() {
    let wrong = file("no certificate");
    let path = Some(wrong.path().to_owned());
    let tls = |ca: &Option<PathBuf>, cert: &Option<PathBuf>, key: &Option<PathBuf>| NatsTls {
        ca: ca.clone(),
        cert: cert.clone(),
        key: key.clone(),
    };
    for (tls, setting) in [
        (tls(&path, &None, &None), "NATS_TLS_CA"),
        (tls(&None, &path, &None), "NATS_TLS_KEY"),
        (tls(&None, &None, &path), "NATS_TLS_CERT"),
        (tls(&None, &path, &path), "NATS_TLS_CERT"),
    ] {
        let mut settings = settings(&["a"]);
        settings.tls = tls;
        let text = problem(&settings).await;
        assert!(text.starts_with(setting), "{text}");
    }
}
