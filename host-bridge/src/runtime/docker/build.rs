//! moat's own images: what they are called, what they are made of, and the engine at work on them.
//!
//! The Dockerfiles are in `images/`, and inside this binary. The context is made on the way to the engine: an agent that comes
//! from a directory is hundreds of megabytes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
};

use bollard::{models::BuildInfo, query_parameters::BuildImageOptionsBuilder};
use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use moat_shared::plan::Agent;
use tokio::sync::mpsc;

use super::{
    archive,
    engine::{self, Engine, EngineError},
    image,
};
use crate::build::VERSION;

/// One of moat's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Base,
    Of(Agent),
}

/// What the base is made on.
pub(crate) const FROM: &str = "node:22-bookworm-slim";
/// Of a build's output, what is kept to show why it failed.
const TAIL: usize = 30;
/// Pieces of the context that wait for the engine.
const AHEAD: usize = 16;
const PIECE: usize = 64 * 1024;

/// What somebody wants built.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) kind: Kind,
    /// What it is made on.
    pub(crate) from: String,
    /// `node_modules` with the agent.
    pub(crate) modules: Option<PathBuf>,
    /// The network of what runs during the build.
    pub(crate) network: Option<String>,
}

impl Kind {
    /// `moat image build NAME`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Of(agent) => agent.name(),
        }
    }

    /// What it is called in an engine. `localhost/`: nobody else offers it, and no engine asks for it.
    pub(crate) fn image(self) -> String {
        format!("localhost/moat/{}:{VERSION}", self.name())
    }

    const fn dockerfile(self) -> &'static str {
        match self {
            Self::Base => include_str!("../../../../images/base/Dockerfile"),
            Self::Of(Agent::Claude) => include_str!("../../../../images/claude/Dockerfile"),
            Self::Of(Agent::Codex) => include_str!("../../../../images/codex/Dockerfile"),
            Self::Of(Agent::Gemini) => include_str!("../../../../images/gemini/Dockerfile"),
        }
    }

    /// The agent's package and the version that is known to work.
    const fn package(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Base => None,
            Self::Of(Agent::Claude) => Some(("@anthropic-ai/claude-code", "2.1.328")),
            Self::Of(Agent::Codex) => Some(("@openai/codex", "0.169.0")),
            Self::Of(Agent::Gemini) => Some(("@google/gemini-cli", "0.61.0")),
        }
    }
}

/// Has the engine the image? Its id.
pub(crate) async fn id_of(engine: &Engine, name: &str) -> Result<Option<String>, EngineError> {
    match engine.api.inspect_image(name).await {
        Ok(image) => Ok(Some(image.id.unwrap_or_else(|| name.to_owned()))),
        Err(error) if engine::is_not_found(&error) => Ok(None),
        Err(source) => Err(EngineError::Asking { doing: "looking at the image", source }),
    }
}

/// Makes sure that what an image is made on is there.
pub(crate) async fn have(engine: &Engine, name: &str) -> Result<(), EngineError> {
    image::find(engine, name).await.map(drop)
}

/// Builds it; `said` hears what the engine says. The image's id.
pub(crate) async fn build(
    engine: &Engine,
    wish: Wish,
    sidecar: &'static [u8],
    mut said: impl FnMut(&str),
) -> Result<String, EngineError> {
    let name = wish.kind.image();
    let arguments = std::collections::HashMap::from([("FROM", wish.from.as_str())]);
    let mut options =
        BuildImageOptionsBuilder::new().dockerfile("Dockerfile").t(&name).rm(true).forcerm(true);
    options = options.buildargs(&arguments);
    if let Some(network) = &wish.network {
        options = options.networkmode(network);
    }
    let context = context(wish, sidecar).map_err(EngineError::Archive)?;
    let mut building = engine.api.build_image(options.build(), None, Some(bollard::body_try_stream(context)));
    let mut tail: Vec<String> = Vec::new();
    let failed = |text: String, tail: &[String]| EngineError::Build { text, output: tail.join("\n") };
    loop {
        let step: BuildInfo = match building.try_next().await {
            Ok(None) => break,
            Ok(Some(step)) => step,
            Err(bollard::errors::Error::DockerStreamError { error }) => return Err(failed(error, &tail)),
            Err(source) => return Err(EngineError::Asking { doing: "building the image", source }),
        };
        for line in step.stream.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()) {
            said(line);
            tail.push(line.to_owned());
            let many = tail.len().saturating_sub(TAIL);
            tail.drain(..many);
        }
        if let Some(text) = step.error_detail.and_then(|detail| detail.message) {
            return Err(failed(text, &tail));
        }
    }
    id_of(engine, &name).await?.ok_or(EngineError::NoImage(name))
}

