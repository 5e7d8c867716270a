//! Every way to a grant, every way in which it fails, and then every secret that was given, looked for everywhere.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    console::{
        Task,
        search::{Search, search_files},
    },
    needles,
    rig::Ran,
    trouble::ensure,
};
use serde_json::json;

use super::{OAuth, STUB, call, grants, works};
use crate::stage::expect_error;

/// Looks at every process's arguments, over and over, until it is dropped.
struct Watch {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<Vec<u8>>>>,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    fn begin() -> Self {
        let (over, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let (until, into) = (over.clone(), seen.clone());
        let task = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
                    if let Ok(arguments) = fs::read(process.path().join("cmdline")) {
                        into.lock().unwrap_or_else(PoisonError::into_inner).insert(arguments);
                    }
                }
                std::thread::yield_now();
            }
        });
        Self { over, seen, task: Some(task) }
    }

    fn end(mut self) -> Vec<u8> {
        self.over.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            drop(task.join());
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().flatten().copied().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// All that moat printed.
#[derive(Default)]
struct Printed(String);

impl Printed {
    fn keep(&mut self, ran: &Ran) {
        self.0.push_str(&ran.out);
        self.0.push_str(&ran.err);
    }
}

pub(super) fn a16_no_secret_is_anywhere() -> Outcome {
    let stage = OAuth::new()?;
    let (watch, mut printed) = (Watch::begin(), Printed::default());
    every_way_in(&stage, &mut printed)?;
    every_failure(&stage, &mut printed)?;

    // In use: renewed beside a call, after a 401, in vain; and then revoked.
    stage.authority.set("ttl=2")?;
    printed.keep(&stage.grant(&["--new-client"])?.expect_code(0)?);
    let inside = stage.rig.console()?;
    works(&inside)?;
    eventually("a token is renewed", Duration::from_secs(10), || {
        works(&inside).ok()?;
        (!stage.authority.refreshes().ok()?.is_empty()).then_some(())
    })?;
    stage.authority.kill(&stage.token()?)?;
    works(&inside)?;
    stage.authority.set("ttl=1&fault=lost&times=1")?;
    eventually("a renewal fails for good", Duration::from_secs(15), || {
        inside.answer(&call()).ok().filter(|answer| answer.kind() == "needs_grant").map(drop)
    })?;
    stage.authority.set("ttl=3600")?;
    printed.keep(&stage.grant(&[])?.expect_code(0)?);
    works(&inside)?;
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["grant", "list"],
        &["grant", "list", "--json"],
        &["grant", "show", "oauth:mine"],
        &["grant", "show", "oauth:mine", "--json"],
        &["trace", "--network"],
        &["audit"],
        &["doctor"],
    ] {
        printed.keep(&stage.rig.run(command)?);
    }
    let secrets = secrets(&stage)?;
    nothing_inside(&inside, &secrets)?;
    printed.keep(&stage.rig.run(&["revoke", "oauth:mine"])?.expect_code(0)?);
    expect_error("revoked", &inside.answer(&call())?, 502, "no_credential")?;
    printed.0.push_str(&inside.noise());
    inside.end()?;
    nothing_outside(&stage, &secrets, &printed.0, &watch.end())
}

/// In a browser, with a client of one's own and its secret, by a pasted address, by a device.
fn every_way_in(stage: &OAuth, printed: &mut Printed) -> Outcome {
    printed.keep(&stage.grant(&[])?.expect_code(0)?);
    printed.keep(&stage.rig.run(&["revoke", "oauth:mine"])?.expect_code(0)?);
    let with_secret = ["grant", "oauth", "mine", "--client-id", "secret", "--client-secret", "-"];
    let mut command = stage.rig.moat(&with_secret)?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or_else(|| Trouble::new("no stdin"))?.write_all(b"s:+/ %\n")?;
    printed.keep(&Ran::from(child.wait_with_output()?).expect_code(0)?);
    printed.keep(&stage.rig.run(&["revoke", "oauth:mine"])?.expect_code(0)?);
    grants::a_pasted_address(stage)?;
    printed.0.push_str(&fs::read_to_string(stage.rig.user_home().join("said"))?);
    printed.keep(&stage.rig.run(&["revoke", "oauth:mine"])?.expect_code(0)?);
    grants::a_device(stage)?;
    printed.0.push_str(&fs::read_to_string(stage.rig.user_home().join("said"))?);
    Ok(())
}

