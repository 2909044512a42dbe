use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use uuid::Uuid;

use super::*;
use crate::domain::values::Timestamp;

const PATIENCE: Duration = Duration::from_secs(20);

struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        "2026-11-02T08:14:09Z".parse().unwrap()
    }
    fn new_id(&self) -> Uuid {
        Uuid::nil()
    }
    fn random(&self) -> f64 {
        0.5
    }
    fn secret_bytes(&self, length: usize) -> Vec<u8> {
        vec![0; length]
    }
}

fn client_with(allowed: &[&str], ca_file: Option<&Path>) -> EndpointClient {
    let nets = allowed.iter().map(|net| net.parse().unwrap()).collect();
    EndpointClient::new(EgressPolicy::new(nets), ca_file, Arc::new(FixedClock)).unwrap()
}

fn client() -> EndpointClient {
    client_with(&["127.0.0.0/8", "::1/128"], None)
}

fn request(url: &str, timeout: Duration) -> OutboundRequest {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_static("Bearer canary"));
    OutboundRequest {
        whole_up_to: None,
        uri: url.parse().unwrap(),
        method: Method::POST,
        headers,
        body: Bytes::from_static(b"body"),
        timeout,
        identity: None,
        grant: None,
    }
}

fn to(address: SocketAddr) -> OutboundRequest {
    request(&format!("http://{address}/hook?key=canary"), PATIENCE)
}

/// Hands every connection, with its number from 1, to `serve`; its answers come out of the channel.
fn receiver<T: Send + 'static>(
    serve: impl Fn(usize, TcpStream) -> T + Send + Sync + 'static,
) -> (SocketAddr, Receiver<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let (tell, serve) = (tell.clone(), Arc::clone(&serve));
            thread::spawn(move || tell.send(serve(index + 1, stream.unwrap())));
        }
    });
    (address, told)
}

/// The head and the body of the next request; `None` when the connection ends.
fn read_request(stream: &mut impl Read) -> Option<String> {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let mut body = [0; 4];
    reader.read_exact(&mut body).ok()?;
    assert_eq!(&body, b"body");
    Some(head)
}

/// What a receiver tells next; the runtime goes on meanwhile, and so does the client's connection.
async fn told<T: Send + 'static>(from: Receiver<T>) -> T {
    let wait = move || from.recv_timeout(PATIENCE);
    tokio::task::spawn_blocking(wait).await.unwrap().unwrap()
}

/// Tells the number of each connection, from 1, and answers 200.
fn counting() -> (SocketAddr, Receiver<usize>) {
    receiver(|connection, mut stream| {
        read_request(&mut stream);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        connection
    })
}

fn wait_for_close(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // It ends either way: closed, or reset.
    stream.read_to_end(&mut rest).unwrap_or_default();
}

/// A receiver that gives this one answer on each connection and then waits for it to be closed.
fn answering(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer = answer.into();
    let (address, _) = receiver(move |_, mut stream| {
        read_request(&mut stream);
        stream.write_all(&answer).unwrap();
        wait_for_close(&mut stream);
    });
    address
}