/// The context, as it is made: a thread writes the archive, as fast as the engine takes it.
fn context(
    wish: Wish,
    sidecar: &'static [u8],
) -> io::Result<impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let (tell, told) = mpsc::channel(AHEAD);
    let to = Pieces(tell.clone());
    thread::Builder::new().name("context".into()).spawn(move || {
        let to = io::BufWriter::with_capacity(PIECE, to);
        if let Err(error) = write(&wish, sidecar, to) {
            // An engine that has let go has said why.
            let _nobody_listens = tell.blocking_send(Err(error)).is_err();
        }
    })?;
    Ok(stream::unfold(told, |mut told| async move { told.recv().await.map(|piece| (piece, told)) }))
}

struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(wish: &Wish, sidecar: &[u8], to: impl io::Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    archive::append(&mut archive, "Dockerfile", wish.kind.dockerfile().as_bytes(), 0o644)?;
    if wish.kind == Kind::Base {
        archive::append(&mut archive, "moat-sidecar", sidecar, 0o755)?;
    }
    if let Some((package, version)) = wish.kind.package() {
        let text = serde_json::json!({"private": true, "dependencies": {package: version}}).to_string();
        archive::append(&mut archive, "agent/package.json", text.as_bytes(), 0o644)?;
    }
    if let Some(modules) = &wish.modules {
        archive.append_dir_all("agent/node_modules", modules)?;
    }
    io::Write::flush(&mut archive.into_inner()?)
}

/// Is it a `node_modules` with this agent's package?
pub(crate) fn check_modules(kind: Kind, modules: &Path) -> Result<(), String> {
    let Some((package, _)) = kind.package() else {
        return Err("the base has no modules".to_owned());
    };
    let own = modules.join(package).join("package.json");
    if fs::metadata(&own).is_ok_and(|about| about.is_file()) {
        return Ok(());
    }
    Err(format!("{} is no node_modules with {package}: {} is not there", modules.display(), own.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn names_that_no_registry_is_asked_for() {
        for kind in [Kind::Base, Kind::Of(Agent::Claude), Kind::Of(Agent::Codex), Kind::Of(Agent::Gemini)] {
            assert!(kind.image().starts_with("localhost/moat/"));
            assert!(kind.dockerfile().contains("USER agent"), "{kind:?}");
            assert!(kind.dockerfile().contains(&format!("moat image build {}", kind.name())));
        }
        assert!(Kind::Base.dockerfile().contains(&format!("ARG FROM={FROM}\n")));
    }

    #[test]
    fn a_context_has_what_its_dockerfile_copies() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("@google/gemini-cli");
        fs::create_dir_all(&own).unwrap();
        assert!(check_modules(Kind::Of(Agent::Gemini), dir.path()).is_err());
        fs::write(own.join("package.json"), "{}").unwrap();
        std::os::unix::fs::symlink("../somewhere", dir.path().join("link")).unwrap();
        check_modules(Kind::Of(Agent::Gemini), dir.path()).unwrap();
        let wish = |kind, modules| Wish { kind, from: FROM.into(), modules, network: None };
        let packed = |wish: &Wish| {
            let mut bytes = Vec::new();
            write(wish, b"elf", &mut bytes).unwrap();
            let mut archive = tar::Archive::new(bytes.as_slice());
            let mut names = Vec::new();
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                names.push(entry.path().unwrap().display().to_string());
            }
            names
        };
        assert_eq!(packed(&wish(Kind::Base, None)), ["Dockerfile", "moat-sidecar"]);
        assert_eq!(packed(&wish(Kind::Of(Agent::Codex), None)), ["Dockerfile", "agent/package.json"]);
        let with = packed(&wish(Kind::Of(Agent::Gemini), Some(dir.path().to_owned())));
        for name in ["agent/node_modules/@google/gemini-cli/package.json", "agent/node_modules/link"] {
            assert!(with.iter().any(|packed| packed == name), "{name}: {with:?}");
        }
    }
}
