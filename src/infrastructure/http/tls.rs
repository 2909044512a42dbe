//! TLS to endpoints: the system's roots, and those of the operator.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::EndpointClientError;

/// The configuration of TLS, with the provider named, so that nothing is installed for the process.
pub(super) fn client_config(
    roots: Arc<RootCertStore>,
    certified: Option<&CertifiedKey>,
) -> Result<ClientConfig, EndpointClientError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| EndpointClientError::Tls(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match certified {
        Some(certified) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Those of the system, and those in `ca_file`.
pub(super) fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, EndpointClientError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(system.certs);
    if added == 0 {
        // Not fatal: endpoints may all be plain HTTP, or stand behind the operator's own authority.
        let error = system.errors.first().map(ToString::to_string);
        tracing::warn!(error, "this system has no root certificates for TLS");
    }
    if let Some(path) = ca_file {
        add_file(&mut roots, path).map_err(|fault| EndpointClientError::CaFile {
            path: path.to_owned(),
            fault,
        })?;
    }
    Ok(roots)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let before = roots.len();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.len() == before {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_a_fault_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no certificate").unwrap();
        let fault = roots(Some(file.path())).unwrap_err().to_string();
        assert!(
            fault.contains(&file.path().display().to_string()),
            "{fault}"
        );
        assert!(fault.contains("no certificate in PEM"), "{fault}");
        let missing = roots(Some(Path::new("/nowhere/ca.pem"))).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/ca.pem"), "{missing}");
    }
}
