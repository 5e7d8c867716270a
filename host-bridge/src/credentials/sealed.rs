//! The content of a credential file: 12 bytes of nonce, then AES-256-GCM over JSON, no associated data.
//!
//! The same bytes that the Go implementation of moat reads and writes. Its `metadata` is a map of strings, so the
//! hosts of a grant are one string there, separated by commas.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use aes_gcm::{
    Aes256Gcm, Nonce,
    aead::{Aead, Generate, KeyInit},
};
use jiff::Timestamp;
use moat_shared::{grant::GrantName, secret::Secret};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::key::Key;

/// The key of [`Raw::metadata`] that holds the hosts.
const HOSTS: &str = "hosts";
/// What Go writes for "no time".
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";
const NONCE: usize = 12;

/// A stored credential.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) grant: GrantName,
    pub(crate) token: Secret<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) created_at: Timestamp,
    /// Where it may be sent; empty: not recorded (see [`super::grant`]).
    pub(crate) hosts: BTreeSet<String>,
    /// Everything else that the file holds about it. OAuth keeps secrets here.
    pub(crate) metadata: BTreeMap<String, Secret<String>>,
}

/// Why the bytes of a file are no credential.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unsealable {
    /// Not encrypted with this key, or damaged.
    Key,
    /// Decrypted, but not what a credential looks like.
    Form(String),
    /// It says that it is another grant's.
    Foreign(String),
}

/// The JSON inside. Serialised into memory that is wiped; never anywhere else.
#[derive(Serialize, Deserialize)]
struct Raw<'a> {
    provider: Cow<'a, str>,
    token: Zeroizing<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
    #[serde(default = "zero_time")]
    expires_at: String,
    #[serde(default = "zero_time")]
    created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, Zeroizing<String>>>,
}

fn zero_time() -> String {
    ZERO_TIME.to_owned()
}

impl Credential {
    /// A new static credential.
    pub(crate) fn new(
        grant: GrantName,
        token: Secret<String>,
        hosts: BTreeSet<String>,
        now: Timestamp,
    ) -> Self {
        Self {
            grant,
            token,
            scopes: Vec::new(),
            expires_at: None,
            created_at: now,
            hosts,
            metadata: BTreeMap::new(),
        }
    }

