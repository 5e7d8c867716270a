//! The stand-in for Apple's `container` command (`moat-standin-container`): where a rig has it, and how it is to behave.

mod files;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{Outcome, Trouble, engine, guest, rig::binary};

/// How the stand-in behaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Whose JSON it speaks.
    pub version: String,
    /// Its service runs.
    pub service: bool,
    /// It has a kernel.
    pub kernel: bool,
    /// Its word for a container that runs.
    pub running: String,
    /// Its machines are guests, which start with these files; otherwise namespaces.
    pub guest: Option<PathBuf>,
    /// By name.
    pub images: BTreeMap<String, Image>,
    /// Of the socket relays.
    pub defects: Defects,
}

/// An image of the stand-in's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Its root file system, unpacked.
    pub root: PathBuf,
    /// As OCI calls it.
    pub architecture: String,
    /// `USER`.
    pub user: String,
    /// `ENV`.
    pub env: BTreeMap<String, String>,
    /// `CMD`.
    pub cmd: Vec<String>,
}

/// What is wrong with its socket relays, besides that they carry no half-closed connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Defects {
    /// One refused connection to the host ends the relay for good.
    pub dies_after_refusal: bool,
    /// With so many connections at a time it hangs.
    pub hangs_at: usize,
    /// What it publishes is accepted, and nothing is delivered.
    pub published_hangs: bool,
}

/// A rig's stand-in.
#[derive(Debug)]
pub struct Apple(PathBuf);

impl Apple {
    /// Puts it below a rig's directory: all that is known to be wrong with the relays is. Its machines are guests, or
    /// namespaces.
    ///
    /// # Errors
    /// When the image cannot be made.
    pub fn new(below: &Path, in_guests: bool) -> Outcome<Self> {
        let apple = Self(below.join("a"));
        fs::create_dir(&apple.0)?;
        symlink(binary("moat-standin-container")?, apple.0.join("container"))?;
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.to_owned();
        let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let base = Image {
            root: made(&IMAGE, "image", engine::make_root)?,
            architecture,
            user: String::new(),
            env,
            cmd: vec!["sh".to_owned()],
        };
        let dev = Image { user: "dev".to_owned(), ..base.clone() };
        apple.write(&Settings {
            version: "1.2.1".to_owned(),
            service: true,
            kernel: true,
            running: "running".to_owned(),
            guest: in_guests.then(|| made(&GUEST, "guest", files::make)).transpose()?,
            images: BTreeMap::from([
                (engine::IMAGE.to_owned(), base),
                ("localhost/moat-test:dev".to_owned(), dev),
            ]),
            defects: Defects { dies_after_refusal: true, hangs_at: 3, published_hangs: false },
        })?;
        Ok(apple)
    }

    /// A PATH in which it comes first.
    #[must_use]
    pub fn path(&self) -> String {
        let before = std::env::var_os("PATH").unwrap_or_default();
        format!("{}:{}", self.0.display(), before.to_string_lossy())
    }

    /// The command, by the path that moat finds.
    #[must_use]
    pub fn tool(&self) -> PathBuf {
        self.0.join("container")
    }

    /// Has it behave otherwise.
    ///
    /// # Errors
    /// When its settings cannot be read or written.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) -> Outcome {
        let mut settings = serde_json::from_slice(&fs::read(self.0.join("standin.json"))?)?;
        change(&mut settings);
        self.write(&settings)
    }

    fn write(&self, settings: &Settings) -> Outcome {
        Ok(fs::write(self.0.join("standin.json"), serde_json::to_vec(settings)?)?)
    }

    /// The names in the environment of every call so far.
    ///
    /// # Errors
    /// When it was not called.
    pub fn environment(&self) -> Outcome<BTreeSet<String>> {
        let names = fs::read_to_string(self.0.join("environment"))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Its containers.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("c")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Where the one container lies.
    ///
    /// # Errors
    /// When there is none.
    pub fn container(&self) -> Outcome<PathBuf> {
        let id = self.containers().pop().ok_or_else(|| Trouble::new("no container"))?;
        Ok(self.0.join("c").join(id))
    }

    /// The first processes of its containers.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let pid =
            |id: String| fs::read_to_string(self.0.join("c").join(id).join("pid")).ok()?.trim().parse().ok();
        self.containers().into_iter().filter_map(pid).collect()
    }
}

/// What is made once for all rigs, and where.
type Made = OnceLock<Mutex<Option<PathBuf>>>;
static IMAGE: Made = OnceLock::new();
static GUEST: Made = OnceLock::new();

/// Makes it below a directory of this process's, if it is not there.
fn made(what: &Made, name: &str, make: fn(&Path) -> Outcome) -> Outcome<PathBuf> {
    let mut made = what.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = &*made {
        return Ok(place.clone());
    }
    fs::create_dir_all(directory())?;
    let place = directory().join(name);
    make(&place)?;
    *made = Some(place.clone());
    Ok(place)
}

fn directory() -> PathBuf {
    format!("/var/tmp/moat-apple-{}", std::process::id()).into()
}

/// Removes what was made, and says why it could not.
pub(crate) fn stop() -> Option<String> {
    match fs::remove_dir_all(directory()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Some(format!("{}: {error}", directory().display()))
        }
        _ => None,
    }
}

/// What shares a directory with a guest: QEMU's own, or the one that came after it.
#[must_use]
pub fn shares_program() -> Option<PathBuf> {
    let places = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    places.into_iter().map(PathBuf::from).find(|path| path.exists())
}

/// Can this machine start such guests?
#[must_use]
pub fn has_guests() -> bool {
    let setpriv =
        Command::new("setpriv").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    guest::here() && shares_program().is_some() && setpriv.is_ok_and(|status| status.success())
}
