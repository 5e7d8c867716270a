//! The matrix of faults, cell by cell (docs/FAULTS.md), and what else must hold when something breaks.

use std::{fs, io::Write, process::Command, time::Duration};

use moat_tests::{
    Outcome, Trouble,
    clock::{eventually, millis, now},
    inside::{Inside, Request},
    listen::Listening,
    matrix::{
        Row, page, process,
        server::{Broken, Full},
        upstream,
    },
    parts::Part,
    pki::Authority,
    rig::Rig,
    seen::Seen,
    trouble::ensure,
};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    Test,
    matrix::{Server, configure, judge, judge_when, send},
    stage::{FAULTS_HEADER, FAULTS_STUB, SOON, Stage},
    streaming::relay,
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("the_page", &[], the_page),
    Test::new("of_servers", SANDBOX, of_servers),
    Test::new("of_names", SANDBOX, of_names),
    Test::new("of_processes", SANDBOX, of_processes),
    Test::new("a_stalled_tunnel", SANDBOX, a_stalled_tunnel),
    Test::new("a_socket_that_is_gone", SANDBOX, a_socket_that_is_gone),
    Test::new("no_room_for_records", SANDBOX, no_room_for_records),
    Test::new("a_clock_that_leaps", &[Part::Sandbox, Part::Cc], a_clock_that_leaps),
    Test::new("ids_come_back_as_they_are", SANDBOX, ids_come_back_as_they_are),
];