#[tokio::test]
async fn a_connection_is_kept_and_used_again_when_the_answer_ends_within_the_cap() {
    let (address, _) = receiver(|connection, mut stream| {
        let bodies = ["short".to_owned(), "x".repeat(HttpAnswer::MAX_BODY)];
        for body in bodies.into_iter().cycle() {
            if read_request(&mut stream).is_none() {
                return;
            }
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nX: {connection}\r\nContent-Length: {length}");
            write!(stream, "{head}\r\nRetry-After: {connection}\r\n\r\n{body}").unwrap();
        }
    });
    let client = client();
    for _ in 0..6 {
        let answer = client.send(to(address)).await.unwrap();
        assert_eq!(answer.status, 200);
        // The receiver tells the number of the connection in this header.
        assert_eq!(answer.retry_after, Some(Duration::from_secs(1)));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_request_arrives_as_it_was_made() {
    let (address, requests) = receiver(|_, mut stream| {
        let head = read_request(&mut stream);
        write!(stream, "HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        head
    });
    let answer = client().send(to(address)).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    let head = told(requests).await.unwrap();
    assert!(
        head.starts_with("POST /hook?key=canary HTTP/1.1\r\n"),
        "{head}"
    );
    for header in ["authorization: Bearer canary", "content-length: 4"] {
        assert!(head.contains(&format!("{header}\r\n")), "{head}");
    }
    assert!(head.contains(&format!("host: {address}\r\n")), "{head}");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let (other, connections) = counting();
    let answer =
        format!("HTTP/1.1 307 Go\r\nLocation: http://{other}/\r\nContent-Length: 0\r\n\r\n");
    let client = client();
    let answer = client.send(to(answering(answer))).await.unwrap();
    assert_eq!(answer.status, 307);
    client.send(to(other)).await.unwrap();
    assert_eq!(told(connections).await, 1);
}

#[test]
fn proxy_variables_are_ignored() {
    // The variables have to stand before the process starts: this test binary runs one of its tests.
    let nobody = "http://127.0.0.1:1";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--test-threads=1"])
        .arg("infrastructure::http::client::tests::the_request_arrives_as_it_was_made")
        .envs(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].map(|name| (name, nobody)))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("1 passed"), "{told}");
}

#[tokio::test]
async fn an_answer_beyond_the_cap_is_dropped_and_not_read_further() {
    let (address, broken) = receiver(|_, mut stream| {
        read_request(&mut stream);
        write!(
            stream,
            "HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n"
        )
        .unwrap();
        // Ends only because the other side closes the connection.
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let answer = client().send(to(address)).await.unwrap();
    assert_eq!(answer.status, 500);
    assert_eq!(answer.body, "x".repeat(HttpAnswer::MAX_BODY));
    told(broken).await;
}

#[tokio::test]
async fn an_answer_is_there_as_a_whole_where_that_is_wanted_and_possible() {
    let whole = |length: usize| Some(Ok(Bytes::from("x".repeat(length))));
    for (length, sent, wanted, expected) in [
        (5000, 5000, None, None),
        (5000, 5000, Some(5000), whole(5000)),
        (5000, 5000, Some(6000), whole(5000)),
        (0, 0, Some(10), whole(0)),
        (5000, 5000, Some(4999), Some(Err(CutAnswer::TooLong(4999)))),
        (5000, 100, Some(6000), Some(Err(CutAnswer::BrokenOff))),
    ] {
        let (address, _) = receiver(move |_, mut stream| {
            read_request(&mut stream);
            let body = "x".repeat(sent);
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .unwrap();
        });
        let wanted = OutboundRequest {
            whole_up_to: wanted,
            ..to(address)
        };
        let answer = client().send(wanted).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body.len(), sent.min(HttpAnswer::MAX_BODY));
        assert_eq!(answer.whole, expected, "{length} {sent}");
    }
}

#[tokio::test]
async fn a_body_that_trickles_or_breaks_does_not_change_what_the_status_decided() {
    let address = answering("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc");
    let timeout = Duration::from_millis(300);
    let slow = request(&format!("http://{address}/"), timeout);
    let answer = client().send(slow).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "abc"));

    let (address, _) = receiver(|_, mut stream| {
        read_request(&mut stream);
        write!(
            stream,
            "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz"
        )
        .unwrap();
    });
    let answer = client().send(to(address)).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (503, "abc"));
}

#[tokio::test]
async fn a_body_becomes_text_that_every_database_takes() {
    let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n".to_vec();
    bytes.extend(b"a\0b\xff\xc3\xa4end");
    let answer = client().send(to(answering(bytes))).await.unwrap();
    assert_eq!(answer.body, "a\u{fffd}b\u{fffd}äend");
    assert_eq!(
        text("ä".repeat(3000).as_bytes()).len(),
        HttpAnswer::MAX_BODY
    );
    assert!(text(&[0xff; HttpAnswer::MAX_BODY]).len() <= HttpAnswer::MAX_BODY);
}

#[tokio::test]
async fn a_date_in_retry_after_is_a_wait_from_now() {
    let date = "b@d : x\r\nRetry-After: Mon, 02 Nov 2026 08:16:09 GMT";
    let answer = format!("HTTP/1.1 429 Slow\r\n{date}\r\nContent-Length: 0\r\n\r\n");
    let answer = client().send(to(answering(answer))).await.unwrap();
    assert_eq!(answer.retry_after, Some(Duration::from_mins(2)));
}

