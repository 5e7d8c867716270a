//! The credential files of one profile: read with a cache, written atomically, listed, removed.
//!
//! A grant's file is `<grant>.enc`; `mcp:<name>.enc`, which older versions wrote, is read when `mcp-<name>.enc` is
//! not there. Writing is canonical. Every failure fails closed: a file that cannot be read is no credential.

mod error;

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use moat_shared::grant::{GrantKind, GrantName};

use self::error::in_short;
pub(crate) use self::error::{BindError, ReadError, WriteError};
use super::{
    key::{Found, Key, Keys, Locked},
    sealed::{Credential, Unsealable},
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
    credentials: HashMap<GrantName, Arc<Known>>,
}

/// A credential, and the file that it was read from.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    canonical: bool,
    stamp: Stamp,
    credential: Arc<Credential>,
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
        self.current(grant).map(|credential| Credential::clone(&credential))
    }

    /// The same, not copied: asked for by every request that gets a credential.
    pub(crate) fn current(&self, grant: &GrantName) -> Result<Arc<Credential>, ReadError> {
        let known = self.memory().credentials.get(grant).cloned();
        // Of the canonical name's file only: another one counts as long as that is not there.
        if let Some(known) = known.filter(|known| known.canonical)
            && fs::metadata(&known.path).is_ok_and(|metadata| Stamp::of(&metadata) == known.stamp)
        {
            return Ok(Arc::clone(&known.credential));
        }
        for (index, path) in self.paths(grant).iter().enumerate() {
            match self.read_file(grant, path, index == 0) {
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

    fn read_file(
        &self,
        grant: &GrantName,
        path: &Path,
        canonical: bool,
    ) -> Result<Arc<Credential>, ReadError> {
        let unreadable =
            |source| ReadError::Unreadable { grant: grant.clone(), path: path.to_owned(), source };
        let stamp = Stamp::of(&fs::metadata(path).map_err(unreadable)?);
        if let Some(known) = self.memory().credentials.get(grant)
            && known.path == path
            && known.stamp == stamp
        {
            return Ok(Arc::clone(&known.credential));
        }
        let file = File::open(path).map_err(unreadable)?;
        // Of the file that is open: the path may lead to another one by now.
        let stamp = Stamp::of(&file.metadata().map_err(unreadable)?);
        let mut bytes = Vec::new();
        file.take(FILE).read_to_end(&mut bytes).map_err(unreadable)?;
        let credential = Arc::new(self.unseal(grant, path, &bytes)?);
        let known = Known { path: path.to_owned(), canonical, stamp, credential: Arc::clone(&credential) };
        self.memory().credentials.insert(grant.clone(), Arc::new(known));
        Ok(credential)
    }

    fn unseal(&self, grant: &GrantName, path: &Path, bytes: &[u8]) -> Result<Credential, ReadError> {
        let remembered = self.memory().key.clone();
        let mut unsealed = match remembered {
            Some(key) => Credential::unseal(bytes, &key, grant),
            None => Err(Unsealable::Key),
        };
        if matches!(unsealed, Err(Unsealable::Key)) {
            // Not known yet, or made anew since.
            let keys =
                self.keys.existing().map_err(|source| ReadError::Key { grant: grant.clone(), source })?;
            for key in keys {
                unsealed = Credential::unseal(bytes, &key, grant);
                if !matches!(unsealed, Err(Unsealable::Key)) {
                    self.memory().key = Some(key);
                    break;
                }
            }
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
        let saved = self.prepare_locked(credential, held)?;
        let written = disk::commit(&saved.path).and_then(|()| disk::sync_directory_of(&saved.path));
        written.map_err(|source| WriteError::File { path: saved.path.clone(), source })?;
        Ok(saved)
    }

    fn prepare_locked(&self, credential: &Credential, held: &Locked) -> Result<Saved, WriteError> {
        let Found { key, new_file } = self.keys.find_or_make(held)?;
        let path = self.path(&credential.grant);
        let sealed = credential.seal(&key)?;
        let written = private_dir(&self.dir).and_then(|()| disk::prepare(&path, &sealed));
        written.map_err(|source| WriteError::File { path: path.clone(), source })?;
        self.memory().key = Some(key);
        Ok(Saved { path, new_key_file: new_file })
    }

    /// The first step of keeping a credential: durable, but not yet in its place. [`crate::oauth`] takes the others
    /// one by one, under the grant's lock.
    pub(crate) fn prepare(&self, credential: &Credential) -> Result<Saved, WriteError> {
        let held = self.keys.locked()?;
        self.prepare_locked(credential, &held)
    }

    /// A file of a grant beside its credential; the directory is made.
    pub(crate) fn beside(&self, grant: &GrantName, extension: &str) -> io::Result<PathBuf> {
        private_dir(&self.dir)?;
        Ok(self.dir.join(format!("{grant}.{extension}")))
    }

    /// Lets a grant be sent to one more host. Its credential stays as it is.
    pub(crate) fn bind(&self, grant: &GrantName, host: &str) -> Result<(), BindError> {
        // A renewal of the same record must not be undone by what was read before it.
        let failed = |source| WriteError::File { path: self.path(grant), source };
        let lock = self.beside(grant, "lock").and_then(|path| disk::lock_file(&path)).map_err(failed)?;
        lock.lock().map_err(failed)?;
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
            credential: self.read(&grant).map_err(|error| in_short(&error)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::key::KeyError;
    use moat_shared::{hint::Hint, secret::Secret};
    use std::os::unix::fs::PermissionsExt;
    use test_case::test_case;

    struct Rig {
        _dir: tempfile::TempDir,
        home: Home,
        store: Store,
    }

    fn rig() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("home"));
        let store = open(&home, None);
        Rig { _dir: dir, home, store }
    }

    fn open(home: &Home, profile: Option<&Profile>) -> Store {
        Store::open(home, &Environment::from([("MOAT_KEYRING_BACKEND", "file")]), profile)
    }

    fn grant(text: &str) -> GrantName {
        text.parse().unwrap()
    }

    fn credential(name: &str, token: &str) -> Credential {
        let now = "2026-01-25T10:00:00Z".parse().unwrap();
        Credential::new(grant(name), Secret::new(token.to_owned()), ["h".to_owned()].into(), now)
    }

    fn token(store: &Store, name: &str) -> Result<String, ReadError> {
        store.read(&grant(name)).map(|credential| credential.token.expose().clone())
    }

    #[test]
    fn files_are_private_and_complete() {
        let rig = rig();
        let saved = rig.store.put(&credential("mcp-a", "one")).unwrap();
        assert_eq!(saved.path, rig.home.root().join("credentials/mcp-a.enc"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&saved.path), 0o600);
        assert_eq!(mode(saved.path.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(saved.path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(token(&rig.store, "mcp-a").unwrap(), "one");
        assert_eq!(token(&rig.store, "mcp:a").unwrap(), "one");
    }

    #[test]
    fn a_new_token_is_used_by_the_next_read_and_a_removed_one_at_once_no_more() {
        let rig = rig();
        // Another process writes; ours has everything cached.
        let other = open(&rig.home, None);
        other.put(&credential("mcp-a", "one")).unwrap();
        assert_eq!(token(&rig.store, "mcp-a").unwrap(), "one");
        for round in 0..20 {
            let next = format!("tok{round:03}");
            other.put(&credential("mcp-a", &next)).unwrap();
            assert_eq!(token(&rig.store, "mcp-a").unwrap(), next);
        }
        other.remove(&grant("mcp-a")).unwrap();
        assert!(matches!(token(&rig.store, "mcp-a"), Err(ReadError::NotConfigured { .. })));
        assert!(rig.store.memory().credentials.is_empty());
    }

    #[test]
    fn a_damaged_file_is_not_answered_from_the_cache() {
        let rig = rig();
        let path = rig.store.put(&credential("mcp-a", "one")).unwrap().path;
        assert_eq!(token(&rig.store, "mcp-a").unwrap(), "one");
        fs::write(&path, b"damaged").unwrap();
        assert!(matches!(token(&rig.store, "mcp-a"), Err(ReadError::Decrypt { .. })));
    }

    #[test]
    fn files_of_the_older_spelling_are_read_and_removed() {
        let rig = rig();
        let canonical = rig.store.put(&credential("mcp-a", "old")).unwrap().path;
        let older = canonical.with_file_name("mcp:a.enc");
        fs::rename(&canonical, &older).unwrap();
        assert_eq!(token(&rig.store, "mcp-a").unwrap(), "old");
        rig.store.put(&credential("mcp-a", "new")).unwrap();
        assert_eq!(token(&rig.store, "mcp-a").unwrap(), "new");
        assert_eq!(rig.store.list().unwrap().len(), 1);
        rig.store.remove(&grant("mcp:a")).unwrap();
        assert!(!canonical.exists() && !older.exists());
        assert!(matches!(rig.store.remove(&grant("mcp-a")), Err(WriteError::NotThere(_))));
    }

    #[test]
    fn a_changed_key_and_a_renamed_file_are_told_apart() {
        let rig = rig();
        let path = rig.store.put(&credential("mcp-a", "one")).unwrap().path;
        fs::copy(&path, path.with_file_name("mcp-b.enc")).unwrap();
        assert!(
            matches!(token(&rig.store, "mcp-b"), Err(ReadError::Mismatch { found, .. }) if found == "mcp-a")
        );
        let key = fs::read(rig.home.key_file()).unwrap();
        fs::remove_file(rig.home.key_file()).unwrap();
        let error = token(&open(&rig.home, None), "mcp-a").unwrap_err();
        assert!(matches!(error, ReadError::Key { source: KeyError::Missing { .. }, .. }), "{error:?}");
        let another = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, [1; 32]);
        fs::write(rig.home.key_file(), another).unwrap();
        fs::set_permissions(rig.home.key_file(), fs::Permissions::from_mode(0o600)).unwrap();
        let fresh = open(&rig.home, None);
        assert!(matches!(token(&fresh, "mcp-a"), Err(ReadError::Decrypt { .. })));
        // The right key is back: noticed without a restart.
        fs::write(rig.home.key_file(), key).unwrap();
        assert_eq!(token(&fresh, "mcp-a").unwrap(), "one");
    }

    #[test]
    fn nothing_is_replaced_before_the_new_one_is_there() {
        let rig = rig();
        let path = rig.store.put(&credential("mcp-a", "one")).unwrap().path;
        // The new file cannot be made.
        fs::create_dir(path.with_file_name("mcp-a.enc.new")).unwrap();
        assert!(rig.store.put(&credential("mcp-a", "two")).is_err());
        assert_eq!(token(&open(&rig.home, None), "mcp-a").unwrap(), "one");
    }

    #[test]
    fn profiles_are_apart() {
        let rig = rig();
        let profile: Profile = "office".parse().unwrap();
        let office = open(&rig.home, Some(&profile));
        office.put(&credential("mcp-a", "other")).unwrap();
        assert!(matches!(token(&rig.store, "mcp-a"), Err(ReadError::NotConfigured { .. })));
        assert_eq!(token(&office, "mcp-a").unwrap(), "other");
        assert!(rig.home.root().join("credentials/profiles/office/mcp-a.enc").exists());
    }

    #[test]
    fn a_list_shows_what_cannot_be_read() {
        let rig = rig();
        assert!(rig.store.list().unwrap().is_empty());
        let path = rig.store.put(&credential("mcp-b", "one")).unwrap().path;
        fs::write(path.with_file_name("mcp-a.enc"), b"damaged").unwrap();
        fs::write(path.with_file_name("notes.enc"), b"?").unwrap();
        fs::write(path.with_file_name("README"), b"?").unwrap();
        let listed = rig.store.list().unwrap();
        let shown: Vec<_> = listed.iter().map(|row| (row.name.as_str(), row.credential.is_ok())).collect();
        assert_eq!(shown, [("mcp-a", false), ("mcp-b", true), ("notes", false)]);
    }

    #[test]
    fn binding_adds_a_host_and_changes_nothing_else() {
        let rig = rig();
        rig.store.put(&credential("mcp-a", "one")).unwrap();
        rig.store.bind(&grant("mcp-a"), "other").unwrap();
        let bound = rig.store.read(&grant("mcp-a")).unwrap();
        assert_eq!(bound.hosts, ["h".to_owned(), "other".to_owned()].into());
        assert_eq!(
            (bound.token.expose().as_str(), bound.created_at),
            ("one", credential("mcp-a", "").created_at)
        );
        assert!(matches!(rig.store.bind(&grant("mcp-x"), "h"), Err(BindError::Read(_))));
    }

    #[test]
    fn no_error_holds_the_token() {
        let rig = rig();
        let path = rig.store.put(&credential("mcp-a", "s3cr3t")).unwrap().path;
        fs::copy(&path, path.with_file_name("mcp-b.enc")).unwrap();
        for error in [token(&rig.store, "mcp-b").unwrap_err(), token(&rig.store, "mcp-c").unwrap_err()] {
            assert!(!format!("{error} {error:?} {:?}", error.hint()).contains("s3cr3t"));
        }
        assert!(!format!("{:?}", rig.store.read(&grant("mcp-a"))).contains("s3cr3t"));
        assert!(!format!("{:?}", rig.store).contains("s3cr3t"));
    }

    #[test_case("mcp-a" => "To fix:\n  moat grant mcp a")]
    #[test_case("oauth:a" => "To fix:\n  moat grant oauth a")]
    #[test_case("github" => "To fix:\n  moat grant github")]
    fn what_is_missing_has_its_command(name: &str) -> String {
        token(&rig().store, name).unwrap_err().hint().unwrap().into_owned()
    }
}
