//! What is known of one run: `runs/<run_id>/metadata.json`, 0600, always replaced whole.
//!
//! ```text
//! created ──► starting ──► running ──► stopping ──► stopped
//!    └───────────┴────────────┴────────────┴──────► failed
//! ```
//!
//! A run may go straight to `stopped` from `starting` or `running`: its program ended by itself. Only the process that
//! holds a run writes here; others read, and see through [`Record::state`] when the holder died without a word.
//! Of servers it knows the names, for people; what they are and their policies are the registry's.

use std::{fmt, fs, io, path::Path};

use jiff::Timestamp;
use moat_shared::{hint::Hint, id::RunId};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    control::api::Process,
    disk,
    home::{Home, private_dir},
};

/// A run's metadata, field by field as in the file. Files of the Go implementation are read as well: they have no
/// `holder` and no `exit_code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) workspace: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) grants: Vec<String>,
    /// The names of the run's MCP servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) servers: Vec<String>,
    /// The agent's name (`claude` ...); empty for `moat run`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) agent: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) image: String,
    /// What the runtime calls the sandbox; for the process runtime the pid of its first process.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) container_id: String,
    /// The socket of the engine that has the container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) engine: String,
    /// How container and bridge come together, as `--tunnel` spells it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) tunnel: String,
    pub(crate) state: State,
    #[serde(default)]
    pub(crate) interactive: bool,
    pub(crate) created_at: Timestamp,
    #[serde(default, deserialize_with = "no_zero_time", skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "no_zero_time", skip_serializing_if = "Option::is_none")]
    pub(crate) stopped_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) error: String,
    /// Its tunnel did not come up, and the command went on with another run, which has the name as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) gave_way: bool,
    #[serde(default)]
    pub(crate) runtime: String,
    /// The `moat` command that holds the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) holder: Option<Process>,
    /// How the run's program ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<u8>,
}

/// Where a run is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Created,
    Starting,
    Running,
    Stopping,
    Stopped,
    Failed,
}

impl State {
    /// Is there, or may there still be, a sandbox?
    pub(crate) const fn is_live(self) -> bool {
        !matches!(self, Self::Stopped | Self::Failed)
    }

    const fn may_become(self, next: Self) -> bool {
        match next {
            Self::Created => false,
            Self::Starting => matches!(self, Self::Created),
            Self::Running => matches!(self, Self::Starting),
            Self::Stopping => matches!(self, Self::Starting | Self::Running),
            Self::Stopped => matches!(self, Self::Starting | Self::Running | Self::Stopping),
            Self::Failed => self.is_live(),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// A run's id and its metadata, as last read or written.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: RunId,
    pub(crate) metadata: Metadata,
}

/// Why metadata cannot be read, written or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("cannot read the metadata of {run}")]
    Read { run: RunId, source: io::Error },
    #[error("the metadata of {run} is damaged")]
    Damaged { run: RunId, source: serde_json::Error },
    #[error("cannot write the metadata of {run}")]
    Write { run: RunId, source: io::Error },
    #[error("{run} is {from} and cannot become {to}")]
    Transition { run: RunId, from: State, to: State },
}

impl Hint for MetadataError {
    fn hint(&self) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            Self::Damaged { run, .. } => Some(format!("remove it with: moat destroy --force {run}").into()),
            Self::Write { .. } => Some("is the disk full, or ~/.moat not yours?".into()),
            Self::Read { .. } | Self::Transition { .. } => None,
        }
    }
}

impl Metadata {
    /// A run that is about to be: held by `holder`, otherwise empty.
    pub(crate) fn new(
        name: String,
        workspace: &Path,
        runtime: &str,
        holder: Process,
        now: Timestamp,
    ) -> Self {
        Self {
            name,
            workspace: workspace.display().to_string(),
            grants: Vec::new(),
            servers: Vec::new(),
            agent: String::new(),
            image: String::new(),
            container_id: String::new(),
            engine: String::new(),
            tunnel: String::new(),
            state: State::Starting,
            interactive: false,
            created_at: now,
            started_at: None,
            stopped_at: None,
            error: String::new(),
            gave_way: false,
            runtime: runtime.to_owned(),
            holder: Some(holder),
            exit_code: None,
        }
    }
}

impl Record {
    /// Makes the run's directory and writes its metadata for the first time.
    pub(crate) fn create(home: &Home, id: RunId, metadata: Metadata) -> Result<Self, MetadataError> {
        let made = private_dir(&home.runs()).and_then(|()| private_dir(&home.run(&id)));
        made.map_err(|source| MetadataError::Write { run: id.clone(), source })?;
        let record = Self { id, metadata };
        record.save(home)?;
        Ok(record)
    }

    /// Reads a run's metadata. `None`: there is none.
    pub(crate) fn read(home: &Home, id: &RunId) -> Result<Option<Self>, MetadataError> {
        let text = match fs::read(home.metadata(id)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(MetadataError::Read { run: id.clone(), source }),
        };
        let metadata = serde_json::from_slice(&text)
            .map_err(|source| MetadataError::Damaged { run: id.clone(), source })?;
        Ok(Some(Self { id: id.clone(), metadata }))
    }

    /// The program runs in the sandbox that the runtime calls `container_id`.
    pub(crate) fn running(
        &mut self,
        home: &Home,
        container_id: String,
        now: Timestamp,
    ) -> Result<(), MetadataError> {
        self.become_state(home, State::Running, |metadata| {
            metadata.container_id = container_id;
            metadata.started_at = Some(now);
        })
    }

    /// The run has been told to stop.
    pub(crate) fn stopping(&mut self, home: &Home) -> Result<(), MetadataError> {
        self.become_state(home, State::Stopping, |_| {})
    }

