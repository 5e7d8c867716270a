//! The system's keychain: Keychain Services on macOS, the Secret Service on Linux.
//!
//! Every call runs on a thread of its own and is given up after [`PATIENCE`]: a keychain may ask the user to unlock
//! it, and a session bus may not answer at all.

use std::{io, os::unix::net::UnixStream, sync::mpsc, thread, time::Duration};

use zeroize::Zeroizing;

use crate::env::Environment;

/// Long enough for a person to unlock the keychain.
const PATIENCE: Duration = Duration::from_secs(60);
const SERVICE: &str = "moat";
const ACCOUNT: &str = "encryption-key";

/// What we need of a keychain. Tests have their own.
pub(super) trait Keychain: Send + Sync {
    fn get(&self) -> Result<Option<Zeroizing<String>>, KeychainError>;
    fn set(&self, secret: &str) -> Result<(), KeychainError>;
}

/// Why a keychain gives or takes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeychainError {
    /// This machine has none.
    Absent,
    /// It is locked, broken, or silent.
    Other(String),
}

/// The machine's keychain, if it can have one.
pub(super) fn of_this_machine(env: &Environment) -> Option<Box<dyn Keychain>> {
    // Without a session bus there is no Secret Service, and looking for one can hang.
    if cfg!(not(target_os = "macos")) && !env.get("DBUS_SESSION_BUS_ADDRESS").is_some_and(may_be_a_bus) {
        return None;
    }
    let service = env.get("MOAT_KEYRING_SERVICE").unwrap_or(SERVICE).to_owned();
    Some(Box::new(System { service }))
}

/// Is anybody at this address? An environment outlives its session, and is carried into containers.
fn may_be_a_bus(address: &str) -> bool {
    address.split(';').filter(|one| !one.is_empty()).any(|one| {
        let path = one
            .strip_prefix("unix:")
            .and_then(|options| options.split(',').find_map(|option| option.strip_prefix("path=")));
        // Abstract names, TCP and what else there is are left to the library.
        path.is_none_or(|path| match UnixStream::connect(path) {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused),
        })
    })
}

struct System {
    service: String,
}

impl Keychain for System {
    fn get(&self) -> Result<Option<Zeroizing<String>>, KeychainError> {
        patiently(self.service.clone(), |entry| match entry.get_password() {
            Ok(password) => Ok(Some(Zeroizing::new(password))),
            Err(keyring::Error::NoEntry) => Ok(None),
            Err(error) => Err(classify(&error)),
        })
    }

    fn set(&self, secret: &str) -> Result<(), KeychainError> {
        let secret = Zeroizing::new(secret.to_owned());
        patiently(self.service.clone(), move |entry| {
            entry.set_password(&secret).map_err(|error| classify(&error))
        })
    }
}

fn patiently<T: Send + 'static>(
    service: String,
    call: impl FnOnce(&keyring::Entry) -> Result<T, KeychainError> + Send + 'static,
) -> Result<T, KeychainError> {
    let (done, result) = mpsc::sync_channel(1);
    let work = move || {
        let answer = match keyring::Entry::store_status() {
            Ok(()) => keyring::Entry::new(&service, ACCOUNT).map_err(|e| classify(&e)).and_then(|e| call(&e)),
            Err(error) => Err(classify(error)),
        };
        // Nobody waits any more when the time is up.
        let _late = done.send(answer).is_err();
    };
    let spawned = thread::Builder::new().name("keychain".to_owned()).spawn(work);
    spawned.map_err(|error| KeychainError::Other(format!("no thread for it: {error}")))?;
    result
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err(KeychainError::Other(format!("no answer within {} s", PATIENCE.as_secs()))))
}

/// Only "there is no such service on this machine" counts as absent.
fn classify(error: &keyring::Error) -> KeychainError {
    if let keyring::Error::PlatformFailure(cause) = error {
        let text = cause.to_string();
        const ABSENT: [&str; 4] = [
            "no secret service provider or dbus session found",
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
            "org.freedesktop.DBus.Error.NoServer",
        ];
        if ABSENT.iter().any(|known| text.contains(known)) {
            return KeychainError::Absent;
        }
    }
    KeychainError::Other(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_bus_is_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let address = format!("unix:path={},guid=0123", path.display());
        assert!(!may_be_a_bus(""));
        assert!(!may_be_a_bus(&address));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(may_be_a_bus(&address));
        assert!(may_be_a_bus(&format!("unix:path=/nonexistent;{address}")));
        drop(listener);
        // The socket of a session that is over.
        assert!(path.exists() && !may_be_a_bus(&address));
        assert!(may_be_a_bus("unix:abstract=/tmp/dbus-x"));
    }
}
