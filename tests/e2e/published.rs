//! The tunnel over a network: a published port, or this machine's address on the engine's own. Whoever else comes gets
//! nothing, and disturbs nobody.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    engine::IMAGE,
    inside::Answer,
    parts::Part,
    rig::{PATIENCE, Rig},
    trouble::ensure,
};

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB, discover},
};

const ENGINE: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("strangers_get_nothing", ENGINE, strangers_get_nothing),
    Test::new("a_bridge_that_comes_back_goes_there_again", ENGINE, a_bridge_that_comes_back),
    Test::new("it_needs_a_network", ENGINE, it_needs_a_network),
    Test::new("the_other_way_by_the_gateway", ENGINE, the_other_way_by_the_gateway),
];

/// What the engine says of the rig's one container.
fn of_container(rig: &Rig, template: &str) -> Outcome<String> {
    let id = rig.containers().pop().ok_or_else(|| Trouble::new("no container"))?;
    let said = rig.engine()?.client(&["inspect", "--format", template, &id])?.expect_code(0)?;
    Ok(said.out.trim().to_owned())
}

/// The port on this machine, and nowhere else.
fn port(rig: &Rig) -> Outcome<u16> {
    let bound = of_container(
        rig,
        "{{range (index .NetworkSettings.Ports \"19081/tcp\")}}{{.HostIp}}:{{.HostPort}} {{end}}",
    )?;
    let port = bound.strip_prefix("127.0.0.1:").and_then(|port| port.parse().ok());
    port.ok_or_else(|| Trouble::new(format!("published at {bound}")))
}

/// What somebody on this machine hears who says this.
fn heard(port: u16, said: &[u8]) -> Outcome<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // It may be closed already.
    let _told = stream.write_all(said).is_ok();
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        Ok(_) => Ok(heard),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(heard),
        Err(error) => Err(error.into()),
    }
}

/// A call that is sent before anybody has noticed that the tunnel is lost gets an error, and is never sent twice; the next
/// ones wait for the tunnel.
fn comes_back(call: &impl Fn() -> Outcome<Answer>) -> Outcome {
    let answers = || call().ok().filter(|answer| answer.status == 200).map(|_| ());
    eventually("the tunnel comes back", PATIENCE, answers)
}

fn strangers_get_nothing() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let call = || inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB));
    ensure(call()?.status == 200, || "the tunnel does not work".to_owned())?;
    let port = port(&stage.rig)?;
    for said in [&b""[..], b"GET /mcp/vault HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let heard = heard(port, said)?;
        ensure(heard.is_empty(), || format!("a process of the host heard {heard:?}"))?;
    }
    // A container on the same network.
    let address = of_container(&stage.rig, "{{.NetworkSettings.IPAddress}}")?;
    let ask = format!(
        "echo 'GET /mcp/vault' | nc -w 3 {address} 19081; echo said: $?; nc -w 3 {address} 19080 </dev/null; echo relay: $?"
    );
    let ran = stage.rig.engine()?.client(&["run", "--rm", IMAGE, "sh", "-c", &ask])?.expect_code(0)?;
    ensure(ran.out.starts_with("said: ") && ran.out.contains("relay: 1"), || {
        format!("a foreign container heard {}{}", ran.out, ran.err)
    })?;
    // Many at once, who stay.
    let crowd: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(("127.0.0.1", port))).collect::<Result<_, _>>()?;
    ensure(call()?.status == 200, || "a crowd at the port disturbs the tunnel".to_owned())?;
    drop(crowd);
    ensure(inside.end()? == 0, || "exit code".to_owned())
}

/// And strangers who were there first do not keep it out.
fn a_bridge_that_comes_back() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let call = || inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB));
    ensure(call()?.status == 200, || "the tunnel does not work".to_owned())?;
    let port = port(&stage.rig)?;
    stage.rig.kill_bridge()?;
    let crowd: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(("127.0.0.1", port))).collect::<Result<_, _>>()?;
    // The run's holder starts the next one.
    comes_back(&call)?;
    drop(crowd);
    let status = stage.rig.run(&["status"])?.expect_code(0)?;
    ensure(status.out.contains("open (published"), || status.out)?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;
    eventually("the bridge forgets it", Duration::from_secs(5), || {
        let status = stage.rig.run(&["status"]).ok()?;
        status.out.contains("Active runs: 0").then_some(())
    })
}

fn it_needs_a_network() -> Outcome {
    let rig = Rig::new()?;
    rig.config("network: {mode: none}\n")?;
    let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
    ensure(
        ran.err.contains("the tunnel 'published' needs a network") && ran.err.contains("--tunnel unix"),
        || ran.err.clone(),
    )?;
    ensure(rig.containers().is_empty() && rig.runs().is_empty(), || "something was started".to_owned())
}

/// The sandbox comes to the bridge; also to the next one, at the same port.
fn the_other_way_by_the_gateway() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console_with(&["--tunnel", "gateway"])?;
    let call = || inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB));
    ensure(call()?.status == 200, || "the tunnel does not work".to_owned())?;
    let is_open = || stage.rig.run(&["status"])?.expect_code(0).map(|status| status.out);
    let status = is_open()?;
    ensure(status.contains("open (gateway"), || status)?;
    // Nothing of the bridge's is mounted, nothing published.
    let has =
        of_container(&stage.rig, "{{range .Mounts}}{{.Destination}} {{end}}{{json .NetworkSettings.Ports}}")?;
    ensure(!has.contains("tunnel") && !has.contains("HostPort"), || has.clone())?;
    let runs: serde_json::Value =
        serde_json::from_slice(&std::fs::read(stage.rig.home().join("proxy/runs.json"))?)?;
    let at = runs["runs"][0]["listen"].as_str().and_then(|at| at.strip_prefix("tcp:")).unwrap_or_default();
    let at: std::net::SocketAddr = at.parse()?;
    ensure(!at.ip().is_loopback() && !at.ip().is_unspecified(), || format!("the bridge listens at {at}"))?;
    let mut stranger = TcpStream::connect(at)?;
    stranger.set_read_timeout(Some(PATIENCE))?;
    stranger.write_all(b"GET /mcp/vault HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut heard = Vec::new();
    let _how = stranger.read_to_end(&mut heard).is_ok();
    ensure(!heard.starts_with(b"HTTP"), || format!("a process of the host heard {heard:?}"))?;
    stage.rig.kill_bridge()?;
    comes_back(&call)?;
    let status = is_open()?;
    ensure(status.contains("open (gateway"), || status)?;
    ensure(inside.end()? == 0, || "exit code".to_owned())
}
