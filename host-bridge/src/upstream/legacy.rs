//! Legacy HTTP+SSE (MCP 2024-11-05): the `endpoint` event names where to post; the agent gets a handle instead
//! (mcp-relay section 4).
//!
//! The handle stands for a path and query of the configured origin, for one run, one server, and the life of the
//! stream that named it. Another origin is refused: it could aim the injected credential.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::uri::PathAndQuery;
use moat_shared::{
    id::{RunId, ServerName},
    wire::{LEGACY_MESSAGE_SEGMENT, MCP_PREFIX},
};
use ring::rand::{SecureRandom, SystemRandom};

use crate::server::Upstream;

/// All handles that are alive.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handles(Arc<Mutex<HashMap<String, Target>>>);

#[derive(Debug)]
struct Target {
    run: RunId,
    server: ServerName,
    target: PathAndQuery,
}

/// Why an endpoint cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadEndpoint {
    #[error("it names a message endpoint on another origin")]
    Origin,
    #[error("it names a message endpoint that is no URL")]
    Form,
    #[error("no random bytes")]
    Random,
}

impl Handles {
    /// What this handle stands for, if it is this run's and this server's.
    pub(crate) fn find(&self, run: &RunId, server: &ServerName, handle: &str) -> Option<PathAndQuery> {
        let handles = self.table();
        let found = handles.get(handle)?;
        (found.run == *run && found.server == *server).then(|| found.target.clone())
    }

    /// A handle for what the upstream's `endpoint` event says; it lives as long as what is returned.
    pub(crate) fn register(
        &self,
        run: &RunId,
        server: &ServerName,
        upstream: &Upstream,
        endpoint: &str,
    ) -> Result<Handle, BadEndpoint> {
        let target = resolve(upstream, endpoint)?;
        let mut random = [0; 16];
        SystemRandom::new().fill(&mut random).map_err(|_| BadEndpoint::Random)?;
        let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = format!("{MCP_PREFIX}{server}/{LEGACY_MESSAGE_SEGMENT}/{name}");
        let target = Target { run: run.clone(), server: server.clone(), target };
        self.table().insert(name.clone(), target);
        Ok(Handle { handles: self.clone(), name, path })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle that is alive.
#[derive(Debug)]
pub(crate) struct Handle {
    handles: Handles,
    name: String,
    path: String,
}

impl Handle {
    /// The reference for the agent: root-relative, below the server's prefix.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.handles.table().remove(&self.name);
    }
}

/// The endpoint against the upstream's URL; same origin only.
fn resolve(upstream: &Upstream, endpoint: &str) -> Result<PathAndQuery, BadEndpoint> {
    let base = url::Url::parse(upstream.as_str()).map_err(|_| BadEndpoint::Form)?;
    let url = base.join(endpoint.trim()).map_err(|_| BadEndpoint::Form)?;
    let same = url.scheme() == base.scheme()
        && url.host_str() == base.host_str()
        && url.port_or_known_default() == base.port_or_known_default()
        && url.username().is_empty()
        && url.password().is_none();
    if !same {
        return Err(BadEndpoint::Origin);
    }
    url[url::Position::BeforePath..url::Position::AfterQuery].parse().map_err(|_| BadEndpoint::Form)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn upstream() -> Upstream {
        Upstream::try_from("http://localhost:3001/sse?key=k".to_owned()).unwrap()
    }

    #[test_case("/message?sessionId=1" => Ok("/message?sessionId=1".to_owned()); "typescript")]
    #[test_case("message" => Ok("/message".to_owned()); "relative")]
    #[test_case("http://localhost:3001/m" => Ok("/m".to_owned()); "absolute")]
    #[test_case("?sessionId=1" => Ok("/sse?sessionId=1".to_owned()); "query only")]
    #[test_case("http://localhost:3002/m" => Err(BadEndpoint::Origin); "other port")]
    #[test_case("https://localhost:3001/m" => Err(BadEndpoint::Origin); "other scheme")]
    #[test_case("//evil.example/m" => Err(BadEndpoint::Origin); "other host")]
    #[test_case("http://x@localhost:3001/m" => Err(BadEndpoint::Origin); "user")]
    #[test_case("\\\\evil.example\\m" => Err(BadEndpoint::Origin); "backslashes")]
    fn endpoints(endpoint: &str) -> Result<String, BadEndpoint> {
        resolve(&upstream(), endpoint).map(|target| target.to_string())
    }

    #[test]
    fn a_handle_is_for_one_run_one_server_and_one_life() {
        let handles = Handles::default();
        let (run, other): (RunId, RunId) =
            ("run_000000000001".parse().unwrap(), "run_000000000002".parse().unwrap());
        let (server, sibling): (ServerName, ServerName) = ("old".parse().unwrap(), "new".parse().unwrap());
        let handle = handles.register(&run, &server, &upstream(), "/message?sessionId=1").unwrap();
        let name = handle.path().strip_prefix("/mcp/old/.message/").unwrap().to_owned();
        assert_eq!(handles.find(&run, &server, &name).unwrap(), "/message?sessionId=1");
        assert_eq!(handles.find(&other, &server, &name), None);
        assert_eq!(handles.find(&run, &sibling, &name), None);
        drop(handle);
        assert_eq!(handles.find(&run, &server, &name), None);
    }
}
