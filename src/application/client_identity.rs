//! A client certificate, and the client that connects with it.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rustls::{
    RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::ports::{HttpSender, SendError};

/// Who the worker is to an endpoint that asks for a certificate (mutual TLS). Never printed.
pub struct ClientIdentity {
    certified: CertifiedKey,
    roots: Option<Arc<RootCertStore>>,
    /// One for all requests, so that connections are kept; it goes with the identity.
    client: OnceLock<Result<Arc<dyn HttpSender>, SendError>>,
}

/// Which part of an identity cannot be used, and why. Holds no secret.
pub type IdentityFault = (&'static str, &'static str);

impl ClientIdentity {
    /// An identity of texts in PEM: the certificate with those between it and the authority after it,
    /// its key (not encrypted), and the authorities that the endpoint's own certificate must come from,
    /// if not those that are trusted anyway.
    ///
    /// # Errors
    /// The field that cannot be used.
    pub fn from_pem(
        certificate: &str,
        private_key: &str,
        ca: Option<&str>,
    ) -> Result<Self, IdentityFault> {
        const NO_CERTIFICATE: &str = "must hold certificates in PEM";
        let chain = certificates(certificate).ok_or(("certificate", NO_CERTIFICATE))?;
        let key = PrivateKeyDer::from_pem_slice(private_key.as_bytes()).map_err(|_| {
            (
                "privateKey",
                "must hold a private key in PEM, not encrypted",
            )
        })?;
        let certified = CertifiedKey::from_der(chain, key, &default_provider());
        let certified = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                ("privateKey", "does not belong to the certificate")
            }
            rustls::Error::InvalidCertificate(_) => ("certificate", NO_CERTIFICATE),
            _ => ("privateKey", "must be an RSA, ECDSA or Ed25519 key"),
        })?;
        let roots = ca.map(|ca| authorities(ca).ok_or(("ca", NO_CERTIFICATE)));
        Ok(Self {
            certified,
            roots: roots.transpose()?.map(Arc::new),
            client: OnceLock::new(),
        })
    }

    /// What to show to the endpoint.
    pub fn certified(&self) -> &CertifiedKey {
        &self.certified
    }

    /// The authorities of the endpoint; `None` for those that are trusted anyway.
    pub fn roots(&self) -> Option<&Arc<RootCertStore>> {
        self.roots.as_ref()
    }

    /// The client of this identity, made once.
    ///
    /// # Errors
    /// Why it could not be made.
    pub fn client(
        &self,
        make: impl FnOnce() -> Result<Arc<dyn HttpSender>, SendError>,
    ) -> Result<Arc<dyn HttpSender>, SendError> {
        self.client.get_or_init(make).clone()
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

fn authorities(pem: &str) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).ok()?;
    }
    Some(roots)
}

/// At least one.
fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found.ok().filter(|found| !found.is_empty())
}
