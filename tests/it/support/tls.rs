//! An endpoint over TLS with its token endpoint, as a partner with OAuth 2 has them.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::json;

macro_rules! pem {
    ($name:literal) => {
        include_str!(concat!("../../../src/infrastructure/http/client/", $name))
    };
}

/// Gives out the tokens `canary-1`, `canary-2` and so on at `/token`, and takes them everywhere else.
#[derive(Debug)]
pub(crate) struct TokenPartner {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Requests for a token: the authorization and the body.
    pub(crate) asked: Vec<(String, String)>,
    /// The tokens that were shown, in the order of the requests.
    pub(crate) shown: Vec<String>,
    /// For how many seconds tokens are good.
    pub(crate) life: u64,
    /// The number of the first token that is taken.
    pub(crate) takes_from: usize,
    /// How long it takes to give one out.
    pub(crate) token_takes: Duration,
    /// Whether no token is given out.
    pub(crate) is_down: bool,
}

impl TokenPartner {
    pub(crate) fn start() -> Self {
        let certificate = CertificateDer::from_pem_slice(pem!("test_server.pem").as_bytes());
        let key = PrivateKeyDer::from_pem_slice(pem!("test_server.key").as_bytes());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.expect("a certificate")],
                key.expect("a key"),
            );
        let config = Arc::new(config.expect("a configuration"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State {
            life: 600,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(StreamOwned::new(connection, stream), &state));
            }
        });
        Self { address, state }
    }

    /// The authority of its certificate.
    pub(crate) fn authority() -> PathBuf {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        root.join("src/infrastructure/http/client/test_ca.pem")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers one request after the other, until the client is gone.
fn serve(stream: StreamOwned<ServerConnection, TcpStream>, state: &Mutex<State>) {
    let mut stream = BufReader::new(stream);
    while let Some((path, authorization, body)) = read(&mut stream) {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = state.token_takes;
        let (status, answer) = state.take(&path, authorization, body);
        drop(state);
        if path == "/token" {
            thread::sleep(takes);
        }
        let head = format!(
            "HTTP/1.1 {status} Told\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        let written = stream
            .get_mut()
            .write_all(format!("{head}{answer}").as_bytes());
        if written.is_err() {
            return;
        }
    }
}

/// The path, the authorization and the body of a request.
fn read(
    stream: &mut BufReader<StreamOwned<ServerConnection, TcpStream>>,
) -> Option<(String, String, String)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut authorization, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => value.clone_into(&mut authorization),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((path, authorization, String::from_utf8(body).ok()?))
}

impl State {
    fn take(&mut self, path: &str, authorization: String, body: String) -> (u16, String) {
        if path == "/token" {
            self.asked.push((authorization, body));
            if self.is_down {
                let error = json!({ "error": "server_error", "error_description": "canary" });
                return (503, error.to_string());
            }
            let token = json!({
                "access_token": format!("canary-{}", self.asked.len()),
                "token_type": "Bearer",
                "expires_in": self.life,
                // More than is read of other answers.
                "id_token": "canary".repeat(1000),
            });
            return (200, token.to_string());
        }
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        self.shown.push(token.to_owned());
        let number = token.strip_prefix("canary-").unwrap_or_default();
        let number: usize = number.parse().unwrap_or_default();
        let taken = number >= self.takes_from.max(1);
        (if taken { 200 } else { 401 }, "{}".to_owned())
    }
}
