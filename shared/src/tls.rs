//! The TLS configurations of both ends: version 1.3 only, both sides authenticated, independent of any clock.
//!
//! Whether a run is alive is the registry's to say, not a date in a certificate: a virtual machine's clock may be
//! in 1970. So both ends verify certificates at one fixed time. Sessions are never resumed and tickets never sent:
//! each connection proves its key.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::{id::RunId, plan::Identity, wire};

/// The DNS name in a run's certificate.
#[must_use]
pub fn run_dns_name(run: &RunId) -> String {
    // RFC 1035 knows no underscore in host names; certificates of this CA spell it as a hyphen.
    format!("{}{}", run.as_str().replace('_', "-"), wire::RUN_DNS_SUFFIX)
}

/// The run that a certificate's DNS name names.
#[must_use]
pub fn run_of_dns_name(name: &str) -> Option<RunId> {
    let label = name.strip_suffix(wire::RUN_DNS_SUFFIX)?;
    label.strip_prefix("run-").and_then(|digits| format!("run_{digits}").parse().ok())
}

/// The name that the sidecar expects of the bridge.
///
/// # Panics
/// Never: the name is a constant.
#[must_use]
pub fn bridge_name() -> ServerName<'static> {
    ServerName::try_from(wire::BRIDGE_DNS_NAME).unwrap_or_else(|_| unreachable!("a valid DNS name"))
}

/// Key or certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not what it claims to be.
    #[error("the {what} is not valid PEM")]
    Pem {
        /// Which one.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// rustls refuses it.
    #[error("the certificate or key is unusable")]
    Refused(#[from] rustls::Error),
    /// The CA cannot verify clients.
    #[error("the CA is unusable")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The sidecar's configuration: proves the run, trusts this installation's bridge and nobody else.
///
/// # Errors
/// When the identity is not usable.
pub fn sidecar_config(identity: &Identity) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(OneTime))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&identity.ca_pem)?)
        .with_client_auth_cert(
            vec![certificate(&identity.certificate_pem, "run's certificate")?],
            private_key(identity.key_pem.expose())?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The bridge's configuration: demands a certificate of this installation's CA. Which run it names is read by the
/// caller.
///
/// # Errors
/// When CA, certificate or key are not usable.
pub fn bridge_config(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<ServerConfig, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider()).build()?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(OneTime))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![certificate(certificate_pem, "bridge's certificate")?],
            private_key(key_pem)?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// The one cryptography provider, passed explicitly everywhere.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(ca_pem, "CA's certificate")?)?;
    Ok(roots)
}

fn certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| TlsError::Pem { what, source })
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|source| TlsError::Pem { what: "private key", source })
}

/// 2026-01-01T00:00:00Z, inside every certificate's validity.
#[derive(Debug)]
struct OneTime;

impl TimeProvider for OneTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_survives_its_dns_name() {
        let run: RunId = "run_0123456789ab".parse().unwrap();
        assert_eq!(run_dns_name(&run), "run-0123456789ab.run.moat.internal");
        assert_eq!(run_of_dns_name(&run_dns_name(&run)), Some(run));
        assert_eq!(run_of_dns_name("run-0123456789ab.example.com"), None);
        assert_eq!(run_of_dns_name("x.run-0123456789ab.run.moat.internal"), None);
    }
}