    /// Encrypts it under a fresh nonce.
    pub(super) fn seal(&self, key: &Key) -> Result<Vec<u8>, SealError> {
        let mut metadata: BTreeMap<_, _> =
            self.metadata.iter().map(|(k, v)| (k.clone(), Zeroizing::new(v.expose().clone()))).collect();
        if !self.hosts.is_empty() {
            let hosts = self.hosts.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            metadata.insert(HOSTS.to_owned(), Zeroizing::new(hosts));
        }
        let raw = Raw {
            provider: Cow::Borrowed(self.grant.as_str()),
            token: Zeroizing::new(self.token.expose().clone()),
            scopes: (!self.scopes.is_empty()).then(|| self.scopes.clone()),
            expires_at: self.expires_at.map_or_else(zero_time, |at| at.to_string()),
            created_at: self.created_at.to_string(),
            metadata: (!metadata.is_empty()).then_some(metadata),
        };
        let json = Zeroizing::new(serde_json::to_vec(&raw).map_err(|_| SealError)?);
        let nonce = <[u8; NONCE]>::try_generate().map_err(|_| SealError)?;
        let cipher = Aes256Gcm::new(key.expose().into());
        let sealed = cipher.encrypt(&Nonce::from(nonce), json.as_slice()).map_err(|_| SealError)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts the bytes of the file of `grant`.
    pub(super) fn unseal(bytes: &[u8], key: &Key, grant: &GrantName) -> Result<Self, Unsealable> {
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE>().ok_or(Unsealable::Key)?;
        let cipher = Aes256Gcm::new(key.expose().into());
        let json = cipher.decrypt(&Nonce::from(*nonce), sealed).map_err(|_| Unsealable::Key)?;
        let json = Zeroizing::new(json);
        // The parser's own message could quote the token.
        let raw: Raw<'_> = serde_json::from_slice(&json)
            .map_err(|error| Unsealable::Form(format!("invalid JSON at column {}", error.column())))?;
        if raw.provider.parse::<GrantName>().ok().as_ref() != Some(grant) {
            return Err(Unsealable::Foreign(raw.provider.chars().take(80).collect()));
        }
        if raw.token.is_empty() {
            return Err(Unsealable::Form("the credential is empty".to_owned()));
        }
        let mut metadata = raw.metadata.unwrap_or_default();
        let hosts = metadata.remove(HOSTS).unwrap_or_default();
        Ok(Self {
            grant: grant.clone(),
            token: Secret::new(String::clone(&raw.token)),
            scopes: raw.scopes.unwrap_or_default(),
            expires_at: time("expires_at", &raw.expires_at)?,
            created_at: time("created_at", &raw.created_at)?.unwrap_or(Timestamp::UNIX_EPOCH),
            hosts: hosts
                .split(',')
                .map(str::trim)
                .filter(|h| !h.is_empty())
                .map(str::to_ascii_lowercase)
                .collect(),
            metadata: metadata.into_iter().map(|(k, v)| (k, Secret::new(String::clone(&v)))).collect(),
        })
    }
}

/// No random bytes, or no memory: nothing that a user could mend.
#[derive(Debug, thiserror::Error)]
#[error("the credential cannot be encrypted: the system gives no random bytes")]
pub(crate) struct SealError;

/// A time as Go writes it; its zero time means none.
fn time(field: &str, text: &str) -> Result<Option<Timestamp>, Unsealable> {
    if text == ZERO_TIME {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Unsealable::Form(format!("'{field}' is no time")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grant() -> GrantName {
        GrantName::mcp("context7").unwrap()
    }

    fn key(byte: u8) -> Key {
        Key::new([byte; 32])
    }

    fn credential() -> Credential {
        let hosts = ["mcp.context7.com".to_owned(), "localhost".to_owned()].into();
        let mut credential = Credential::new(
            grant(),
            Secret::new("s3cr3t".to_owned()),
            hosts,
            "2026-01-25T10:23:44.5Z".parse().unwrap(),
        );
        credential.metadata.insert("token_source".to_owned(), Secret::new("manual".to_owned()));
        credential
    }

    #[test]
    fn what_is_sealed_comes_back() {
        let sealed = credential().seal(&key(7)).unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"s3cr3t"));
        let back = Credential::unseal(&sealed, &key(7), &grant()).unwrap();
        assert_eq!(back.token.expose(), "s3cr3t");
        assert_eq!(back.hosts, credential().hosts);
        assert_eq!(back.created_at, credential().created_at);
        assert_eq!(back.expires_at, None);
        assert_eq!(back.metadata["token_source"].expose(), "manual");
    }

    #[test]
    fn every_file_has_its_own_nonce() {
        let (one, two) = (credential().seal(&key(7)).unwrap(), credential().seal(&key(7)).unwrap());
        assert_ne!(one[..NONCE], two[..NONCE]);
    }

    #[test]
    fn another_key_and_any_changed_byte_are_noticed() {
        let sealed = credential().seal(&key(7)).unwrap();
        assert_eq!(Credential::unseal(&sealed, &key(8), &grant()).unwrap_err(), Unsealable::Key);
        for at in 0..sealed.len() {
            let mut bytes = sealed.clone();
            bytes[at] ^= 1;
            assert_eq!(Credential::unseal(&bytes, &key(7), &grant()).unwrap_err(), Unsealable::Key);
        }
    }

    #[test]
    fn a_renamed_file_is_not_another_grant() {
        let sealed = credential().seal(&key(7)).unwrap();
        let other = GrantName::mcp("other").unwrap();
        let error = Credential::unseal(&sealed, &key(7), &other).unwrap_err();
        assert_eq!(error, Unsealable::Foreign("mcp-context7".to_owned()));
    }

    /// Made by Python's `cryptography` (AESGCM), see `testdata/make.py`.
    #[test]
    fn files_of_another_implementation_are_read() {
        let bytes = include_bytes!("testdata/mcp-context7.enc");
        let back = Credential::unseal(bytes, &key(0x42), &grant()).unwrap();
        assert_eq!(back.token.expose(), "ctx7sk-0123456789");
        assert_eq!(back.scopes, ["read", "write"]);
        assert_eq!(back.expires_at, None);
        assert_eq!(back.created_at, "2026-01-25T10:23:44.512345678+02:00".parse().unwrap());
        assert_eq!(back.metadata["token_source"].expose(), "pat");
        assert!(back.hosts.is_empty());
    }

    proptest! {
        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert_eq!(Credential::unseal(&bytes, &key(7), &grant()).unwrap_err(), Unsealable::Key);
        }
    }
}
