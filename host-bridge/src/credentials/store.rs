//! The credential files of one profile: read with a cache, written atomically, listed, removed.
//!
//! A grant's file is `<grant>.enc`; `mcp:<name>.enc`, which older versions wrote, is read when `mcp-<name>.enc` is
//! not there. Writing is canonical. Every failure fails closed: a file that cannot be read is no credential.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use moat_shared::{
    grant::{GrantKind, GrantName},
    hint::Hint,
};

use super::{
    key::{Found, Key, KeyError, Keys, Locked},
    sealed::{Credential, SealError, Unsealable},
};
use crate::{
    disk,
    env::Environment,
    home::{Home, Profile, private_dir},
};

/// A credential file; tokens are a few kilobytes.
const FILE: u64 = 1 << 20;

/// The credentials of one profile.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    profile: Option<Profile>,
    keys: Keys,
    memory: Mutex<Memory>,
}

/// What was read already.
#[derive(Debug, Default)]
struct Memory {
    key: Option<Key>,
    credentials: HashMap<GrantName, (PathBuf, Stamp, Credential)>,
}

/// What tells whether a file changed: writers replace it, so its inode changes; the Go implementation rewrites it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Why a credential cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("grant '{grant}' is not configured")]
    NotConfigured { grant: GrantName },
    #[error(
        "decrypting credential for {grant}: message authentication failed\n  This may indicate the encryption key has changed."
    )]
    Decrypt { grant: GrantName },
    #[error("the credential of '{grant}' cannot be read ({})", path.display())]
    Unreadable {
        grant: GrantName,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged: {reason}", path.display())]
    Malformed { grant: GrantName, path: PathBuf, reason: String },
    #[error("{} holds the credential of {found:?}, not of '{grant}'", path.display())]
    Mismatch { grant: GrantName, path: PathBuf, found: String },
    #[error("the credential of '{grant}' cannot be decrypted")]
    Key {
        grant: GrantName,
        #[source]
        source: KeyError,
    },
}

impl Hint for ReadError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let again = |grant: &GrantName| {
            Some(format!("To re-authenticate:\n  moat revoke {grant}\n  {}", grant.command()).into())
        };
        match self {
            Self::NotConfigured { grant } => Some(format!("To fix:\n  {}", grant.command()).into()),
            Self::Decrypt { grant } => Some(format!("To re-authenticate:\n  {}", grant.command()).into()),
            Self::Malformed { grant, .. } | Self::Mismatch { grant, .. } => again(grant),
            Self::Unreadable { path, .. } => {
                Some(format!("Check owner and rights of {}", path.display()).into())
            }
            Self::Key { source, .. } => source.hint(),
        }
    }
}

/// Why a credential cannot be kept or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("no credential found for {0}")]
    NotThere(GrantName),
    #[error("{}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Hint for WriteError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Key(error) => error.hint(),
            Self::Seal(_) | Self::NotThere(_) | Self::File { .. } => None,
        }
    }
}

/// Why a grant cannot be bound to a host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Hint for BindError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Write(error) => error.hint(),
        }
    }
}

/// Where a credential went.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) path: PathBuf,
    /// The file that holds the encryption key, when it was made just now because there is no keychain.
    pub(crate) new_key_file: Option<PathBuf>,
}

/// One file of the store.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The grant, or the file's name when that is no grant's.
    pub(crate) name: String,
    pub(crate) credential: Result<Credential, String>,
}

impl Store {
    /// The store of a profile. Touches nothing yet.
    pub(crate) fn open(home: &Home, env: &Environment, profile: Option<&Profile>) -> Self {
        Self {
            dir: home.credentials(profile),
            profile: profile.cloned(),
            keys: Keys::of(home, env),
            memory: Mutex::default(),
        }
    }

    pub(crate) fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// Where a grant's credential is written.
    pub(crate) fn path(&self, grant: &GrantName) -> PathBuf {
        self.dir.join(format!("{grant}.enc"))
    }

    /// A grant's files, in the order in which they are looked for.
    fn paths(&self, grant: &GrantName) -> Vec<PathBuf> {
        let mut paths = vec![self.path(grant)];
        if let GrantKind::Mcp(name) = grant.kind() {
            paths.push(self.dir.join(format!("mcp:{name}.enc")));
        }
        paths
    }