    /// The program ended with this exit code, and the sandbox is gone.
    pub(crate) fn stopped(
        &mut self,
        home: &Home,
        exit_code: u8,
        now: Timestamp,
    ) -> Result<(), MetadataError> {
        self.become_state(home, State::Stopped, |metadata| {
            metadata.exit_code = Some(exit_code);
            metadata.stopped_at = Some(now);
        })
    }

    /// The run came to nothing, for this reason.
    pub(crate) fn failed(&mut self, home: &Home, error: String, now: Timestamp) -> Result<(), MetadataError> {
        self.become_state(home, State::Failed, |metadata| {
            metadata.error = error;
            metadata.stopped_at = Some(now);
        })
    }

    /// Where the run really is. When its holder died without a word it is over, whatever the file says: `stopped` if
    /// it was stopping, else `failed`.
    pub(crate) fn state(&self) -> State {
        match self.metadata.state {
            written if !written.is_live() || !self.holder_died() => written,
            State::Stopping => State::Stopped,
            _ => State::Failed,
        }
    }

    /// Why the run failed, for people; empty when it did not.
    pub(crate) fn error(&self) -> &str {
        if self.metadata.error.is_empty() && self.state() == State::Failed && self.holder_died() {
            "the moat command that held the run ended unexpectedly"
        } else {
            &self.metadata.error
        }
    }

    fn holder_died(&self) -> bool {
        self.metadata.holder.is_some_and(|holder| !holder.is_alive())
    }

    fn become_state(
        &mut self,
        home: &Home,
        to: State,
        change: impl FnOnce(&mut Metadata),
    ) -> Result<(), MetadataError> {
        let from = self.metadata.state;
        if !from.may_become(to) {
            return Err(MetadataError::Transition { run: self.id.clone(), from, to });
        }
        self.metadata.state = to;
        change(&mut self.metadata);
        self.save(home)
    }

    fn save(&self, home: &Home) -> Result<(), MetadataError> {
        let failed = |source| MetadataError::Write { run: self.id.clone(), source };
        let mut text = serde_json::to_vec_pretty(&self.metadata).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        disk::replace(&home.metadata(&self.id), &text).map_err(failed)
    }
}

/// Go writes `null` for an empty list.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// Go writes the year 1 for a time that has not come.
fn no_zero_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    const YEAR_2: i64 = -62_104_060_800;
    let time: Option<Timestamp> = Option::deserialize(from)?;
    Ok(time.filter(|time| time.as_second() >= YEAR_2))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use test_case::test_case;

    const DEAD: Process = Process { pid: i32::MAX, started: 1 };

    fn record(home: &Home, holder: Process) -> Record {
        let now = "2026-01-25T10:23:44.5Z".parse().unwrap();
        let metadata = Metadata::new("brave-otter".into(), Path::new("/w"), "process", holder, now);
        Record::create(home, "run_0123456789ab".parse().unwrap(), metadata).unwrap()
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        (dir, home)
    }

    #[test]
    fn a_life_is_on_disk_at_each_step() {
        let (_dir, home) = home();
        let mut run = record(&home, Process::current());
        let on_disk = |id: &RunId| Record::read(&home, id).unwrap().unwrap();
        assert_eq!(on_disk(&run.id).state(), State::Starting);
        run.running(&home, "4711".into(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(on_disk(&run.id).metadata.container_id, "4711");
        run.stopped(&home, 7, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(on_disk(&run.id).metadata, run.metadata);
        assert_eq!(run.metadata.exit_code, Some(7));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&home.metadata(&run.id)), 0o600);
        assert_eq!(mode(&home.run(&run.id)), 0o700);
    }

    #[test_case(State::Created, State::Running => false; "not started")]
    #[test_case(State::Stopped, State::Running => false; "over is over")]
    #[test_case(State::Stopped, State::Failed => false; "a success stays one")]
    #[test_case(State::Running, State::Stopped => true; "ended by itself")]
    #[test_case(State::Created, State::Failed => true; "never came up")]
    fn transitions(from: State, to: State) -> bool {
        from.may_become(to)
    }

    #[test]
    fn a_forbidden_transition_changes_nothing() {
        let (_dir, home) = home();
        let mut run = record(&home, Process::current());
        run.running(&home, String::new(), Timestamp::UNIX_EPOCH).unwrap();
        assert!(run.running(&home, "again".into(), Timestamp::UNIX_EPOCH).is_err());
        assert_eq!(run.metadata.state, State::Running);
        assert_eq!(Record::read(&home, &run.id).unwrap().unwrap().metadata, run.metadata);
    }

    #[test]
    fn a_run_whose_holder_died_is_not_running() {
        let (_dir, home) = home();
        let mut run = record(&home, DEAD);
        run.running(&home, String::new(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(run.state(), State::Failed);
        assert!(run.error().contains("ended unexpectedly"));
        run.stopping(&home).unwrap();
        assert_eq!(run.state(), State::Stopped);
    }

    #[test]
    fn a_file_of_the_go_implementation_is_read() {
        let text = r#"{"name":"x","workspace":"/w","grants":null,"state":"stopped","interactive":true,
            "created_at":"2026-01-25T10:23:44.512345678+01:00","started_at":"0001-01-01T00:00:00Z","ports":{"web":3000}}"#;
        let metadata: Metadata = serde_json::from_str(text).unwrap();
        assert_eq!((metadata.state, metadata.started_at, metadata.holder), (State::Stopped, None, None));
        assert!(metadata.grants.is_empty() && metadata.interactive);
    }
}
