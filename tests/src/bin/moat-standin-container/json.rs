//! The JSON of each version, from 1.1 on.

use serde_json::{Value, json};

use super::{
    Answer, Refusal,
    store::{Container, Store},
};

/// `system status`: flat up to 1.3, in parts from 1.4.1 on.
pub(crate) fn status(store: &Store) -> Value {
    let version = store.version();
    let is_nested = version.starts_with("1.4.");
    match (store.settings.service, is_nested) {
        (false, true) => json!({"status": "not running"}),
        (false, false) => json!({
            "status": "not running", "appRoot": "", "installRoot": "", "apiServerVersion": "", "apiServerCommit": "",
            "apiServerBuild": "", "apiServerAppName": "",
        }),
        (true, true) => json!({
            "status": "running",
            "client": {"appName": "container", "version": version, "build": "release", "commit": "unspecified"},
            "server": {"appName": "container-apiserver", "version": version, "build": "release", "commit": "unspecified"},
            "host": {"architecture": "arm64", "cpus": 8, "operatingSystem": "macOS 26"},
            "resources": {"containersRunning": 0, "containersTotal": 0, "images": 1},
            "paths": {"appRoot": "/a", "installRoot": "/usr/local"},
        }),
        (true, false) => json!({
            "status": "running", "appRoot": "/a", "installRoot": "/usr/local", "apiServerCommit": "unspecified",
            "apiServerVersion": format!("container-apiserver version {version} (build: release, commit: unspecified)"),
            "apiServerBuild": "release", "apiServerAppName": "container-apiserver",
        }),
    }
}

/// `image inspect`.
pub(crate) fn image(store: &Store, name: &str) -> Answer<String> {
    let image = store.settings.images.get(name);
    let image = image.ok_or_else(|| Refusal::Said("notFound", format!("image {name} not found")))?;
    let env: Vec<String> = image.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let config = json!({"User": image.user, "Env": env, "Cmd": image.cmd});
    Ok(format!(
        "{:#}",
        json!([{
            "id": "ab12",
            "configuration": {"name": name, "creationDate": "2026-08-05T10:00:00Z", "descriptor": {"size": 1}},
            "variants": [
                {"platform": {"os": "unknown", "architecture": "unknown"}, "digest": "sha256:0", "size": 1, "config": {}},
                {"platform": {"os": "linux", "architecture": image.architecture}, "digest": "sha256:1", "size": 1,
                 "config": {"os": "linux", "architecture": image.architecture, "rootfs": {}, "config": config}},
            ],
        }])
    ))
}

/// `list`: compact.
pub(crate) fn list(store: &Store) -> Answer<String> {
    let all: Vec<Value> = store.all()?.iter().map(|of| container(store, of)).collect();
    Ok(Value::from(all).to_string())
}

/// `inspect`: an array, pretty.
pub(crate) fn inspect(store: &Store, id: &str) -> Answer<String> {
    Ok(format!("{:#}", json!([container(store, &store.container(id)?)])))
}

fn container(store: &Store, of: &Container) -> Value {
    let wanted = &of.wanted;
    let state = if of.pid().is_some() { store.settings.running.as_str() } else { "stopped" };
    let sockets: Vec<Value> = wanted
        .published
        .iter()
        .map(|(host, guest)| json!({"hostPath": host, "containerPath": guest}))
        .collect();
    let user = match wanted.user.as_deref() {
        Some(user) => json!({"raw": {"userString": user}}),
        None => json!({"id": {"uid": 1234, "gid": 1234}}),
    };
    json!({
        "id": wanted.name,
        "configuration": {
            "id": wanted.name, "image": {"reference": wanted.image}, "labels": wanted.labels, "publishedSockets": sockets,
            "creationDate": "2026-08-05T10:00:00Z", "platform": {"os": "linux", "architecture": wanted.architecture},
            "initProcess": {"executable": wanted.entrypoint, "arguments": wanted.arguments, "environment": [],
                "workingDirectory": wanted.directory, "terminal": wanted.tty, "user": user},
        },
        "status": {"state": state, "networks": []},
    })
}
