//! A private certificate authority, made at start and trusted by nobody else.

use std::{fs, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

use crate::Outcome;

/// The authority.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Outcome<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "moat tests: private CA");
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Writes its certificate, for `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_pem(&self, path: &Path) -> Outcome {
        Ok(fs::write(path, self.issuer.pem())?)
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// Writes a certificate for these names and its key, as programs want them that are not ours.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_server(&self, names: &[&str], certificate: &Path, key: &Path) -> Outcome {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let pair = KeyPair::generate()?;
        fs::write(certificate, CertificateParams::new(names)?.signed_by(&pair, &self.issuer)?.pem())?;
        Ok(fs::write(key, pair.serialize_pem())?)
    }

    /// The TLS configuration of a server with one of these names. Offers HTTP/2 when asked to.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn server(&self, names: &[&str], http2: bool) -> Outcome<Arc<ServerConfig>> {
        self.configure(params(names)?, http2)
    }

    /// The same, with a certificate whose time is over.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn expired(&self, names: &[&str]) -> Outcome<Arc<ServerConfig>> {
        let mut params = params(names)?;
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.configure(params, false)
    }

    fn configure(&self, params: CertificateParams, http2: bool) -> Outcome<Arc<ServerConfig>> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        if http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        Ok(Arc::new(config))
    }
}

/// The TLS configuration of a server whose certificate and key [`Authority::write_server`] wrote.
///
/// # Errors
/// When they cannot be read.
pub fn server_config(certificate: &Path, key: &Path, protocols: &[&str]) -> Outcome<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}

fn params(names: &[&str]) -> Outcome<CertificateParams> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    Ok(CertificateParams::new(names)?)
}
