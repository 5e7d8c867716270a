//! The first program of a guest that is a host (see `moat_tests::guest::host`): it sees what the bridge does with the vsock of
//! its own kernel, and says on the console what it saw.
//!
//! Only there: this machine may be a guest itself, and its host is not the tests' to talk to.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the console is how this program is heard")]

use std::{convert::Infallible, process::Command};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    guest::{
        PORT,
        host::{DRIVER, SHOWN},
        register::{ANY, Registration},
    },
    relay::Relay,
    rig::{PATIENCE, Rig},
    trouble::ensure,
    upstream::{Demand, Upstream},
};
use nix::sys::{
    reboot::{RebootMode, reboot},
    termios::tcdrain,
};
use serde_json::json;

const HEADER: &str = "X-Vault-Key";
const STUB: &str = "moat-stub-mcp-vault";
/// The machine, as its guests know it.
const HOST: u32 = 2;
/// The machine, as it knows itself.
const ITSELF: u32 = 1;

fn main() -> Outcome<Infallible> {
    if std::process::id() != 1 {
        return Err(Trouble::new("only a guest's kernel starts this"));
    }
    match see() {
        Ok(()) => println!("{SHOWN}"),
        Err(trouble) => println!("{trouble}"),
    }
    // The machine's end does not wait for its console.
    tcdrain(std::io::stdout())?;
    Ok(reboot(RebootMode::RB_AUTOBOOT)?)
}

fn see() -> Outcome {
    let rig = Rig::new()?;
    let secret = format!("vault-{}", rig.mark());
    let vault = Upstream::tls("vault", &rig.authority, false, Some(Demand::new(HEADER, &secret)))?;
    rig.config(&format!(
        "mcp:\n  - name: vault\n    url: {}\n    auth: {{grant: mcp-vault, header: {HEADER}}}\n",
        vault.url()
    ))?;
    rig.grant("vault", &secret, &vault.url())?;
    the_driver_is_named(&rig)?;
    // The other way round the sidecar would find its port taken for a moment: by the bridge, whose run has just ended.
    for listens in [true, false] {
        a_session(&rig, listens).map_err(|trouble| {
            Trouble::new(format!("listens: {listens}: {trouble}\nthe bridge:\n{}", rig.log()))
        })?;
    }
    let requests = vault.seen.requests();
    ensure(requests.iter().all(|request| request.values(HEADER) == [secret.as_str()]), || {
        format!("not every request had the credential: {requests:?}")
    })
}

/// A machine that is nobody's host has no such port. What the bridge says to do about it helps.
fn the_driver_is_named(rig: &Rig) -> Outcome {
    let refused = Registration::of(rig, HOST, false).err().map(|trouble| trouble.to_string());
    let at = format!("listening for the sandbox at vsock:{HOST}:{PORT}");
    let remedy = format!("modprobe {DRIVER}");
    ensure(refused.as_ref().is_some_and(|text| text.contains(&at) && text.contains(&remedy)), || {
        format!("without the driver: {refused:?}")
    })?;
    println!("without it: {}", refused.unwrap_or_default());
    let loaded = Command::new("modprobe").arg(DRIVER).status()?;
    ensure(loaded.success(), || format!("{remedy}: {loaded}"))
}

/// A visit through this bridge, and through the next one.
fn a_session(rig: &Rig, listens: bool) -> Outcome {
    let run = Registration::of(rig, if listens { ITSELF } else { HOST }, listens)?;
    let cid = if listens { ANY } else { HOST };
    let relay = Relay::start(rig, &run, &format!("vsock:{cid}:{PORT}"), listens)?;
    visit(&relay)?;
    is_shown(rig, listens)?;
    rig.kill_bridge()?;
    eventually("the tunnel comes back", PATIENCE, || visit(&relay).ok())?;
    is_shown(rig, listens)?;
    ensure(relay.end()? == Some(0), || "the relay's exit code".to_owned())
}

/// `initialize`, and a call that the server answers for its credential alone.
fn visit(relay: &Relay) -> Outcome {
    let call = ("echo", json!({"text": "x"}));
    let visit = relay.inside.visit("vault", false, &[(HEADER, STUB)], &[call])?;
    ensure(visit["results"].to_string().contains("vault: x"), || visit.to_string())
}

fn is_shown(rig: &Rig, listens: bool) -> Outcome {
    let wanted = if listens { "open (vsock, dialled, sidecar" } else { "open (vsock, sidecar" };
    let shown = rig.tunnel()?;
    println!("tunnel: {shown}");
    ensure(shown.starts_with(wanted), || format!("moat status: {shown}"))
}