#[tokio::test]
async fn a_refused_address_is_never_connected_to_in_any_notation() {
    let (address, connections) = counting();
    let refusing = client_with(&[], None);
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "localhost",
    ] {
        let url = format!("http://{host}:{}/", address.port());
        // As it was written, and as a URL parser writes it.
        let normal = url::Url::parse(&url).unwrap();
        for url in [url.as_str(), normal.as_str()] {
            let error = refusing.send(request(url, PATIENCE)).await.unwrap_err();
            assert!(matches!(error, SendError::Refused(_)), "{url}: {error:?}");
            assert!(error.to_string().contains("loopback"), "{url}: {error}");
        }
    }
    client().send(to(address)).await.unwrap();
    assert_eq!(told(connections).await, 1);
    let error = refusing
        .send(request("ftp://8.8.8.8/", PATIENCE))
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn a_name_is_connected_to_when_its_addresses_are_allowed() {
    let address = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let url = format!("http://localhost:{}/", address.port());
    let client = client_with(&["127.0.0.0/8"], None);
    assert_eq!(
        client.send(request(&url, PATIENCE)).await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn each_way_to_fail_has_its_error_and_none_tells_a_secret() {
    let (silent, _) = receiver(|_, mut stream| wait_for_close(&mut stream));
    let (closing, _) = receiver(|_, mut stream| read_request(&mut stream));
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let garbage = answering("SSH-2.0-x\r\n\r\n");
    let short = Duration::from_millis(200);
    let label = "a".repeat(64);
    let client = client();
    let send = |host: String, timeout| {
        client.send(request(
            &format!("http://{host}/canary?key=canary"),
            timeout,
        ))
    };
    let timeout = send(silent.to_string(), short).await.unwrap_err();
    assert_eq!(timeout, SendError::Timeout(short));
    let refused = send(gone.to_string(), PATIENCE).await.unwrap_err();
    assert_eq!(refused, SendError::Connect("connection refused".to_owned()));
    let unknown = send(format!("{label}.test"), PATIENCE).await.unwrap_err();
    assert_eq!(unknown, SendError::Connect("name not found".to_owned()));
    let closed = send(closing.to_string(), PATIENCE).await.unwrap_err();
    assert!(matches!(closed, SendError::Broken(_)), "{closed:?}");
    let broken = send(garbage.to_string(), PATIENCE).await.unwrap_err();
    assert!(matches!(broken, SendError::Broken(_)), "{broken:?}");
    for error in [timeout, refused, unknown, closed, broken] {
        let told = format!("{error} {error:?}");
        assert!(!told.contains("canary") && told.len() < 300, "{told}");
    }
}

/// A server with a certificate of the test authority; `clients` asks for theirs.
fn tls_server(clients: Arc<dyn rustls::server::danger::ClientCertVerifier>) -> SocketAddr {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("test_server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("test_server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let (address, _) = receiver(move |number, stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, stream);
        while read_request(&mut stream).is_some() {
            let certificates = stream.conn.peer_certificates().map_or(0, <[_]>::len);
            let body = format!("{number}/{certificates}");
            let head = format!("HTTP/1.1 201 Made\r\nContent-Length: {}", body.len());
            write!(stream, "{head}\r\n\r\n{body}").unwrap();
        }
    });
    address
}

#[tokio::test]
async fn tls_trusts_the_named_authority_and_nobody_unknown() {
    let address = tls_server(rustls::server::WebPkiClientVerifier::no_client_auth());
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), include_bytes!("test_ca.pem")).unwrap();
    let trusting = client_with(&["127.0.0.0/8"], Some(ca_file.path()));
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("https://{host}:{}/?key=canary", address.port());
        let answer = trusting.send(request(&url, PATIENCE)).await.unwrap();
        assert_eq!(answer.status, 201, "{host}");
        let error = client().send(request(&url, PATIENCE)).await.unwrap_err();
        let reason = "cannot connect: TLS: invalid peer certificate: UnknownIssuer";
        assert_eq!(error.to_string(), reason, "{host}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_those_who_ask_and_only_by_its_own_requests() {
    let mut authorities = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(include_bytes!("test_client_ca.pem")).unwrap();
    authorities.add(authority).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(authorities),
        Arc::new(rustls::crypto::ring::default_provider()),
    );
    let address = tls_server(verifier.build().unwrap());
    let url = format!("https://{address}/?key=canary");
    let (certificate, key) = (
        include_str!("test_client.pem"),
        include_str!("test_client.key"),
    );
    let (ca, other_ca) = (
        include_str!("test_ca.pem"),
        include_str!("test_client_ca.pem"),
    );
    let as_client = |ca: Option<&str>| {
        let identity = ClientIdentity::from_pem(certificate, key, ca).unwrap();
        let mut request = request(&url, PATIENCE);
        request.identity = Some(Arc::new(identity));
        request
    };
    let ca_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca_file.path(), ca).unwrap();
    let trusting = client_with(&["127.0.0.0/8"], Some(ca_file.path()));

    let own_authority = as_client(Some(ca));
    let first = client().send(own_authority.clone()).await.unwrap();
    let second = client().send(own_authority).await.unwrap();
    assert_eq!(first.body, "1/1");
    assert_eq!(
        second.body, "1/1",
        "the connection is kept with the identity"
    );
    let answer = trusting.send(as_client(None)).await.unwrap();
    assert_eq!(answer.body, "2/1");
    let without = trusting.send(request(&url, PATIENCE)).await.unwrap_err();
    assert!(
        without.to_string().contains("CertificateRequired"),
        "{without}"
    );
    for stranger in [as_client(None), as_client(Some(other_ca))] {
        let error = client().send(stranger).await.unwrap_err().to_string();
        assert!(error.contains("UnknownIssuer"), "{error}");
    }
    let narrow = client_with(&[], None);
    let refused = narrow.send(as_client(Some(ca))).await.unwrap_err();
    assert!(matches!(refused, SendError::Refused(_)), "{refused}");
}
