//! The key of all credential files: in the system's keychain, else in `encryption.key`.
//!
//! ```text
//! look:  keychain ──found──► use it
//!           │ no entry, or no keychain on this machine
//!           ▼
//!        encryption.key ──there──► use it (refused when others may read it)
//!           │ not there
//!           ▼
//! make:  only under key.lock, only when nothing is encrypted yet, after looking again
//! ```
//!
//! Any other trouble with the keychain (locked, broken) is an error: a second key would make every stored
//! credential unreadable.

use std::{
    borrow::Cow,
    fmt,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use aes_gcm::aead::Generate;
use base64::{Engine, prelude::BASE64_STANDARD};
use moat_shared::{hint::Hint, secret::Secret};
use zeroize::Zeroizing;

use crate::{
    disk,
    env::Environment,
    home::{Home, private_dir},
};

mod keychain;

use keychain::{Keychain, KeychainError};

/// 32 random bytes.
#[derive(Clone, Debug)]
pub(super) struct Key(Secret<[u8; 32]>);

impl Key {
    pub(super) fn new(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }
    pub(super) fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_STANDARD.encode(self.expose()))
    }

    fn from_base64(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text.trim()).ok()?);
        Some(Self::new(bytes.as_slice().try_into().ok()?))
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the keychain does not give the encryption key: {0}")]
    Keychain(String),
    #[error("{what} does not hold a key (32 bytes in base64)")]
    Invalid { what: String },
    #[error("{} may be read by others (mode {mode:03o})", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the encryption key is gone, but there are credentials that were encrypted with it")]
    Missing { path: PathBuf },
    #[error("{}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the system gives no random bytes")]
    Random,
}

impl Hint for KeyError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Keychain(_) => Some(
                "Unlock the keychain and try again; or set MOAT_KEYRING_BACKEND=file to keep the key in a file \
                 (credentials that were encrypted with the keychain's key must then be granted again)."
                    .into(),
            ),
            Self::Exposed { path, .. } => Some(format!("To fix:\n  chmod 600 {}", path.display()).into()),
            Self::Missing { path } => Some(
                format!(
                    "If the key is in another session's keychain (MOAT_KEYRING_BACKEND, MOAT_KEYRING_SERVICE, a \
                     desktop session), use that; if it was in {}, restore that file. Otherwise remove the \
                     credentials with 'moat revoke <grant>' and grant them again.",
                    path.display()
                )
                .into(),
            ),
            Self::Invalid { .. } => {
                Some("Restore it, or remove it together with the credentials and grant them again.".into())
            }
            Self::File { .. } | Self::Random => None,
        }
    }
}

/// Where the key of an installation is.
pub(super) struct Keys {
    keychain: Option<Box<dyn Keychain>>,
    /// There is no keychain although nobody asked for the file.
    file_by_need: bool,
    file: PathBuf,
    lock: PathBuf,
    credentials: PathBuf,
}

/// A key, and the file that was made for it because there is no keychain.
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) new_file: Option<PathBuf>,
}

impl Keys {
    pub(super) fn of(home: &Home, env: &Environment) -> Self {
        let forced = env.get("MOAT_KEYRING_BACKEND") == Some("file");
        let keychain = if forced { None } else { keychain::of_this_machine(env) };
        Self::with(home, keychain, !forced)
    }

    fn with(home: &Home, keychain: Option<Box<dyn Keychain>>, file_by_need: bool) -> Self {
        Self {
            keychain,
            file_by_need,
            file: home.key_file(),
            lock: home.key_lock(),
            credentials: home.credentials(None),
        }
    }

    /// The key, if there is one.
    pub(super) fn find(&self) -> Result<Option<Key>, KeyError> {
        match self.from_keychain()? {
            Some(key) => Ok(Some(key)),
            None => self.from_file(),
        }
    }

    /// The key; an error when there is none.
    pub(super) fn existing(&self) -> Result<Key, KeyError> {
        self.find()?.ok_or_else(|| KeyError::Missing { path: self.file.clone() })
    }

    /// The key, made if nothing is encrypted yet. Only under the lock: nobody else makes one meanwhile.
    pub(super) fn find_or_make(&self, _held: &Locked) -> Result<Found, KeyError> {
        if let Some(key) = self.find()? {
            return Ok(Found { key, new_file: None });
        }
        if holds_credentials(&self.credentials) {
            return Err(KeyError::Missing { path: self.file.clone() });
        }
        let key = Key::new(<[u8; 32]>::try_generate().map_err(|_| KeyError::Random)?);
        if let Some(keychain) = &self.keychain {
            match keychain.set(&key.to_base64()) {
                // What the keychain does not give back is not stored.
                Ok(()) if self.from_keychain()?.is_some_and(|back| back.expose() == key.expose()) => {
                    return Ok(Found { key, new_file: None });
                }
                Ok(()) => return Err(KeyError::Keychain("it did not keep the new key".to_owned())),
                Err(KeychainError::Absent) => {}
                Err(KeychainError::Other(text)) => return Err(KeyError::Keychain(text)),
            }
        }
        disk::replace(&self.file, format!("{}\n", *key.to_base64()).as_bytes())
            .map_err(|source| KeyError::File { path: self.file.clone(), source })?;
        let new_file = self.file_by_need.then(|| self.file.clone());
        Ok(Found { key, new_file })
    }

    fn from_keychain(&self) -> Result<Option<Key>, KeyError> {
        let Some(keychain) = &self.keychain else { return Ok(None) };
        match keychain.get() {
            Ok(Some(text)) => Key::from_base64(&text)
                .map(Some)
                .ok_or_else(|| KeyError::Invalid { what: "the keychain's entry".to_owned() }),
            Ok(None) | Err(KeychainError::Absent) => Ok(None),
            Err(KeychainError::Other(text)) => Err(KeyError::Keychain(text)),
        }
    }

    fn from_file(&self) -> Result<Option<Key>, KeyError> {
        let failed = |source| KeyError::File { path: self.file.clone(), source };
        let file = match File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: self.file.clone(), mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(256));
        file.take(256).read_to_string(&mut text).map_err(failed)?;
        let invalid = || KeyError::Invalid { what: self.file.display().to_string() };
        Key::from_base64(&text).map(Some).ok_or_else(invalid)
    }

    /// Nobody else makes a key or writes a credential while this is held.
    pub(super) fn locked(&self) -> Result<Locked, KeyError> {
        let failed = |source| KeyError::File { path: self.lock.clone(), source };
        if let Some(parent) = self.lock.parent() {
            private_dir(parent).map_err(failed)?;
        }
        let file = disk::lock_file(&self.lock).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Locked(file))
    }
}

/// `key.lock`, held.
#[derive(Debug)]
pub(super) struct Locked(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Is there any `.enc` file, of any profile? What cannot be looked into counts as a yes.
fn holds_credentials(dir: &Path) -> bool {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    entries.into_iter().any(|entry| {
        entry.map_or(true, |entry| {
            let path = entry.path();
            path.extension().is_some_and(|extension| extension == "enc")
                || entry.file_type().map_or(true, |kind| kind.is_dir() && holds_credentials(&path))
        })
    })
}
