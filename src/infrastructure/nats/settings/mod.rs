//! How to reach NATS, checked before the first connection, so that a wrong file is a fault of the
//! configuration and no endless reconnecting.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_nats::{ConnectOptions, ServerAddr};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// Where NATS is and who we are to it.
#[derive(Clone)]
pub struct NatsSettings {
    /// `NATS_URL`, split at its commas. A user and password in them count where `auth` is `None`.
    pub servers: Vec<String>,
    /// Who we are.
    pub auth: NatsAuth,
    /// Files for TLS.
    pub tls: NatsTls,
    /// Shown by the server's monitoring.
    pub client_name: String,
}

impl fmt::Debug for NatsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URLs may hold a password.
        f.debug_struct("NatsSettings")
            .field("servers", &self.servers.len())
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("client_name", &self.client_name)
            .finish()
    }
}

/// The ways to log in.
#[derive(Debug, Clone, Default)]
pub enum NatsAuth {
    /// Nobody, or whom the URL names.
    #[default]
    None,
    /// `NATS_CREDS_FILE`: a JWT and its seed.
    CredentialsFile(PathBuf),
    /// `NATS_NKEY_FILE`: a seed.
    NkeyFile(PathBuf),
    /// `NATS_USER` and `NATS_PASSWORD`.
    UserPassword {
        /// The user's name.
        user: String,
        /// The user's password.
        password: SecretString,
    },
    /// `NATS_TOKEN`.
    Token(SecretString),
}

/// PEM files; all optional.
#[derive(Debug, Clone, Default)]
pub struct NatsTls {
    /// `NATS_TLS_CA`: trusted instead of the system's roots.
    pub ca: Option<PathBuf>,
    /// `NATS_TLS_CERT`: who we are.
    pub cert: Option<PathBuf>,
    /// `NATS_TLS_KEY`: its key.
    pub key: Option<PathBuf>,
}

/// A setting is unusable. Holds no secret.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct NatsSettingsError {
    /// The variable.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn fault(setting: &'static str, problem: impl fmt::Display) -> NatsSettingsError {
    let problem = problem.to_string();
    NatsSettingsError { setting, problem }
}

/// The addresses, without user and password, and the options that log in.
pub(super) async fn prepare(
    settings: &NatsSettings,
) -> Result<(Vec<ServerAddr>, ConnectOptions), NatsSettingsError> {
    let (addresses, in_url) = addresses(&settings.servers)?;
    let auth = match (&settings.auth, in_url) {
        (NatsAuth::None, Some(auth)) => auth,
        (auth, None) => auth.clone(),
        (_, Some(_)) => {
            let problem = "it names a user, and another setting does too: use one of them";
            return Err(fault("NATS_URL", problem));
        }
    };
    let options = ConnectOptions::new().name(&settings.client_name);
    let options = with_tls(options, &settings.tls)?;
    Ok((addresses, with_auth(options, auth).await?))
}

fn addresses(servers: &[String]) -> Result<(Vec<ServerAddr>, Option<NatsAuth>), NatsSettingsError> {
    let mut addresses = Vec::with_capacity(servers.len());
    let mut auth = None;
    for (at, server) in servers.iter().enumerate() {
        let (address, named) = address(server).map_err(|problem| {
            // The text itself may hold a password.
            fault("NATS_URL", format!("server {}: {problem}", at + 1))
        })?;
        addresses.push(address);
        auth = auth.or(named);
    }
    if addresses.is_empty() {
        return Err(fault("NATS_URL", "it names no server"));
    }
    Ok((addresses, auth))
}