    /// A grant's credential as it is on disk now.
    pub(crate) fn read(&self, grant: &GrantName) -> Result<Credential, ReadError> {
        for path in self.paths(grant) {
            match self.read_file(grant, &path) {
                Err(ReadError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Ok(credential) => return Ok(credential),
                Err(error) => {
                    self.memory().credentials.remove(grant);
                    return Err(error);
                }
            }
        }
        self.memory().credentials.remove(grant);
        Err(ReadError::NotConfigured { grant: grant.clone() })
    }

    fn read_file(&self, grant: &GrantName, path: &Path) -> Result<Credential, ReadError> {
        let unreadable =
            |source| ReadError::Unreadable { grant: grant.clone(), path: path.to_owned(), source };
        let stamp = Stamp::of(&fs::metadata(path).map_err(unreadable)?);
        if let Some((at, known, credential)) = self.memory().credentials.get(grant) {
            if at == path && *known == stamp {
                return Ok(credential.clone());
            }
        }
        let file = File::open(path).map_err(unreadable)?;
        // Of the file that is open: the path may lead to another one by now.
        let stamp = Stamp::of(&file.metadata().map_err(unreadable)?);
        let mut bytes = Vec::new();
        file.take(FILE).read_to_end(&mut bytes).map_err(unreadable)?;
        let credential = self.unseal(grant, path, &bytes)?;
        self.memory().credentials.insert(grant.clone(), (path.to_owned(), stamp, credential.clone()));
        Ok(credential)
    }

    fn unseal(&self, grant: &GrantName, path: &Path, bytes: &[u8]) -> Result<Credential, ReadError> {
        let of_key = |source| ReadError::Key { grant: grant.clone(), source };
        let remembered = self.memory().key.clone();
        let (key, fresh) = match remembered {
            Some(key) => (key, false),
            None => (self.keys.existing().map_err(of_key)?, true),
        };
        let mut unsealed = Credential::unseal(bytes, &key, grant);
        if matches!(unsealed, Err(Unsealable::Key)) && !fresh {
            // The key may have been made anew since we learned it.
            let key = self.keys.existing().map_err(of_key)?;
            unsealed = Credential::unseal(bytes, &key, grant);
            self.memory().key = Some(key);
        } else {
            self.memory().key = Some(key);
        }
        unsealed.map_err(|error| match error {
            Unsealable::Key => ReadError::Decrypt { grant: grant.clone() },
            Unsealable::Form(reason) => {
                ReadError::Malformed { grant: grant.clone(), path: path.to_owned(), reason }
            }
            Unsealable::Foreign(found) => {
                ReadError::Mismatch { grant: grant.clone(), path: path.to_owned(), found }
            }
        })
    }

    /// Keeps a credential; a former one is replaced once the new one is on disk.
    pub(crate) fn put(&self, credential: &Credential) -> Result<Saved, WriteError> {
        let held = self.keys.locked()?;
        self.put_locked(credential, &held)
    }

    fn put_locked(&self, credential: &Credential, held: &Locked) -> Result<Saved, WriteError> {
        let Found { key, new_file } = self.keys.find_or_make(held)?;
        let path = self.path(&credential.grant);
        let sealed = credential.seal(&key)?;
        let written = private_dir(&self.dir).and_then(|()| disk::replace(&path, &sealed));
        written.map_err(|source| WriteError::File { path: path.clone(), source })?;
        self.memory().key = Some(key);
        Ok(Saved { path, new_key_file: new_file })
    }

    /// Lets a grant be sent to one more host. Its credential stays as it is.
    pub(crate) fn bind(&self, grant: &GrantName, host: &str) -> Result<(), BindError> {
        let held = self.keys.locked().map_err(WriteError::from)?;
        let mut credential = self.read(grant)?;
        credential.hosts = super::grant::hosts(&credential).into_owned();
        if credential.hosts.insert(host.to_owned()) {
            self.put_locked(&credential, &held)?;
        }
        Ok(())
    }

    /// Removes a grant's credential, whatever spelling its file has.
    pub(crate) fn remove(&self, grant: &GrantName) -> Result<(), WriteError> {
        let mut found = false;
        for path in self.paths(grant) {
            match fs::remove_file(&path) {
                Ok(()) => found = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(WriteError::File { path, source }),
            }
        }
        self.memory().credentials.remove(grant);
        if !found {
            return Err(WriteError::NotThere(grant.clone()));
        }
        sync_dir(&self.dir).map_err(|source| WriteError::File { path: self.dir.clone(), source })
    }

    /// Is there a file for this grant, readable or not?
    pub(crate) fn has(&self, grant: &GrantName) -> bool {
        self.paths(grant).iter().any(|path| path.symlink_metadata().is_ok())
    }

    /// Every credential file of the profile, readable or not, in the order of their names.
    pub(crate) fn list(&self) -> io::Result<Vec<Listed>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut grants = BTreeSet::new();
        let mut strangers = BTreeSet::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == "enc") {
                match name.parse::<GrantName>() {
                    Ok(grant) => _ = grants.insert(grant),
                    Err(_) => _ = strangers.insert(name),
                }
            }
        }
        let known = grants.into_iter().map(|grant| Listed {
            name: grant.to_string(),
            credential: self.read(&grant).map_err(|error| error.to_string()),
        });
        let unknown = strangers
            .into_iter()
            .map(|name| Listed { name, credential: Err("not the name of a grant".to_owned()) });
        Ok(known.chain(unknown).collect())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic elsewhere leaves the cache as usable as it was.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
