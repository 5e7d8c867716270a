//! The doors: the relay's listener inside, the control socket outside. Neither is opened by a trick.

use std::{
    fs, os::unix::fs::PermissionsExt, os::unix::process::CommandExt, process::Command, time::Duration,
};

use moat_tests::{Outcome, inside::Request, parts::Part, trouble::ensure};
use serde_json::json;

use crate::{
    Test,
    stage::{SOON, Stage, discover, expect_error, fault},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("r4_foreign_host_and_origin", SANDBOX, foreign_host_and_origin),
    Test::new("every_request_form_is_answered_alike", SANDBOX, every_request_form_is_answered_alike),
    Test::new("r1_no_way_out_of_the_configured_path", SANDBOX, no_way_out_of_the_configured_path),
    Test::new("r10_the_relay_is_no_proxy", SANDBOX, the_relay_is_no_proxy),
    Test::new("broken_heads", SANDBOX, broken_heads),
    Test::new("slow_heads", SANDBOX, slow_heads),
    Test::new("r8_ambiguous_bodies", SANDBOX, ambiguous_bodies),
    Test::new("no_oauth_is_offered", SANDBOX, no_oauth_is_offered),
    Test::new(
        "the_control_socket_knows_its_owner",
        &[Part::Curl, Part::Root],
        the_control_socket_knows_its_owner,
    ),
];

fn foreign_host_and_origin() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let own = inside.authority();
    let port = own.rsplit(':').next().unwrap_or_default().to_owned();
    for host in
        ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1:1"]
    {
        let answer = inside.answer(&discover("local").host(host))?;
        ensure(answer.status == 403 && answer.kind() == "host_refused", || {
            format!("Host {host}: {answer:?}")
        })?;
    }
    for origin in ["http://evil.example", "null", "https://localhost.evil.example", "file://"] {
        let answer = inside.answer(&discover("local").header("Origin", origin))?;
        ensure(answer.status == 403 && answer.kind() == "host_refused", || {
            format!("Origin {origin}: {answer:?}")
        })?;
    }
    ensure(stage.local.seen.requests().is_empty(), || "a refused request reached the server".to_owned())?;
    for host in [own.clone(), format!("localhost:{port}"), format!("[::1]:{port}")] {
        let answer =
            inside.answer(&discover("local").host(&host).header("Origin", &format!("http://{host}")))?;
        ensure(answer.status == 200, || format!("Host {host}: {answer:?}"))?;
    }
    Ok(())
}

fn every_request_form_is_answered_alike() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let own = inside.authority();
    let plain = inside.answer(&fault("ok"))?;
    let absolute = Request::rpc(&format!("http://{own}/mcp/faults/ok"), 7, "tools/call");
    let forms = [
        ("absolute", absolute.clone()),
        ("absolute, other name", absolute.host(&own.replace("127.0.0.1", "localhost"))),
        ("through CONNECT", fault("ok").through(&own)),
        (
            "absolute through CONNECT",
            Request::rpc(&format!("http://{own}/mcp/faults/ok"), 7, "x").through(&own),
        ),
    ];
    for (form, request) in forms {
        let answer = inside.answer(&request)?;
        ensure((answer.status, &answer.body) == (200, &plain.body), || format!("{form}: {answer:?}"))?;
    }
    let seen = stage.faults.seen.requests();
    ensure(seen.len() == 5 && seen.iter().all(|request| request.target == "/ok"), || format!("{seen:?}"))
}

