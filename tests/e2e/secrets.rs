//! The real credential is in no byte inside the sandbox, and the tunnel's key is out of the agent's reach.

use std::fs;

use moat_tests::{
    Outcome, Trouble,
    console::{Task, search::Search},
    parts::Part,
    trouble::ensure,
};
use serde_json::{Value, json};

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB, discover},
};

pub(crate) const TESTS: &[Test] = &[
    Test::new("nothing_inside_holds_a_credential", &[Part::Sandbox], nothing_inside_holds_a_credential),
    Test::new(
        "the_environment_holds_nothing_of_the_host",
        &[Part::Sandbox],
        the_environment_holds_nothing_of_the_host,
    ),
    Test::new("the_host_side_is_out_of_reach", &[Part::Sandbox], the_host_side_is_out_of_reach),
];

/// Every directory that the sandbox does not share with the host.
const ROOTS: [&str; 8] = ["/tmp", "/run", "/var/tmp", "/dev/shm", "/home", "/root", "/mnt", "/.moat"];

fn nothing_inside_holds_a_credential() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let visit =
        inside.visit("vault", false, &[(VAULT_HEADER, VAULT_STUB)], &[("echo", json!({"text": "x"}))])?;
    stage.nothing_in("a visit", &visit.to_string())?;
    ensure(stage.vault.seen.requests().iter().all(|r| r.mentions(&stage.secret) == 1), || {
        "the server did not get the credential, so the search proves nothing".to_owned()
    })?;
    let environ = inside.environ()?;
    let home = environ["HOME"].as_str().ok_or_else(|| Trouble::new("no HOME inside"))?;
    let workspace = inside.exec(&["pwd"], &[])?.out.trim().to_owned();
    let mut roots: Vec<String> = ROOTS.iter().map(|&root| root.to_owned()).collect();
    roots.extend([home.to_owned(), workspace]);
    let search = Search {
        secrets: vec![
            stage.secret.clone(),
            stage.faults_secret.clone(),
            "-----BEGIN PRIVATE KEY-----".to_owned(),
        ],
        control: VAULT_STUB.to_owned(),
        roots,
        skip: vec![".fixtures".to_owned()],
    };
    let found = inside.order(Task::Search(search))?.value()?;
    ensure(found["hits"] == json!([]), || format!("found inside: {}", found["hits"]))?;
    ensure(found["controls"].as_u64() > Some(0), || {
        format!("the search does not even find the stub: {found}")
    })?;
    others_are_closed(&found)
}

/// No process inside but the agent's own can be looked into: PID 1 and the relay above all.
fn others_are_closed(found: &Value) -> Outcome {
    let processes = found["processes"].as_array().ok_or_else(|| Trouble::new("no processes"))?;
    ensure(processes.iter().any(|process| process["own"] == true), || {
        "not even the agent is seen".to_owned()
    })?;
    for process in processes.iter().filter(|process| process["own"] != true) {
        let open = process["open"].as_array().map_or(&[][..], Vec::as_slice);
        for part in ["environ", "maps", "mem", "auxv", "stack", "fd"] {
            ensure(!open.contains(&json!(part)), || format!("the agent can open {part} of {process}"))?;
        }
    }
    Ok(())
}

fn the_environment_holds_nothing_of_the_host() -> Outcome {
    let mut stage = Stage::with("env:\n  FROM_CONFIG: \"yes\"\n")?;
    stage.rig.env.insert("HOST_ONLY_TOKEN".to_owned(), "host-only-value".to_owned());
    stage.rig.env.insert("SSH_AUTH_SOCK".to_owned(), "/tmp/agent.sock".to_owned());
    let inside = stage.rig.console_with(&["-e", "FROM_FLAG=yes"])?;
    let environ = inside.environ()?;
    for (name, value) in [("FROM_CONFIG", "yes"), ("FROM_FLAG", "yes")] {
        ensure(environ[name] == value, || format!("{name} is missing: {environ}"))?;
    }
    let text = environ.to_string();
    for absent in ["host-only-value", "SSH_AUTH_SOCK", "MOAT_HOME", "MOAT_KEYRING", "SSL_CERT_FILE"] {
        ensure(!text.contains(absent), || format!("{absent} came inside: {environ}"))?;
    }
    let moats = environ.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    let moats: Vec<&str> = moats.filter(|name| name.starts_with("MOAT_")).collect();
    ensure(moats == ["MOAT_RELAY_URL", "MOAT_RUN_ID"], || format!("MOAT variables inside: {moats:?}"))?;
    for name in ["NO_PROXY", "no_proxy"] {
        let value = environ[name].as_str().unwrap_or_default();
        for host in ["localhost", "127.0.0.1", "::1"] {
            ensure(value.split(',').any(|part| part == host), || format!("{name} lacks {host}: {value}"))?;
        }
    }
    Ok(())
}

fn the_host_side_is_out_of_reach() -> Outcome {
    let stage = Stage::new()?;
    fs::write(stage.rig.user_home().join("private"), "the host's")?;
    let inside = stage.rig.console()?;
    inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))?;
    let home = stage.rig.home();
    let hidden = [
        home.join("encryption.key"),
        home.join("credentials/mcp-vault.enc"),
        home.join("proxy/daemon.sock"),
        home.join("proxy/runs.json"),
        home.join("proxy/daemon.log"),
        stage.rig.user_home().join("private"),
    ];
    for path in hidden {
        ensure(path.exists(), || format!("{} is not there, so the test proves nothing", path.display()))?;
        let tried = inside.exec(&["ls", "-d", &path.to_string_lossy()], &[])?;
        ensure(tried.code != 0, || format!("{} can be seen inside", path.display()))?;
    }
    Ok(())
}