/// docs/FAULTS.md is what the tables say. `MOAT_REWRITE=1` writes it.
fn the_page() -> Outcome {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FAULTS.md");
    if std::env::var_os("MOAT_REWRITE").is_some() {
        fs::write(path, page::page())?;
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    ensure(written == page::page(), || {
        "docs/FAULTS.md is not what the tables say; its second paragraph names the command that writes it"
            .to_owned()
    })
}

/// Rows that take their time are sent first and judged last; of the others a few at once.
fn of_servers() -> Outcome {
    const AT_ONCE: usize = 4;
    let rig = Rig::new()?;
    let secret = format!("faults-{}/+=\"\\&%.k", rig.mark());
    let broken = Broken::tls(&rig.authority, &["localhost"])?;
    let open = Broken::plain()?;
    let dead = Dead::new(&rig)?;
    let mut servers = Vec::new();
    servers.extend(
        upstream::SERVER
            .iter()
            .map(|row| Server::granted(row.name, format!("{}/{}", broken.url(), row.name))),
    );
    servers.extend(
        upstream::OPEN.iter().map(|row| Server::open(row.name, format!("{}/{}", open.url(), row.name))),
    );
    for row in upstream::CONNECTION {
        servers.push(Server::open(row.name, dead.url(row.name)?));
    }
    configure(&rig, &servers)?;
    rig.grant("faults", &secret, &broken.url())?;
    let inside = rig.console()?;
    let nobody = Seen::default();
    let seen = |row: &Row| match row.name {
        name if upstream::SERVER.iter().any(|row| row.name == name) => broken.seen.clone(),
        name if name.starts_with("open-") => open.seen.clone(),
        _ => nobody.clone(),
    };
    let mut connecting = Vec::new();
    for row in upstream::CONNECTION {
        connecting.extend(send(&inside, row, row.name, false)?);
    }
    let mut troubles = Vec::new();
    let rows: Vec<(&Row, bool)> = upstream::SERVER
        .iter()
        .map(|row| (row, true))
        .chain(upstream::OPEN.iter().map(|row| (row, false)))
        .collect();
    for few in rows.chunks(AT_ONCE) {
        let mut sent = Vec::new();
        for (row, credential) in few {
            sent.extend(send(&inside, row, row.name, *credential)?);
        }
        troubles.extend(judge(&rig, &sent, seen).err().map(|trouble| trouble.to_string()));
    }
    troubles.extend(judge(&rig, &connecting, seen).err().map(|trouble| trouble.to_string()));
    let elsewhere = broken.seen.requests_to("/elsewhere").len();
    ensure(elsewhere == 0, || "a redirect was followed".to_owned())?;
    ensure(troubles.is_empty(), || troubles.join("\n"))
}

/// Servers to which no connection comes to be.
struct Dead {
    closed: u16,
    full: Full,
    name: Broken,
    stranger: Broken,
    expired: Broken,
    plain: Listening,
    hangs_up: Listening,
    silent: Listening,
}

impl Dead {
    fn new(rig: &Rig) -> Outcome<Self> {
        Ok(Self {
            closed: Listening::tcp(|stream| async move { drop(stream) })?.port(),
            full: Full::new()?,
            name: Broken::tls(&rig.authority, &["elsewhere.example"])?,
            stranger: Broken::tls(&Authority::new()?, &["localhost"])?,
            expired: Broken::with(rig.authority.expired(&["localhost"])?)?,
            plain: Listening::tcp(|mut stream| async move {
                // What is no HTTP either gets an answer all the same.
                let mut hello = [0; 4096];
                let _answered = match stream.read(&mut hello).await {
                    Ok(_) => stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await,
                    Err(error) => Err(error),
                };
            })?,
            hangs_up: Listening::tcp(|stream| async move { drop(stream) })?,
            silent: Listening::tcp(|stream| async move {
                std::future::pending::<()>().await;
                drop(stream);
            })?,
        })
    }

    fn url(&self, row: &str) -> Outcome<String> {
        let (scheme, port) = match row {
            "refused" => ("http", self.closed),
            "full-queue" => ("http", self.full.port()),
            "tls-name" => ("https", self.name.port()),
            "tls-stranger" => ("https", self.stranger.port()),
            "tls-expired" => ("https", self.expired.port()),
            "tls-plain" => ("https", self.plain.port()),
            "tls-hangs-up" => ("https", self.hangs_up.port()),
            "tls-silent" => ("https", self.silent.port()),
            _ => return Err(Trouble::new(format!("no server for {row}"))),
        };
        let host = if scheme == "http" { "127.0.0.1" } else { "localhost" };
        Ok(format!("{scheme}://{host}:{port}/{row}"))
    }
}

/// In a network namespace of its own the bridge has no resolver to ask, and the test sends nothing anywhere.
fn of_names() -> Outcome {
    let mut rig = Rig::new()?;
    let flags = if Part::Root.here() { "--net" } else { "--map-root-user --net" };
    rig.prefix = std::iter::once("unshare").chain(flags.split(' ')).map(ToOwned::to_owned).collect();
    let rows = upstream::NAMES;
    let url = |row: &Row| format!("https://no-such-host.invalid/{}", row.name);
    configure(&rig, &rows.iter().map(|row| Server::open(row.name, url(row))).collect::<Vec<_>>())?;
    let inside = rig.console()?;
    for row in rows {
        judge(&rig, &send(&inside, row, row.name, false)?, |_| Seen::default())?;
    }
    Ok(())
}

/// A rig whose servers are the rows' of [`process`], and the fault of the server that each row needs.
struct Standing {
    rig: Rig,
    broken: Broken,
}

impl Standing {
    fn new(rows: &[(&Row, &str)]) -> Outcome<Self> {
        Self::with(Rig::new()?, rows)
    }

    fn with(rig: Rig, rows: &[(&Row, &str)]) -> Outcome<Self> {
        let broken = Broken::tls(&rig.authority, &["localhost"])?;
        let secret = format!("faults-{}", rig.mark());
        let url = |row: &Row, fault: &str| format!("{}/{}", broken.url(), path(row, fault));
        let servers: Vec<Server> =
            rows.iter().map(|(row, fault)| Server::granted(row.name, url(row, fault))).collect();
        configure(&rig, &servers)?;
        rig.grant("faults", &secret, &broken.url())?;
        Ok(Self { rig, broken })
    }

    /// Sends a row, lets `happen` happen when its requests are where they should be, and compares.
    fn row(&self, inside: &Inside, row: &Row, fault: &str, happen: impl FnOnce() -> Outcome) -> Outcome {
        let mut sent = send(inside, row, &path(row, fault), true)?;
        for one in &sent {
            one.arrived(&self.broken.seen)?;
            if fault == "hang-stream" {
                one.started()?;
            }
        }
        happen()?;
        sent.iter_mut().for_each(super::matrix::Sent::counts_from_now);
        judge(&self.rig, &sent, |_| self.broken.seen.clone())
    }

    /// Sends a row to a server in good order, when whatever there was has happened.
    fn after(&self, inside: &Inside, row: &Row) -> Outcome {
        judge(&self.rig, &send(inside, row, &path(row, "well"), true)?, |_| self.broken.seen.clone())
    }

    /// Waits until requests pass again.
    fn recovers(&self, inside: &Inside, row: &Row) -> Outcome {
        let ping = || Request::rpc(&format!("/mcp/{}/again", row.name), 1, "ping");
        eventually("requests pass again", Duration::from_secs(40), || {
            let answer = inside.answer(&ping().header(FAULTS_HEADER, FAULTS_STUB));
            answer.ok().filter(|answer| answer.status == 404 && answer.kind().is_empty()).map(|_| ())
        })
    }
}

fn path(row: &Row, fault: &str) -> String {
    format!("{fault}?row={}", row.name)
}

fn of_processes() -> Outcome {
    let rows = [
        (&process::BRIDGE_KILLED, "hang"),
        (&process::BRIDGE_KILLED_LATER, "hang-stream"),
        (&process::BRIDGE_AWAY, "well"),
        (&process::RELAY_KILLED, "hang"),
        (&process::RELAY_KILLED_LATER, "hang-stream"),
        (&process::RELAY_BACK, "well"),
    ];
    let standing = Standing::new(&rows)?;
    let inside = standing.rig.console()?;
    let kill_bridge = || standing.rig.kill_bridge().map(|_| ());
    let kill_relay = || Ok(kill(relay(&standing.rig, &inside)?, Signal::SIGKILL)?);
    for (row, fault) in &rows[..2] {
        standing.row(&inside, row, fault, kill_bridge)?;
        standing.recovers(&inside, row)?;
    }
    // What a killed bridge could not write down, the audit log has: each use of the credential.
    let injected =
        standing.rig.lines("audit.jsonl").iter().filter(|l| l["type"] == "credential.injected").count();
    ensure(injected >= 12, || format!("{injected} uses of the credential in the audit log"))?;
    let killed = standing.rig.bridge();
    kill_bridge()?;
    // Before the relay has seen the end of the tunnel, requests would be on their way into the old one.
    eventually("the tunnel is down, or another bridge is there", SOON, || {
        let down = inside.answer(&Request::new("GET", "/healthz")).is_ok_and(|answer| answer.status != 200);
        (down || standing.rig.bridge().is_some_and(|pid| Some(pid) != killed)).then_some(())
    })?;
    standing.after(&inside, &process::BRIDGE_AWAY)?;
    for (row, fault) in &rows[3..5] {
        standing.row(&inside, row, fault, kill_relay)?;
        standing.recovers(&inside, row)?;
    }
    kill_relay()?;
    standing.after(&inside, &process::RELAY_BACK)?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

/// As long as two missed pings: nobody notices before.
fn a_stalled_tunnel() -> Outcome {
    let row = &process::TUNNEL_STALLED;
    let standing = Standing::new(&[(row, "hang")])?;
    let inside = standing.rig.console()?;
    let bridge = standing.rig.bridge().ok_or_else(|| Trouble::new("no bridge"))?;
    let mut sent = send(&inside, row, &path(row, "hang"), true)?;
    for one in &mut sent {
        one.arrived(&standing.broken.seen)?;
    }
    kill(bridge, Signal::SIGSTOP)?;
    sent.iter_mut().for_each(super::matrix::Sent::counts_from_now);
    // Woken up, it writes down what it did not see.
    let wake = || Ok(kill(bridge, Signal::SIGCONT)?);
    judge_when(&standing.rig, &sent, |_| standing.broken.seen.clone(), wake)?;
    standing.recovers(&inside, row)
}

fn a_socket_that_is_gone() -> Outcome {
    let row = &process::SOCKET_GONE;
    let standing = Standing::new(&[(row, "well")])?;
    let inside = standing.rig.console()?;
    standing.recovers(&inside, row)?;
    fs::remove_file(standing.rig.home().join("proxy/tunnel/bridge.sock"))?;
    kill(relay(&standing.rig, &inside)?, Signal::SIGKILL)?;
    standing.after(&inside, row)?;
    // A new bridge makes a new socket, and the run is there again.
    standing.rig.kill_bridge()?;
    standing.recovers(&inside, row)
}

/// The bridge may write files of so many bytes, and the trace has reached that: as on a disk that is full.
fn no_room_for_records() -> Outcome {
    const ROOM: u64 = 128 * 1024;
    let mut rig = Rig::new()?;
    // `ulimit -f` counts blocks of 512 bytes. Who ignores SIGXFSZ gets an error instead, like ENOSPC.
    let limited = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", ROOM / 512);
    rig.prefix = ["sh", "-c", &limited, "sh"].map(ToOwned::to_owned).to_vec();
    rig.run(&["proxy", "start"])?.expect_code(0)?;
    rig.prefix.clear();
    let row = &process::NO_ROOM;
    let standing = Standing::with(rig, &[(row, "well")])?;
    let inside = standing.rig.console()?;
    let run = standing.rig.runs().pop().ok_or_else(|| Trouble::new("no run"))?;
    let trace = run.join("network.jsonl");
    let mut file = fs::OpenOptions::new().create(true).append(true).open(&trace)?;
    file.write_all(&vec![b'\n'; usize::try_from(ROOM)?])?;
    standing.after(&inside, row)?;
    let log = || standing.rig.log().contains("records could not be written").then_some(());
    eventually("the log says so", SOON * 5, log)?;
    // Room again: what is written says how much is missing.
    file.set_len(0)?;
    standing.recovers(&inside, row)?;
    let lost = |line: &serde_json::Value| line["type"] == "records.lost" && line["count"].as_u64() >= Some(1);
    standing.rig.line("audit.jsonl", "records.lost", lost)?;
    standing.rig.line("network.jsonl", "a new line", |line| line["status"] == 404).map(|_| ())
}

/// A clock that is read through this library is wrong by what a file says.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long leap(void) {
    char text[32] = {0};
    const char *path = getenv("MOAT_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    return got > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *to) {
    int failed = syscall(SYS_clock_gettime, id, to);
    if (!failed && id == CLOCK_REALTIME) to->tv_sec += leap();
    return failed;
}
"#;

fn a_clock_that_leaps() -> Outcome {
    const TEN_YEARS: i64 = 10 * 365 * 24 * 3600;
    let rows = [(&process::CLOCK_AHEAD, TEN_YEARS), (&process::CLOCK_BACK, -TEN_YEARS)];
    let mut rig = Rig::new()?;
    let (source, library) = (rig.user_home().join("clock.c"), rig.user_home().join("clock.so"));
    let clock = rig.user_home().join("clock");
    fs::write(&source, CLOCK)?;
    let cc = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).output()?;
    ensure(cc.status.success(), || String::from_utf8_lossy(&cc.stderr).into_owned())?;
    fs::write(&clock, "0")?;
    rig.env.insert("LD_PRELOAD".to_owned(), library.to_string_lossy().into_owned());
    rig.env.insert("MOAT_TEST_CLOCK".to_owned(), clock.to_string_lossy().into_owned());
    let standing = Standing::with(rig, &rows.map(|(row, _)| (row, "well")))?;
    let inside = standing.rig.console()?;
    for (row, leap) in rows {
        // The leap comes while a stream is open, and the stream lives on.
        let held = Request::get(&format!("/mcp/{}/get/held", row.name)).header(FAULTS_HEADER, FAULTS_STUB);
        let held = inside.call(&held)?;
        held.text("progress")?;
        fs::write(&clock, leap.to_string())?;
        standing.after(&inside, row)?;
        ensure(held.events().len() == 2, || format!("the open stream: {:?}", held.events()))?;
        held.abandon()?;
        let year = |line: &serde_json::Value| line["timestamp"].as_str().map(|text| text[..4].to_owned());
        let years: Vec<_> = standing
            .rig
            .lines("network.jsonl")
            .iter()
            .filter(|l| l["server"] == row.name)
            .filter_map(year)
            .collect();
        let leapt =
            years.iter().any(|year| year.parse::<i64>().is_ok_and(|year| (year - 2000 > 30) == (leap > 0)));
        ensure(leapt, || format!("the bridge's clock did not leap: {years:?}"))?;
        // Tunnels are made while the clock is wrong, too: no certificate's date counts there.
        standing.rig.kill_bridge()?;
        standing.recovers(&inside, row)?;
    }
    Ok(())
}

fn ids_come_back_as_they_are() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for id in [
        json!("seven"),
        json!(0),
        json!(-3),
        json!("listen:0"),
        json!(9_007_199_254_740_992_u64),
        json!("ü\""),
    ] {
        let message = json!({"params": {"id": "inner"}, "method": "tools/call", "id": id, "jsonrpc": "2.0"});
        for path in ["status/401", "cut"] {
            let request =
                Request::post(&format!("/mcp/faults/{path}"), &message).header(FAULTS_HEADER, FAULTS_STUB);
            let asked = now();
            let answer = inside.answer(&request)?;
            let json = answer.json();
            ensure(json["id"] == id && json["error"].is_object(), || format!("{path} {id}: {json}"))?;
            let took = millis(answer.end_at - asked);
            ensure(took < 2000.0, || format!("{path} {id}: told after {took:.0} ms"))?;
        }
    }
    Ok(())
}