fn no_way_out_of_the_configured_path() -> Outcome {
    let stage = Stage::with("  - name: deep\n    url: PLACEHOLDER\n")?;
    let yaml = fs::read_to_string(stage.rig.workspace().join("moat.yaml"))?;
    stage
        .rig
        .config(&yaml.replace("PLACEHOLDER", &format!("{}/deep/base?key=configured", stage.open.url())))?;
    let inside = stage.rig.console()?;
    let tricks = [
        "../up",
        "..",
        "%2e%2e/up",
        "%2E%2e/up",
        ".%2e/up",
        "x/../../up",
        "x/%2e%2e/%2e%2e/up",
        "..%2fup",
        "%2e%2e%2fup",
        "..\\up",
        "..%5cup",
        "%252e%252e/up",
        "a%00b",
        "a%0d%0aHost:%20evil",
        "a%2fb",
        ";/../up",
        "..;/up",
        "@evil.example/",
        "http://evil.example/up",
        "//evil.example/up",
        ".well-known/oauth-protected-resource",
    ];
    for trick in tricks {
        let answer = inside.answer(&Request::rpc(&format!("/mcp/deep/{trick}"), 7, "ping"))?;
        let reached = stage.open.seen.requests_to("");
        let confined = reached.iter().all(|request| {
            let path = request.target.split('?').next().unwrap_or_default();
            let plain =
                !path.contains("..") && !path.contains('\\') && !path.to_lowercase().contains("%2e%2e");
            path.starts_with("/deep/base") && (plain || path.contains("%252e")) && !path.contains("%00")
        });
        ensure(confined, || format!("{trick}: {reached:?}"))?;
        ensure(answer.status < 500, || format!("{trick}: {answer:?}"))?;
    }
    for target in [
        "/mcp",
        "/mcp/",
        "/mcp//deep",
        "//mcp/deep",
        "/mcp/../mcp/deep",
        "/",
        "/other",
        "/mcp/%64eep/../local",
    ] {
        let answer = inside.answer(&Request::rpc(target, 7, "ping"))?;
        let refused = (400..500).contains(&answer.status) || target == "/mcp//deep";
        ensure(refused && answer.status < 500, || format!("{target}: {answer:?}"))?;
    }
    // R1: the configured query stays, the client's comes after it and never stands beside its own name.
    let twice = inside.answer(&Request::rpc("/mcp/deep/below?key=mine", 7, "ping"))?;
    expect_error("a parameter of the configured query", &twice, 400, "bad_request")?;
    let answer = inside.answer(&Request::rpc("/mcp/deep/below?more=1", 7, "ping"))?;
    let last = stage.open.seen.requests().pop().map(|request| request.target);
    ensure(last.as_deref() == Some("/deep/base/below?key=configured&more=1"), || {
        format!("{last:?}: {answer:?}")
    })
}

fn the_relay_is_no_proxy() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let target = stage.open.url().replace("http://", "");
    let connect = inside.answer(&Request::get("/ok").through(&target).host(&target))?;
    ensure((400..500).contains(&connect.status), || format!("CONNECT to {target}: {connect:?}"))?;
    for url in [format!("http://{target}/ok"), "http://evil.example/mcp/local".to_owned()] {
        let answer = inside.answer(&Request::rpc(&url, 7, "ping"))?;
        ensure((400..500).contains(&answer.status), || format!("{url}: {answer:?}"))?;
    }
    ensure(stage.open.seen.requests().is_empty(), || "the relay dialled for the agent".to_owned())?;
    for method in ["PUT", "PATCH", "HEAD", "OPTIONS", "TRACE"] {
        let answer = inside.answer(&Request::new(method, "/mcp/open/ok").counted())?;
        ensure(answer.status == 405, || format!("{method}: {answer:?}"))?;
    }
    ensure(stage.open.seen.requests().is_empty(), || "another method reached the server".to_owned())
}

fn broken_heads() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let injected = |value: &str| fault("ok").header("X-A", value);
    let cases = [
        ("a folded header", injected("a\r\n b")),
        ("a bare CR", injected("a\rX-Faults-Key: b")),
        ("NUL", injected("a\0b")),
        ("a space before the colon", fault("ok").header("X-A ", "b")),
        ("two lengths", fault("ok").header("Content-Length", "3").header("Content-Length", "5")),
        ("an oversized header", injected(&"m".repeat(200 * 1024))),
        (
            "too many headers",
            (0..2000).fold(fault("ok"), |request, n| request.header(&format!("X-{n}"), "m")),
        ),
        ("an oversized target", Request::rpc(&format!("/mcp/faults/{}", "m".repeat(200 * 1024)), 7, "ping")),
    ];
    for (what, request) in cases {
        // The answer is a refusal that blames the request, or a closed connection.
        if let Ok(answer) = inside.answer(&request) {
            ensure((400..500).contains(&answer.status), || format!("{what}: {answer:?}"))?;
        }
    }
    let chunked = inside.answer(&fault("ok").header("Transfer-Encoding", "chunked"))?;
    ensure(chunked.status == 400 && chunked.kind() == "bad_request", || {
        format!("the agent's broken body was blamed on somebody else: {chunked:?}")
    })?;
    let reached = stage.faults.seen.requests();
    ensure(reached.is_empty(), || format!("a broken request reached the server: {reached:?}"))?;
    let answer = inside.answer(&fault("ok"))?;
    ensure(answer.status == 200, || format!("the relay suffered: {answer:?}"))
}

