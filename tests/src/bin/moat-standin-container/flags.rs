//! The flags of `container create`: those that moat uses, and no others.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Answer, Refusal};

/// A container to be, or one that is.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) architecture: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) entrypoint: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: String,
    /// `None`: the image's.
    pub(crate) user: Option<String>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) network: Option<String>,
    pub(crate) interactive: bool,
    pub(crate) tty: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) tmpfs: Vec<String>,
    /// The host's path and the machine's.
    pub(crate) published: Vec<(PathBuf, String)>,
    pub(crate) volumes: Vec<(PathBuf, String)>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

pub(crate) fn create(words: &[&str]) -> Answer<Wanted> {
    let mut wanted = Wanted::default();
    let mut words = words.iter().copied();
    let image = loop {
        let Some(word) = words.next() else {
            return Err(Refusal::Usage("Missing expected argument '<image>'".to_owned()));
        };
        match word {
            "--interactive" => wanted.interactive = true,
            "--tty" => wanted.tty = true,
            flag if flag.starts_with('-') => {
                let value = words.next();
                let value =
                    value.ok_or_else(|| Refusal::Usage(format!("Missing value for '{flag} <{flag}>'")))?;
                set(&mut wanted, flag, value)?;
            }
            image => break image,
        }
    };
    wanted.image = image.to_owned();
    wanted.arguments = words.map(str::to_owned).collect();
    Ok(wanted)
}

fn set(wanted: &mut Wanted, flag: &str, value: &str) -> Answer {
    let text = value.to_owned();
    match flag {
        "--name" => wanted.name = text,
        "--arch" => wanted.architecture = text,
        "--label" => {
            let (key, value) = value.split_once('=').unwrap_or((value, ""));
            wanted.labels.insert(key.to_owned(), value.to_owned());
        }
        "--entrypoint" => wanted.entrypoint = text,
        "--workdir" => wanted.directory = text,
        "--user" => wanted.user = Some(text),
        "--cap-drop" if value == "ALL" => wanted.capabilities.clear(),
        "--cap-add" => wanted.capabilities.push(format!("CAP_{value}")),
        "--network" => wanted.network = Some(text),
        "--tmpfs" => wanted.tmpfs.push(text),
        "--mount" => wanted.mounts.push(mount(value)?),
        "--publish-socket" => wanted.published.push(pair(value)?),
        "--volume" => wanted.volumes.push(pair(value)?),
        _ => return Err(Refusal::Usage(format!("Unknown option '{flag}'"))),
    }
    Ok(())
}

/// `type=bind,source=…,target=…,readonly`: directories only.
fn mount(value: &str) -> Answer<Mount> {
    let mut mount = Mount::default();
    for part in value.split(',') {
        match part.split_once('=').unwrap_or((part, "")) {
            ("type", "bind") => {}
            ("source", source) => mount.source = source.into(),
            ("target", target) => mount.target = target.to_owned(),
            ("readonly", _) => mount.read_only = true,
            _ => return Err(Refusal::Said("invalidArgument", format!("unknown mount option {part}"))),
        }
    }
    if !mount.source.is_dir() {
        let text = format!("path '{}' is not a directory", mount.source.display());
        return Err(Refusal::Said("invalidArgument", text));
    }
    Ok(mount)
}

/// Split at `:`; there is no way to write one.
fn pair(value: &str) -> Answer<(PathBuf, String)> {
    match value.split(':').collect::<Vec<_>>()[..] {
        [host, guest] if host.starts_with('/') && guest.starts_with('/') => {
            Ok((host.into(), guest.to_owned()))
        }
        _ => Err(Refusal::Said("invalidArgument", format!("invalid socket {value}"))),
    }
}