fn address(server: &str) -> Result<(ServerAddr, Option<NatsAuth>), String> {
    let server = server.trim();
    let mut url = if server.contains("://") {
        Url::parse(server)
    } else {
        Url::parse(&format!("nats://{server}"))
    }
    .map_err(|error| format!("this is no URL ({error}); write nats://host:port"))?;
    if !matches!(url.scheme(), "nats" | "tls") {
        return Err("the scheme is nats or tls".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the host is missing".to_owned());
    }
    let auth = user_of(&url);
    let removed = url.set_username("").and_then(|()| url.set_password(None));
    removed.map_err(|()| "the user cannot be taken out of this URL".to_owned())?;
    let address = ServerAddr::from_url(url).map_err(|error| error.to_string())?;
    Ok((address, auth))
}

/// `user:password@`, or a token alone.
fn user_of(url: &Url) -> Option<NatsAuth> {
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    match (url.username(), url.password()) {
        ("", None) => None,
        (token, None) => Some(NatsAuth::Token(decoded(token).into())),
        (user, Some(password)) => Some(NatsAuth::UserPassword {
            user: decoded(user),
            password: decoded(password).into(),
        }),
    }
}

async fn with_auth(
    options: ConnectOptions,
    auth: NatsAuth,
) -> Result<ConnectOptions, NatsSettingsError> {
    match auth {
        NatsAuth::None => Ok(options),
        NatsAuth::Token(token) => Ok(options.token(token.expose_secret().to_owned())),
        NatsAuth::UserPassword { user, password } => {
            Ok(options.user_and_password(user, password.expose_secret().to_owned()))
        }
        NatsAuth::CredentialsFile(path) => {
            let text = read("NATS_CREDS_FILE", &path).await?;
            // The client's error says which part is missing and quotes nothing.
            options
                .credentials(text.expose_secret())
                .map_err(|error| fault("NATS_CREDS_FILE", error))
        }
        NatsAuth::NkeyFile(path) => {
            let text = read("NATS_NKEY_FILE", &path).await?;
            let seed = seed_in(text.expose_secret())
                .ok_or_else(|| fault("NATS_NKEY_FILE", "the file holds no user's nkey seed"))?;
            Ok(options.nkey(seed))
        }
    }
}

/// The first line that is a user's seed. The client checks seeds only when it connects, except
/// those in credentials: so this one is put into such.
fn seed_in(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|l| l.starts_with("SU"))?;
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{line}\n------END USER NKEY SEED------\n"
    );
    let checked = ConnectOptions::new().credentials(&credentials);
    checked.is_ok().then(|| line.to_owned())
}

async fn read(setting: &'static str, path: &Path) -> Result<SecretString, NatsSettingsError> {
    let read = tokio::fs::read_to_string(path).await;
    read.map(SecretString::from)
        .map_err(|error| fault(setting, format!("{}: {error}", path.display())))
}

/// Gives the files to the client, which reads them at every connection, so that a renewed
/// certificate is used; and tries them once, here.
fn with_tls(
    mut options: ConnectOptions,
    tls: &NatsTls,
) -> Result<ConnectOptions, NatsSettingsError> {
    if let Some(ca) = &tls.ca {
        check_roots(ca)?;
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    match (&tls.cert, &tls.key) {
        (None, None) => {}
        (Some(cert), Some(key)) => {
            check_identity(cert, key)?;
            options = options
                .add_client_certificate(cert.clone(), key.clone())
                .require_tls(true);
        }
        (Some(_), None) => return Err(fault("NATS_TLS_KEY", "NATS_TLS_CERT needs it")),
        (None, Some(_)) => return Err(fault("NATS_TLS_CERT", "NATS_TLS_KEY needs it")),
    }
    Ok(options)
}

fn check_roots(path: &Path) -> Result<(), NatsSettingsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("NATS_TLS_CA", path)? {
        roots
            .add(certificate)
            .map_err(|error| fault("NATS_TLS_CA", format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

fn check_identity(cert: &Path, key: &Path) -> Result<(), NatsSettingsError> {
    let chain = certificates("NATS_TLS_CERT", cert)?;
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| fault("NATS_TLS_KEY", format!("{}: {error}", key.display())))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault("NATS_TLS_KEY", error))?
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(chain, secret)
        .map(drop)
        .map_err(|error| {
            let problem = format!("it does not go with NATS_TLS_CERT: {error}");
            fault("NATS_TLS_KEY", problem)
        })
}

fn certificates(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, NatsSettingsError> {
    let unusable = |problem: String| fault(setting, format!("{}: {problem}", path.display()));
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(error.to_string()))?;
    if all.is_empty() {
        return Err(unusable("it holds no PEM certificate".to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
