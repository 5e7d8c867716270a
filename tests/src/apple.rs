//! The stand-in for Apple's `container` command (`moat-standin-container`): where a rig has it, and how it is to behave.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{Outcome, Trouble, engine, rig::binary};

/// How the stand-in behaves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Whose JSON it speaks.
    pub version: String,
    /// Its service runs.
    pub service: bool,
    /// It has a kernel.
    pub kernel: bool,
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
    /// Puts it below a rig's directory: all that is known to be wrong with the relays is.
    ///
    /// # Errors
    /// When the image cannot be made.
    pub fn new(below: &Path) -> Outcome<Self> {
        let apple = Self(below.join("a"));
        fs::create_dir(&apple.0)?;
        symlink(binary("moat-standin-container")?, apple.0.join("container"))?;
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.to_owned();
        let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let base =
            Image { root: image()?, architecture, user: String::new(), env, cmd: vec!["sh".to_owned()] };
        let dev = Image { user: "dev".to_owned(), ..base.clone() };
        apple.write(&Settings {
            version: "1.2.1".to_owned(),
            service: true,
            kernel: true,
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

static IMAGE: OnceLock<Mutex<Option<PathBuf>>> = OnceLock::new();

/// The tests' image, unpacked once.
fn image() -> Outcome<PathBuf> {
    let made = IMAGE.get_or_init(Mutex::default);
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(root) = &*made {
        return Ok(root.clone());
    }
    let root = PathBuf::from(format!("/var/tmp/moat-apple-{}", std::process::id()));
    engine::make_root(&root)?;
    *made = Some(root.clone());
    Ok(root)
}

/// Removes the image, and says why it could not.
pub(crate) fn stop() -> Option<String> {
    let made = IMAGE.get()?.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    fs::remove_dir_all(&made).err().map(|error| format!("{}: {error}", made.display()))
}
