//! What tests of several modules need.

use moat_shared::plan::Plan;

/// A plan with one server of each kind.
pub(crate) fn plan() -> Plan {
    serde_json::from_value(serde_json::json!({
        "run": "run_0123456789ab",
        "tunnel": {"endpoint": "unix:/run/moat/bridge.sock", "dialler": "sidecar"},
        "relay_port": 19080,
        "servers": [
            {"name": "notion", "header": {"name": "Authorization", "stub": "moat-stub-oauth:notion"}},
            {"name": "context7", "header": {"name": "CONTEXT7_API_KEY", "stub": "moat-stub-mcp-context7"}},
            {"name": "public", "header": null}
        ],
        "agent": null,
        "stdio": {},
        "confirm": false,
        "mcp_json": "workspace",
        "workspace": "/workspace",
        "directory": "/workspace",
        "user": {"ids": {"uid": 1000, "gid": 1000}, "name": "agent", "home": "/home/agent"},
        "relay_user": {"uid": 1001, "gid": 1001},
        "image_user": null,
        "filters": [],
        "env": {},
        "pre_run": null,
        "command": ["true"],
        "terminal": false,
        "grace_ms": 3000,
        "tunnel_ms": 20000
    }))
    .unwrap()
}
