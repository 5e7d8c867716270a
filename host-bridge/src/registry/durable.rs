//! `proxy/runs.json`: the runs, complete, one to a line.
//!
//! A file that cannot be read stops the bridge; one run in it that cannot be read stops that run alone, loudly, and stays in
//! the file. Nothing is ever taken for empty because it could not be understood.

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use moat_shared::{endpoint::Endpoint, hint::Hint};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::value::RawValue;

use super::Run;
use crate::disk;

const VERSION: u32 = 1;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}:{line}: {reason}")]
    Damaged { path: PathBuf, line: usize, reason: String },
    #[error("{path} has version {found}, this moat knows version {VERSION}")]
    Version { path: PathBuf, found: u32 },
}

impl Hint for LoadError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Read { .. } => None,
            Self::Damaged { path, .. } => Some(
                format!(
                    "mend that line, or move the file away (mv {0} {0}.damaged); runs that are going then lose their \
                     servers and must be started anew",
                    path.display()
                )
                .into(),
            ),
            Self::Version { .. } => Some("a newer moat wrote it: use that one".into()),
        }
    }
}

/// What the file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) runs: Vec<Run>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// An entry that is kept as it is and not served.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) line: usize,
    pub(super) reason: String,
    pub(super) id: Option<String>,
    entry: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile<'a> {
    version: u32,
    #[serde(borrow)]
    runs: Vec<&'a RawValue>,
}

/// Reads the file; none is the same as no runs.
pub(super) fn load(path: &Path) -> Result<Loaded, LoadError> {
    match std::fs::read(path) {
        Ok(bytes) => parse(&bytes, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Loaded::default()),
        Err(source) => Err(LoadError::Read { path: path.to_owned(), source }),
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Loaded, LoadError> {
    let path = || path.to_owned();
    let text = std::str::from_utf8(bytes).map_err(|error| LoadError::Damaged {
        path: path(),
        line: line_of(bytes, error.valid_up_to()),
        reason: "not UTF-8".to_owned(),
    })?;
    let file: RawFile = serde_json::from_str(text).map_err(|error| LoadError::Damaged {
        path: path(),
        line: error.line(),
        reason: error.to_string(),
    })?;
    if file.version != VERSION {
        return Err(LoadError::Version { path: path(), found: file.version });
    }
    let mut loaded = Loaded::default();
    for entry in file.runs {
        let run =
            serde_json::from_str::<Run>(entry.get()).map_err(|error| error.to_string()).and_then(|run| {
                let known = loaded.runs.iter().any(|other: &Run| other.id == run.id);
                if known { Err(format!("{} is there twice", run.id)) } else { Ok(run) }
            });
        match run {
            Ok(run) => loaded.runs.push(run),
            Err(reason) => loaded.unreadable.push(Unreadable {
                line: line_of(bytes, entry.get().as_ptr().addr() - bytes.as_ptr().addr()),
                reason,
                id: id_of(entry),
                entry: entry.to_owned(),
            }),
        }
    }
    Ok(loaded)
}

/// Where a run's sidecar comes to. Before it could be anything but an address of this machine's, it was `gateway`, and only
/// that: a run that was started then goes on.
pub(super) fn listen<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Endpoint>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    let parsed = match text.parse::<SocketAddr>() {
        Ok(gateway) => Ok(Endpoint::Tcp(gateway)),
        Err(_) => text.parse::<Endpoint>(),
    };
    parsed.map(Some).map_err(D::Error::custom)
}

/// The id that an entry claims, though the rest of it cannot be read.
fn id_of(entry: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Claim {
        run_id: String,
    }
    serde_json::from_str::<Claim>(entry.get()).ok().map(|claim| claim.run_id)
}

fn line_of(bytes: &[u8], offset: usize) -> usize {
    1 + bytes[..offset].iter().filter(|byte| **byte == b'\n').count()
}

/// Writes all of it. It is on disk when this returns.
pub(super) fn save<'a>(
    path: &Path,
    runs: impl Iterator<Item = &'a Arc<Run>>,
    unreadable: &[Unreadable],
) -> io::Result<()> {
    disk::replace(path, &render(runs, unreadable)?)
}