fn slow_heads() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let port = inside.authority().rsplit(':').next().unwrap_or_default().to_owned();
    let dribble = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'POST /mcp/open/ok HTTP/1.1\\r\\nHost: x\\r\\nX-A: ' >&3; cat <&3"
    );
    let started = moat_tests::clock::now();
    let slow = inside.exec(&["timeout", "20", "bash", "-c", &dribble], &[])?;
    let took = moat_tests::clock::millis(moat_tests::clock::now() - started) / 1000.0;
    ensure((8.0..15.0).contains(&took), || format!("closed after {took:.1} s: {slow:?}"))?;
    let answer = inside.answer(&fault("ok"))?;
    ensure(answer.status == 200, || format!("the relay suffered: {answer:?}"))
}

fn ambiguous_bodies() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let bodies = [
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","METHOD":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"x","params":{"name":"a","name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"x"} trailing"#,
        "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"x\"",
        "not JSON",
    ];
    for body in bodies {
        let request = fault("ok").body(moat_tests::console::http::Body::Text(body.to_owned()));
        let answer = inside.answer(&request)?;
        ensure(answer.status == 400 && answer.kind() == "bad_request", || format!("{body}: {answer:?}"))?;
    }
    let reached = stage.faults.seen.requests();
    ensure(reached.is_empty(), || format!("an ambiguous body reached the server: {reached:?}"))
}

fn no_oauth_is_offered() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let targets = [
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp/vault",
        "/.well-known/oauth-authorization-server/mcp/vault",
        "/.well-known/openid-configuration",
        "/mcp/vault/.well-known/oauth-protected-resource",
        "/mcp/vault/.well-known/openid-configuration",
        "/authorize",
    ];
    for target in targets {
        let answer = inside.answer(&Request::get(target))?;
        let as_json = answer.json() == json!({"error": "not_found"});
        ensure(answer.status == 404 && as_json, || format!("{target}: {answer:?}"))?;
        ensure(answer.value("content-type") == Some("application/json"), || format!("{:?}", answer.headers))?;
    }
    let answer = inside.answer(&Request::post("/register", &json!({})))?;
    ensure(answer.status == 404, || format!("{answer:?}"))?;
    ensure(stage.vault.seen.requests().is_empty(), || "a probe reached the server".to_owned())?;
    let health = inside.answer(&Request::new("GET", "/healthz"))?;
    ensure(health.status == 200, || format!("{health:?}"))?;
    expect_error("an unknown server", &inside.answer(&discover("x"))?, 404, "not_configured")
}

fn the_control_socket_knows_its_owner() -> Outcome {
    let stage = Stage::new()?;
    stage.rig.run(&["proxy", "start"])?.expect_code(0)?;
    let socket = stage.rig.home().join("proxy/daemon.sock");
    let mode = fs::metadata(&socket)?.permissions().mode() & 0o777;
    ensure(mode == 0o600, || format!("the socket's mode is {mode:o}"))?;
    let ask = |uid: u32| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "5", "-w", "%{http_code}", "http://moat/v1/status", "--unix-socket"])
            .arg(&socket);
        curl.uid(uid).gid(uid).current_dir("/").output().map(moat_tests::rig::Ran::from)
    };
    let own = ask(0)?;
    ensure(own.out.ends_with("200"), || format!("its owner is refused: {own:?}"))?;
    // Modes are one wall. With all of them open the bridge still asks who is there.
    let mut open = stage.rig.home();
    fs::set_permissions(open.parent().unwrap_or(&open), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755))?;
    open.push("proxy");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    let other = ask(65534)?;
    ensure(!other.out.contains("runs") && !other.out.ends_with("200"), || {
        format!("another uid got in: {other:?}")
    })?;
    let log = || stage.rig.log().contains("65534").then_some(());
    moat_tests::clock::eventually("the log names the uid that was refused", SOON * 3, log)?;
    ensure(Duration::ZERO < SOON && ask(0)?.out.ends_with("200"), || {
        "its owner is refused afterwards".to_owned()
    })
}
