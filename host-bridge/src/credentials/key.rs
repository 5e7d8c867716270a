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
        match self.in_keychain()? {
            Some(key) => Ok(Some(key)),
            None => self.in_file(),
        }
    }

    /// Every key that a credential may be encrypted with, the likeliest first; an error when there is none. There
    /// are two where a file was made while the keychain was away.
    pub(super) fn existing(&self) -> Result<Vec<Key>, KeyError> {
        let mut keys = Vec::new();
        keys.extend(self.in_keychain()?);
        match self.in_file() {
            Ok(key) => keys.extend(key),
            // The keychain's may be the right one.
            Err(_) if !keys.is_empty() => {}
            Err(error) => return Err(error),
        }
        if keys.is_empty() { Err(KeyError::Missing { path: self.file.clone() }) } else { Ok(keys) }
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
                Ok(()) if self.in_keychain()?.is_some_and(|back| back.expose() == key.expose()) => {
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

    fn in_keychain(&self) -> Result<Option<Key>, KeyError> {
        let Some(keychain) = &self.keychain else { return Ok(None) };
        match keychain.get() {
            Ok(Some(text)) => Key::from_base64(&text)
                .map(Some)
                .ok_or_else(|| KeyError::Invalid { what: "the keychain's entry".to_owned() }),
            Ok(None) | Err(KeychainError::Absent) => Ok(None),
            Err(KeychainError::Other(text)) => Err(KeyError::Keychain(text)),
        }
    }

    fn in_file(&self) -> Result<Option<Key>, KeyError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use test_case::test_case;

    /// A keychain in memory, which may be broken or absent.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        entry: Option<String>,
        trouble: Option<KeychainError>,
        forgets: bool,
    }

    impl Fake {
        fn troubled(trouble: KeychainError) -> Self {
            let fake = Self::default();
            fake.0.lock().unwrap().trouble = Some(trouble);
            fake
        }
        fn entry(&self) -> Option<String> {
            self.0.lock().unwrap().entry.clone()
        }
    }

    impl Keychain for Fake {
        fn get(&self) -> Result<Option<Zeroizing<String>>, KeychainError> {
            let state = self.0.lock().unwrap();
            match &state.trouble {
                Some(trouble) => Err(trouble.clone()),
                None => Ok(state.entry.clone().map(Zeroizing::new)),
            }
        }
        fn set(&self, secret: &str) -> Result<(), KeychainError> {
            let mut state = self.0.lock().unwrap();
            if let Some(trouble) = &state.trouble {
                return Err(trouble.clone());
            }
            if !state.forgets {
                state.entry = Some(secret.to_owned());
            }
            Ok(())
        }
    }

    struct Rig {
        _dir: tempfile::TempDir,
        home: Home,
    }

    fn rig() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("home"));
        Rig { _dir: dir, home }
    }

    impl Rig {
        fn keys(&self, keychain: Option<Fake>) -> Keys {
            Keys::with(&self.home, keychain.map(|fake| Box::new(fake) as Box<dyn Keychain>), true)
        }
        fn make(&self, keychain: Option<Fake>) -> Result<Found, KeyError> {
            let keys = self.keys(keychain);
            let held = keys.locked()?;
            keys.find_or_make(&held)
        }
        fn write_key(&self, text: &str, mode: u32) {
            private_dir(self.home.root()).unwrap();
            fs::write(self.home.key_file(), text).unwrap();
            fs::set_permissions(self.home.key_file(), fs::Permissions::from_mode(mode)).unwrap();
        }
        fn write_credential(&self, dir: &Path) {
            private_dir(dir).unwrap();
            fs::write(dir.join("mcp-a.enc"), b"x").unwrap();
        }
    }

    fn text_of(byte: u8) -> String {
        BASE64_STANDARD.encode([byte; 32])
    }

    #[test]
    fn without_a_keychain_a_private_file_is_made_once() {
        let rig = rig();
        let made = rig.make(None).unwrap();
        assert_eq!(made.new_file, Some(rig.home.key_file()));
        let mode = fs::metadata(rig.home.key_file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = rig.make(None).unwrap();
        assert_eq!((again.key.expose(), again.new_file), (made.key.expose(), None));
    }

    #[test]
    fn a_keychain_holds_the_key_and_no_file_is_made() {
        let (rig, keychain) = (rig(), Fake::default());
        let made = rig.make(Some(keychain.clone())).unwrap();
        assert_eq!(keychain.entry().as_deref(), Some(made.key.to_base64().as_str()));
        assert!(made.new_file.is_none() && !rig.home.key_file().exists());
        assert_eq!(rig.make(Some(keychain)).unwrap().key.expose(), made.key.expose());
    }

    #[test]
    fn an_existing_file_wins_over_a_new_entry() {
        let (rig, keychain) = (rig(), Fake::default());
        rig.write_key(&text_of(9), 0o600);
        assert_eq!(rig.make(Some(keychain.clone())).unwrap().key.expose(), &[9; 32]);
        assert_eq!(keychain.entry(), None);
    }

    #[test]
    fn a_keychain_that_is_absent_leads_to_the_file() {
        let rig = rig();
        let made = rig.make(Some(Fake::troubled(KeychainError::Absent))).unwrap();
        assert_eq!(made.new_file, Some(rig.home.key_file()));
    }

    #[test]
    fn trouble_never_makes_a_second_key() {
        let rig = rig();
        let locked = Fake::troubled(KeychainError::Other("locked".to_owned()));
        assert!(matches!(rig.make(Some(locked.clone())), Err(KeyError::Keychain(text)) if text == "locked"));
        assert!(!rig.home.key_file().exists());
        // Not even when there is a file: the credentials may be the keychain's.
        rig.write_key(&text_of(9), 0o600);
        assert!(rig.make(Some(locked)).is_err());
        let forgetful = Fake::default();
        forgetful.0.lock().unwrap().forgets = true;
        fs::remove_file(rig.home.key_file()).unwrap();
        assert!(matches!(rig.make(Some(forgetful)), Err(KeyError::Keychain(_))));
        assert!(!rig.home.key_file().exists());
    }

    #[test_case(None; "of the default")]
    #[test_case(Some("work"); "of a profile")]
    fn no_key_is_made_while_something_is_encrypted(profile: Option<&str>) {
        let rig = rig();
        let profile = profile.map(|profile| profile.parse().unwrap());
        rig.write_credential(&rig.home.credentials(profile.as_ref()));
        assert!(matches!(rig.make(None), Err(KeyError::Missing { .. })));
        assert!(matches!(rig.make(Some(Fake::default())), Err(KeyError::Missing { .. })));
        assert!(!rig.home.key_file().exists());
    }

    #[test_case(0o640; "group")]
    #[test_case(0o604; "others")]
    #[test_case(0o620; "group may write")]
    fn a_file_that_others_may_touch_is_refused(mode: u32) {
        let rig = rig();
        rig.write_key(&text_of(9), mode);
        assert!(matches!(rig.keys(None).find(), Err(KeyError::Exposed { mode: seen, .. }) if seen == mode));
    }

    #[test_case("" ; "empty")]
    #[test_case("AAAA" ; "short")]
    #[test_case("not base64!" ; "garbage")]
    fn a_file_without_a_key_is_an_error(text: &str) {
        let rig = rig();
        rig.write_key(text, 0o600);
        assert!(matches!(rig.make(None), Err(KeyError::Invalid { .. })));
        assert_eq!(fs::read_to_string(rig.home.key_file()).unwrap(), text);
    }

    #[test]
    fn many_at_once_agree_on_one_key() {
        let rig = rig();
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| rig.make(None).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(made.iter().all(|found| found.key.expose() == made[0].key.expose()));
        assert_eq!(made.iter().filter(|found| found.new_file.is_some()).count(), 1);
    }

    #[test]
    fn the_file_is_used_where_the_environment_says_so() {
        let rig = rig();
        let env = Environment::from([
            ("MOAT_KEYRING_BACKEND", "file"),
            ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent"),
        ]);
        let keys = Keys::of(&rig.home, &env);
        assert!(keys.keychain.is_none());
        // Asked for, so no news.
        let held = keys.locked().unwrap();
        assert_eq!(keys.find_or_make(&held).unwrap().new_file, None);
    }

    #[test]
    fn what_a_file_encrypted_while_the_keychain_was_away_stays_readable() {
        let (rig, keychain) = (rig(), Fake::default());
        keychain.0.lock().unwrap().entry = Some(text_of(1));
        rig.write_key(&text_of(2), 0o600);
        let keys = rig.keys(Some(keychain)).existing().unwrap();
        assert_eq!(keys.iter().map(|key| key.expose()[0]).collect::<Vec<_>>(), [1, 2]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_session_bus_that_is_not_there_is_no_keychain() {
        let rig = rig();
        assert!(Keys::of(&rig.home, &Environment::default()).keychain.is_none());
    }
}