fn render<'a>(
    runs: impl Iterator<Item = &'a Arc<Run>>,
    unreadable: &[Unreadable],
) -> serde_json::Result<Vec<u8>> {
    let mut text = format!("{{\"version\":{VERSION},\"runs\":[").into_bytes();
    let mut separator: &[u8] = b"\n";
    for run in runs {
        text.extend_from_slice(separator);
        run.serialize(&mut serde_json::Serializer::new(&mut text))?;
        separator = b",\n";
    }
    for kept in unreadable {
        text.extend_from_slice(separator);
        text.extend_from_slice(kept.entry.get().as_bytes());
        separator = b",\n";
    }
    text.extend_from_slice(b"\n]}\n");
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use test_case::test_case;

    pub(in crate::registry) fn run(last: u8) -> Run {
        let servers = r#"[{"name":"context7","url":"https://mcp.context7.com/mcp?k=v",
            "auth":{"grant":"mcp-context7","header":"CONTEXT7_API_KEY"}},{"name":"local","url":"http://localhost:3000/"}]"#;
        Run {
            id: moat_shared::id::RunId::from_random([0, 0, 0, 0, 0, last]),
            name: "brave-otter".to_owned(),
            runtime: "process".to_owned(),
            engine: None,
            workspace: "/home/me/project".to_owned(),
            servers: serde_json::from_str(servers).unwrap(),
            profile: Some("work".parse().unwrap()),
            agent: Some("claude".to_owned()),
            user: None,
            listen: None,
            dial: None,
            holder: crate::control::api::Process::current(),
            registered: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs.json");
        assert!(load(&path).unwrap().runs.is_empty(), "no file, no runs");
        let runs = [Arc::new(run(1)), Arc::new(run(2))];
        save(&path, runs.iter(), &[]).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.runs, runs.map(Arc::unwrap_or_clone));
        assert!(loaded.unreadable.is_empty());
        let frame: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(frame["version"], 1);
        assert_eq!(frame["runs"][0]["mcp_servers"][0]["auth"]["grant"], "mcp-context7");
    }

    #[test_case("" => 1; "empty")]
    #[test_case("{\"version\":1,\n\"runs\":[\n{]}" => 3; "broken in line 3")]
    #[test_case("{\"version\":1}" => 1; "no runs")]
    #[test_case("{\"version\":1,\"runs\":[]}x" => 1; "trailing")]
    #[test_case("{\"version\":1,\"runs\":[],\"rules\":[]}" => 1; "unknown key")]
    #[test_case("{\"version\":1,\"runs\":[],\n\"runs\":[]}" => 2; "twice")]
    fn a_damaged_file_is_not_empty(text: &str) -> usize {
        match parse(text.as_bytes(), Path::new("runs.json")) {
            Err(error @ LoadError::Damaged { line, .. }) => {
                assert!(error.hint().unwrap().contains("runs.json"));
                line
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn not_utf8_and_other_versions_are_refused() {
        let bytes = b"{\"version\":1,\n\"runs\":[\xff]}";
        assert!(matches!(parse(bytes, Path::new("f")), Err(LoadError::Damaged { line: 2, .. })));
        let newer = br#"{"version":2,"runs":[]}"#;
        assert!(matches!(parse(newer, Path::new("f")), Err(LoadError::Version { found: 2, .. })));
    }

    #[test_case("\"listen\":\"tcp:172.17.0.1:4000\"" => Ok("tcp:172.17.0.1:4000".to_owned()); "as it is written")]
    #[test_case("\"gateway\":\"172.17.0.1:4000\"" => Ok("tcp:172.17.0.1:4000".to_owned()); "as it was written before")]
    #[test_case("\"listen\":\"vsock:/v.sock:5000\"" => Ok("vsock:/v.sock:5000".to_owned()); "a guest's")]
    #[test_case("\"listen\":\"somewhere\"" => Err(true); "nowhere")]
    #[test_case("\"gateway\":\"172.17.0.1:4000\",\"listen\":\"tcp:172.17.0.1:4001\"" => Err(false); "both")]
    fn a_port_goes_on_under_its_older_name(port: &str) -> Result<String, bool> {
        let run = serde_json::to_string(&run(1)).unwrap().replacen('{', &format!("{{{port},"), 1);
        let loaded = parse(format!("{{\"version\":1,\"runs\":[{run}]}}").as_bytes(), Path::new("f")).unwrap();
        match (loaded.runs.as_slice(), loaded.unreadable.as_slice()) {
            ([run], []) => Ok(run.listen.as_ref().unwrap().to_string()),
            ([], [not]) => Err(not.reason.contains("invalid endpoint")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_unreadable_run_stops_that_run_and_is_kept() {
        let good = serde_json::to_string(&run(1)).unwrap();
        let strict =
            serde_json::to_string(&run(2)).unwrap().replacen('{', "{\"network_policy\":\"strict\",", 1);
        let text = format!("{{\"version\":1,\"runs\":[\n{good},\n{strict},\n{good},\n{{\"run_id\":7}}]}}");
        let loaded = parse(text.as_bytes(), Path::new("f")).unwrap();
        assert_eq!(loaded.runs, [run(1)]);
        let lines: Vec<_> = loaded.unreadable.iter().map(|entry| entry.line).collect();
        assert_eq!(lines, [3, 4, 5]);
        assert!(loaded.unreadable[0].reason.contains("network_policy"), "{}", loaded.unreadable[0].reason);
        assert_eq!(loaded.unreadable[0].id.as_deref(), Some(run(2).id.as_str()));
        let runs: Vec<_> = loaded.runs.into_iter().map(Arc::new).collect();
        let again = parse(&render(runs.iter(), &loaded.unreadable).unwrap(), Path::new("f")).unwrap();
        assert_eq!((again.runs.len(), again.unreadable.len()), (1, 3), "nothing was lost");
    }
}
