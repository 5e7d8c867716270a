//! Settings and containers, on disk beside the name by which this program is called.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use moat_tests::apple::Settings;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Answer, Refusal, flags::Wanted};

/// Everything.
pub(crate) struct Store {
    directory: PathBuf,
    pub(crate) settings: Settings,
}

/// One container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Container {
    pub(crate) directory: PathBuf,
    pub(crate) wanted: Wanted,
    /// Of its image.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: String,
    pub(crate) around: Around,
}

/// What is around a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Around {
    /// Namespaces of this machine.
    Namespaces,
    /// A guest, which starts with these files.
    Guest(PathBuf),
    /// The guest that this program runs in.
    Itself,
}

impl Store {
    pub(crate) fn beside(called: &str) -> Answer<Self> {
        let directory = Path::new(called).parent().unwrap_or_else(|| Path::new(".")).to_owned();
        let settings = serde_json::from_slice(&fs::read(directory.join("standin.json"))?)?;
        Ok(Self { directory, settings })
    }

    pub(crate) fn version(&self) -> &str {
        &self.settings.version
    }

    /// The names of what this process has in its environment, for the test that looks.
    pub(crate) fn note_environment(&self) -> Answer {
        let names: Vec<String> =
            std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned() + "\n").collect();
        let file = fs::File::options().create(true).append(true).open(self.directory.join("environment"));
        Ok(file?.write_all(names.concat().as_bytes())?)
    }

    fn containers(&self) -> PathBuf {
        self.directory.join("c")
    }

    pub(crate) fn all(&self) -> Answer<Vec<Container>> {
        let entries = match fs::read_dir(self.containers()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
        // One that is being made or removed is not there.
        Ok(names.filter_map(|name| self.container(&name).ok()).collect())
    }

    pub(crate) fn container(&self, id: &str) -> Answer<Container> {
        let directory = self.containers().join(id);
        let not_found = || Refusal::Said("notFound", format!("container {id} not found"));
        let text = fs::read(directory.join("wanted.json")).map_err(|_| not_found())?;
        let wanted: Wanted = serde_json::from_slice(&text)?;
        let image = self.settings.images.get(&wanted.image).ok_or_else(not_found)?;
        let user = wanted.user.clone().unwrap_or_else(|| image.user.clone());
        let around = self.settings.guest.clone().map_or(Around::Namespaces, Around::Guest);
        Ok(Container { directory, env: image.env.clone(), user, wanted, around })
    }

    /// Unpacks the image.
    pub(crate) fn create(&self, wanted: &Wanted) -> Answer {
        let image = self.settings.images.get(&wanted.image);
        let image =
            image.ok_or_else(|| Refusal::Said("notFound", format!("image {} not found", wanted.image)))?;
        if wanted.architecture != image.architecture {
            let text = format!("unsupported: no {} in {}", wanted.architecture, wanted.image);
            return Err(Refusal::Said("unsupported", text));
        }
        let directory = self.containers().join(&wanted.name);
        if directory.exists() {
            return Err(Refusal::Said("exists", format!("container {} already exists", wanted.name)));
        }
        // It is there when it is complete.
        let making = self.directory.join(format!("making-{}", wanted.name));
        fs::create_dir(&making)?;
        fs::create_dir_all(self.containers())?;
        let copied = Command::new("cp").arg("-a").arg(&image.root).arg(making.join("root")).status()?;
        if !copied.success() {
            return Err(Refusal::Said("internalError", "the image cannot be unpacked".to_owned()));
        }
        fs::write(making.join("wanted.json"), serde_json::to_vec(wanted)?)?;
        Ok(fs::rename(making, directory)?)
    }
}

impl Container {
    /// For what runs in its machine, which finds no store.
    pub(crate) fn save(&self) -> Answer {
        Ok(fs::write(self.directory.join("machine.json"), serde_json::to_vec(self)?)?)
    }

    /// What was saved there.
    pub(crate) fn load(directory: &Path) -> Answer<Self> {
        Ok(serde_json::from_slice(&fs::read(directory.join("machine.json"))?)?)
    }

    pub(crate) fn id(&self) -> &str {
        &self.wanted.name
    }

    /// Its root file system, as the machine around the container sees it.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Where its machine's process says which it is.
    pub(crate) fn machine(&self) -> PathBuf {
        self.directory.join("machine")
    }

    /// Out of the way: from here on no machine starts in it.
    pub(crate) fn put_away(&self) -> Answer<Self> {
        let store = self.directory.parent().and_then(Path::parent).unwrap_or(&self.directory);
        let away = store.join(format!("removing-{}", self.id()));
        fs::rename(&self.directory, &away)?;
        Ok(Self { directory: away, ..self.clone() })
    }

    /// Its first process, while it runs.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Self::running(&self.directory.join("pid"))
    }

    /// Its machine's process, while it runs; one that is just writing which it is, is waited for.
    pub(crate) fn machine_pid(&self) -> Option<Pid> {
        let until = Instant::now() + Duration::from_secs(1);
        while fs::read(self.machine()).is_ok_and(|text| text.is_empty()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        Self::running(&self.machine())
    }

    fn running(file: &Path) -> Option<Pid> {
        let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
        (state != 'Z').then(|| Pid::from_raw(pid))
    }

    /// Waits until it has ended.
    pub(crate) fn until_gone(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.pid().is_some() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}
