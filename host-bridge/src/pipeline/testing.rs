//! What the pipeline's tests share.

use std::sync::Arc;

use crate::registry::Run;

/// A run with these servers: name, URL, and grant with header.
pub(super) fn run(servers: &[(&str, &str, Option<(&str, &str)>)]) -> Arc<Run> {
    run_named("run_000000000001", servers)
}

pub(super) fn run_named(id: &str, servers: &[(&str, &str, Option<(&str, &str)>)]) -> Arc<Run> {
    let servers: Vec<serde_json::Value> = servers
        .iter()
        .map(|(name, url, auth)| {
            let mut server = serde_json::json!({"name": name, "url": url});
            if let Some((grant, header)) = auth {
                server["auth"] = serde_json::json!({"grant": grant, "header": header});
            }
            server
        })
        .collect();
    let run = serde_json::json!({
        "run_id": id,
        "name": "test",
        "runtime": "process",
        "workspace": "/w",
        "mcp_servers": servers,
        "holder": {"pid": 1, "started": 1},
        "registered": "2026-01-01T00:00:00Z",
    });
    Arc::new(serde_json::from_value(run).unwrap())
}
