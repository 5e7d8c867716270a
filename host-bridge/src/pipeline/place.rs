//! Where a request goes: the server of this run that its path names, and the URL below it.
//!
//! ```text
//! /mcp/<server>[/<rest>][?query]           ──► the configured URL, joined
//! /mcp/<server>/.message/<handle>          ──► what the handle stands for (legacy HTTP+SSE, section 4)
//! /mcp/<server>/.well-known/...            ──► nowhere, ever (section 6.4)
//! ```

use std::sync::Arc;

use http::{Method, Uri, uri::PathAndQuery};
use moat_shared::{
    id::ServerName,
    wire::{LEGACY_MESSAGE_SEGMENT, MCP_PREFIX},
};

use super::{
    confine,
    error::{PipelineError, printable},
};
use crate::{registry::Run, server::Server, upstream::legacy::Handles};

/// A request whose server and URL are known.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    run: Arc<Run>,
    /// Index into the run's servers, which never change.
    index: usize,
    target: PathAndQuery,
    legacy: bool,
}

impl Placed {
    pub(super) fn run(&self) -> &Arc<Run> {
        &self.run
    }
    pub(super) fn server(&self) -> &Server {
        &self.run.servers[self.index]
    }
    /// Is it a message of the old transport, whose answer comes on another stream?
    pub(super) fn is_legacy_message(&self) -> bool {
        self.legacy
    }
    /// Path and query at the upstream.
    pub(super) fn target(&self) -> &PathAndQuery {
        &self.target
    }
}

/// Reads a request's path. The run is the certificate's, never the path's (T5).
pub(super) fn place(
    run: &Arc<Run>,
    method: &Method,
    uri: &Uri,
    handles: &Handles,
) -> Result<Placed, PipelineError> {
    let below = uri.path().strip_prefix(MCP_PREFIX).ok_or(PipelineError::NoSuchPath)?;
    let (name, rest) = below.find('/').map_or((below, ""), |slash| below.split_at(slash));
    let unknown = || PipelineError::NotConfigured {
        name: printable(name),
        servers: run.servers.iter().map(|server| server.name.clone()).collect(),
    };
    let parsed: ServerName = name.parse().map_err(|_| unknown())?;
    let index = run.servers.iter().position(|server| server.name == parsed).ok_or_else(unknown)?;
    if !matches!(*method, Method::POST | Method::GET | Method::DELETE) {
        return Err(PipelineError::Method);
    }
    let server = &run.servers[index];
    let mut segments = rest.split('/').skip(1);
    let legacy = rest.split('/').nth(1) == Some(LEGACY_MESSAGE_SEGMENT);
    let target = match (segments.next(), segments.next(), segments.next()) {
        (Some(LEGACY_MESSAGE_SEGMENT), Some(handle), None) if uri.query().is_none() => {
            handles.find(&run.id, &server.name, handle).ok_or(PipelineError::NoSuchPath)?
        }
        (Some(LEGACY_MESSAGE_SEGMENT), ..) => return Err(PipelineError::NoSuchPath),
        // Only what is sent to the one URL is judged.
        _ if server.policy.is_some() && (!matches!(rest, "" | "/") || uri.query().is_some()) => {
            return Err(PipelineError::Unconfined(
                "the server has a policy: only its configured URL is served",
            ));
        }
        // Also where the encoding hides it.
        _ if names_well_known(rest) => return Err(PipelineError::NoSuchPath),
        _ => confine::join(&server.upstream, rest, uri.query()).map_err(PipelineError::Unconfined)?,
    };
    Ok(Placed { run: run.clone(), index, target, legacy })
}

/// Also with a path parameter, which some servers take off.
fn names_well_known(rest: &str) -> bool {
    rest.split('/').any(|segment| {
        let decoded = percent_encoding::percent_decode_str(segment).decode_utf8_lossy();
        decoded.split(';').next().is_some_and(|name| name.eq_ignore_ascii_case(".well-known"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing;
    use test_case::test_case;

    fn placed(method: &str, path: &str) -> Result<String, PipelineError> {
        let run = testing::run(&[("notion", "https://mcp.notion.com/mcp", None)]);
        let handles = Handles::default();
        let method = method.parse().unwrap();
        place(&run, &method, &path.parse().unwrap(), &handles).map(|placed| placed.target().to_string())
    }

    /// Only what is sent to the one URL is judged.
    #[test_case("/mcp/x" => true; "the url itself")]
    #[test_case("/mcp/x/" => true; "with a slash")]
    #[test_case("/mcp/x/v1/items/5" => false; "below it")]
    #[test_case("/mcp/x?tool=delete" => false; "with a query")]
    fn with_a_policy(path: &str) -> bool {
        let bound =
            testing::rules("mode: enforce\nrules: [{name: r, action: deny, match: {operation: a}}]\n");
        let run = testing::with_policy("https://h/mcp", &bound);
        place(&run, &Method::DELETE, &path.parse().unwrap(), &Handles::default()).is_ok()
    }

    #[test_case("/mcp/notion" => "/mcp")]
    #[test_case("/mcp/notion/x?y=z" => "/mcp/x?y=z")]
    #[test_case("http://127.0.0.1:4000/mcp/notion" => "/mcp"; "absolute form")]
    fn found(path: &str) -> String {
        placed("POST", path).unwrap()
    }

    #[test_case("/mcp/linear"; "another server")]
    #[test_case("/mcp/"; "no name")]
    #[test_case("/mcp/NOTION"; "names have a case")]
    #[test_case("/mcp/%6eotion"; "names are not decoded")]
    fn not_configured(path: &str) {
        assert!(matches!(placed("POST", path), Err(PipelineError::NotConfigured { .. })));
    }

    #[test_case("/"; "root")]
    #[test_case("/mcp"; "prefix alone")]
    #[test_case("/MCP/notion"; "case of the prefix")]
    #[test_case("/mcp/notion/.well-known/oauth-protected-resource"; "section 6.4")]
    #[test_case("/mcp/notion/%2ewell-known/oauth-protected-resource"; "section 6.4 encoded")]
    #[test_case("/mcp/notion/.well-known;x/oauth-protected-resource"; "section 6.4 path parameter")]
    #[test_case("/mcp/notion/.message/0123"; "a handle that nobody gave")]
    #[test_case("/mcp/notion/.message"; "no handle")]
    fn nowhere(path: &str) {
        assert!(matches!(placed("POST", path), Err(PipelineError::NoSuchPath)));
    }

    #[test_case("HEAD")]
    #[test_case("OPTIONS")]
    #[test_case("PUT")]
    #[test_case("PATCH")]
    #[test_case("CONNECT")]
    fn r10_other_methods(method: &str) {
        assert!(matches!(placed(method, "/mcp/notion"), Err(PipelineError::Method)));
    }
}
