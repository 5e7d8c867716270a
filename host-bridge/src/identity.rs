//! Who is who on the tunnel: one CA per installation, a certificate for the bridge, one for each run.
//!
//! A run's certificate names the run and nothing else does. Nothing here says whether a run is alive: that is the
//! registry's, so certificates are valid practically for ever and a virtual machine's wrong clock does no harm.

use std::{borrow::Cow, fs, io, path::PathBuf};

use moat_shared::{
    hint::Hint,
    id::RunId,
    plan::Identity,
    secret::Secret,
    tls::{self, TlsError},
    wire,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use webpki::EndEntityCert;

use crate::{
    disk,
    home::{Home, private_dir},
};

/// Issues certificates in the name of this installation.
pub(crate) struct Authority {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    session_key: Secret<[u8; 32]>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// The installation's CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} does not hold what it should: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("the system has no random bytes to give")]
    Random,
    #[error("making a certificate")]
    Make(#[from] rcgen::Error),
    #[error("the certificates are unusable")]
    Tls(#[from] TlsError),
}

impl Hint for IdentityError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Damaged { path, .. } => {
                let dir = path.parent().unwrap_or(path).display();
                Some(format!("remove {dir} to get a new CA; runs that are going must be started anew").into())
            }
            _ => None,
        }
    }
}

impl Authority {
    /// Reads the installation's CA; makes it first where there is none.
    pub(crate) fn open(home: &Home) -> Result<Self, IdentityError> {
        let dir = home.ca();
        let failed = |what, path: &std::path::Path| {
            let path = path.to_owned();
            move |source| IdentityError::File { what, path, source }
        };
        private_dir(&dir).map_err(failed("making", &dir))?;
        let lock_path = dir.join("lock");
        let lock = disk::lock_file(&lock_path).map_err(failed("opening", &lock_path))?;
        lock.lock().map_err(failed("locking", &lock_path))?;

        let key_path = dir.join("ca.key");
        let key_pem = Secret::new(read_or_make(&key_path, || Ok(KeyPair::generate()?.serialize_pem()))?);
        let key = KeyPair::from_pem(key_pem.expose())
            .map_err(|error| IdentityError::Damaged { path: key_path, reason: error.to_string() })?;
        let params = ca_params();
        let ca_path = dir.join("ca.pem");
        let ca_pem = read_or_make(&ca_path, || Ok(params.self_signed(&key)?.pem()))?;
        if !certifies(&ca_pem, &key) {
            let reason = "the certificate is not that of ca.key".to_owned();
            return Err(IdentityError::Damaged { path: ca_path, reason });
        }
        let session_key = session_key(dir.join("session.key"))?;
        Ok(Self { ca_pem, issuer: Issuer::new(params, key), session_key })
    }

    /// A new key and certificate for a run.
    pub(crate) fn issue(&self, run: &RunId) -> Result<Identity, IdentityError> {
        let (certificate_pem, key_pem) =
            self.certificate(&tls::run_dns_name(run), ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(Identity { ca_pem: self.ca_pem.clone(), certificate_pem, key_pem })
    }

    /// The bridge's end of the tunnel, with a key of its own that no file holds.
    pub(crate) fn server_config(&self) -> Result<rustls::ServerConfig, IdentityError> {
        let (certificate, key) =
            self.certificate(wire::BRIDGE_DNS_NAME, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(tls::bridge_config(&self.ca_pem, &certificate, key.expose())?)
    }

    /// What session ids are bound to runs with; the same after a restart (R15).
    pub(crate) fn session_key(&self) -> &Secret<[u8; 32]> {
        &self.session_key
    }

    fn certificate(
        &self,
        dns_name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, Secret<String>), IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = lasting_params(dns_name);
        params.subject_alt_names = vec![SanType::DnsName(dns_name.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), Secret::new(key.serialize_pem())))
    }
}

/// The run that a verified certificate names: exactly one name, of exactly the right form.
pub(crate) fn run_of(certificate: &CertificateDer<'_>) -> Option<RunId> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    let run = tls::run_of_dns_name(names.next()?)?;
    names.next().is_none().then_some(run)
}

/// Always the same, so that the issuer can be made again from the key alone.
fn ca_params() -> CertificateParams {
    let mut params = lasting_params("moat tunnel CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn lasting_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn certifies(ca_pem: &str, key: &KeyPair) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(ca_pem.as_bytes()) else { return false };
    EndEntityCert::try_from(&der)
        .is_ok_and(|certificate| certificate.subject_public_key_info().ends_with(key.public_key_raw()))
}

fn session_key(path: PathBuf) -> Result<Secret<[u8; 32]>, IdentityError> {
    let text = Secret::new(read_or_make(&path, || {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| IdentityError::Random)?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    })?);
    let bytes: Option<Vec<u8>> = text
        .expose()
        .trim()
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|digits| u8::from_str_radix(digits, 16).ok()))
        .collect();
    bytes
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .map(Secret::new)
        .ok_or_else(|| IdentityError::Damaged { path, reason: "not 64 hexadecimal digits".to_owned() })
}

fn read_or_make(
    path: &std::path::Path,
    make: impl FnOnce() -> Result<String, IdentityError>,
) -> Result<String, IdentityError> {
    let failed = |what| move |source| IdentityError::File { what, path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = make()?;
            disk::replace(path, text.as_bytes()).map_err(failed("writing"))?;
            Ok(text)
        }
        Err(error) => Err(failed("reading")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn run() -> RunId {
        "run_0123456789ab".parse().unwrap()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn the_ca_lasts_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let first = Authority::open(&home).unwrap();
        let again = Authority::open(&home).unwrap();
        assert_eq!(first.ca_pem, again.ca_pem);
        assert_eq!(first.session_key.expose(), again.session_key.expose());
        assert_eq!(fs::metadata(home.ca()).unwrap().permissions().mode() & 0o777, 0o700);
        for file in ["ca.key", "ca.pem", "session.key", "lock"] {
            let mode = fs::metadata(home.ca().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_run_is_named_by_its_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&Home::at(dir.path())).unwrap();
        let identity = authority.issue(&run()).unwrap();
        assert_eq!(run_of(&der(&identity.certificate_pem)), Some(run()));
        assert_eq!(run_of(&der(&authority.ca_pem)), None, "the CA is no run");
        tls::sidecar_config(&identity).unwrap();
        authority.server_config().unwrap();
    }

    #[test]
    fn two_names_are_no_name() {
        let mut params = lasting_params("x");
        let other: RunId = "run_ba9876543210".parse().unwrap();
        params.subject_alt_names = [run(), other]
            .iter()
            .map(|run| SanType::DnsName(tls::run_dns_name(run).try_into().unwrap()))
            .collect();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(run_of(certificate.der()), None);
    }

    #[test]
    fn a_foreign_or_damaged_ca_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        Authority::open(&home).unwrap();
        disk::replace(&home.ca().join("ca.key"), KeyPair::generate().unwrap().serialize_pem().as_bytes())
            .unwrap();
        let error = Authority::open(&home).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
        assert!(error.hint().is_some());
        fs::write(home.ca().join("ca.key"), "").unwrap();
        assert!(matches!(Authority::open(&home), Err(IdentityError::Damaged { .. })));
    }
}