fn every_failure(stage: &OAuth, printed: &mut Printed) -> Outcome {
    for fault in ["empty", "redirect", "unavailable", "throttled", "lost", "before"] {
        stage.authority.set(&format!("fault={fault}&times=1"))?;
        printed.keep(&stage.grant(&["--new-client"])?.expect_code(1)?);
        stage.authority.set("fault=none&times=0")?;
    }
    stage.authority.set("deny=true")?;
    let denied = stage.grant(&[])?.expect_code(1)?;
    ensure(denied.err.contains("oauth error: access_denied: not today"), || denied.err.clone())?;
    printed.keep(&denied);
    stage.authority.set("deny=false")
}

/// What the authorization server gave and was shown, of every kind.
fn secrets(stage: &OAuth) -> Outcome<Vec<String>> {
    let all = stage.authority.secrets()?;
    for (kind, least) in [
        ("access_token", 6),
        ("refresh_token", 6),
        ("code", 8),
        ("code_verifier", 8),
        ("device_code", 1),
        ("registration_access_token", 3),
    ] {
        let count = all.iter().filter(|secret| secret["kind"] == kind).count();
        ensure(count >= least, || format!("{count} of {kind}: the search would prove nothing"))?;
    }
    let mut secrets: Vec<String> =
        all.iter().filter_map(|secret| secret["value"].as_str()).map(str::to_owned).collect();
    // And what must stay in a body that nobody shows.
    secrets.extend(["s:+/ %", "SECRET-MARKER"].map(str::to_owned));
    Ok(secrets)
}

fn nothing_inside(inside: &moat_tests::inside::Inside, secrets: &[String]) -> Outcome {
    let environ = inside.environ()?;
    let home = environ["HOME"].as_str().ok_or_else(|| Trouble::new("no HOME inside"))?;
    let workspace = inside.exec(&["pwd"], &[])?.out.trim().to_owned();
    let mut roots: Vec<String> = ["/tmp", "/run", "/var/tmp", "/dev/shm", "/home", "/root", "/mnt", "/.moat"]
        .map(str::to_owned)
        .into();
    roots.extend([home.to_owned(), workspace]);
    let search = Search {
        secrets: secrets.to_vec(),
        control: STUB.to_owned(),
        roots,
        skip: vec![".fixtures".to_owned()],
    };
    let found = inside.order(Task::Search(search))?.value_within(Duration::from_secs(120))?;
    ensure(found["hits"] == json!([]), || format!("A16: found inside: {}", found["hits"]))?;
    ensure(found["controls"].as_u64() > Some(0), || format!("not even the stub is found: {found}"))
}

fn nothing_outside(stage: &OAuth, secrets: &[String], printed: &str, arguments: &[u8]) -> Outcome {
    ensure(printed.contains("oauth:mine") && printed.contains("access_denied"), || printed.to_owned())?;
    let forms: Vec<_> = secrets.iter().flat_map(|secret| needles::of(secret)).collect();
    let hits = needles::found(&forms, printed.as_bytes());
    ensure(hits.is_empty(), || format!("A16: printed: {hits:?} in {printed}"))?;
    let hits = needles::found(&forms, arguments);
    ensure(hits.is_empty(), || format!("A16: in the arguments of a process: {hits:?}"))?;
    let seen = |text: &[u8]| memchr::memmem::find(arguments, text).is_some();
    ensure(seen(b"grant\0oauth\0mine") && seen(stage.rig.mark().as_bytes()), || {
        "not even moat's own arguments were seen".to_owned()
    })?;
    // Logs, traces, audit, journals, and whatever else lies there: the whole of moat's home.
    let home = stage.rig.home().to_string_lossy().into_owned();
    let workspace = stage.rig.workspace().to_string_lossy().into_owned();
    let search = Search {
        secrets: secrets.to_vec(),
        control: "credential.injected".to_owned(),
        roots: vec![home, workspace],
        skip: vec!["moat-fixture-client".to_owned()],
    };
    let found = search_files(&search);
    ensure(found["hits"] == json!([]), || format!("A16: found in moat's home: {}", found["hits"]))?;
    ensure(found["controls"].as_u64() > Some(0), || format!("not even the audit is found: {found}"))
}
