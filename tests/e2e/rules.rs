//! Rules of docs/PROTOCOL.md that no other end-to-end test holds, and whether each rule of a document has a test at all.

use std::{collections::BTreeSet, fs, path::Path};

use moat_tests::{
    Outcome, console::http::Body, inside::Request, listen::Listening, parts::Part, trouble::ensure,
};
use serde_json::json;

use crate::{
    Test,
    stage::{Stage, fault},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("every_rule_has_a_test", &[], every_rule_has_a_test),
    Test::new("r1_r3_the_target_and_the_upstream_s_own_name_arrive", SANDBOX, target_and_host),
    Test::new("r2_r5_r6_headers_arrive_as_they_were_sent", SANDBOX, headers),
    Test::new("r8_bodies_arrive_byte_for_byte", SANDBOX, bodies),
    Test::new("r12_trouble_never_looks_like_an_old_server", SANDBOX, trouble),
    Test::new("r21_what_stays_at_the_bridge", SANDBOX, stays),
];

fn target_and_host() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for method in ["POST", "GET", "DELETE"] {
        let request = match method {
            "POST" => Request::rpc("/mcp/open/ok/below?a=b%20c&a=d", 7, "ping"),
            method => Request::new(method, "/mcp/open/ok/below?a=b%20c&a=d"),
        };
        inside.answer(&request)?;
        let arrived = stage.open.seen.requests().pop();
        let authority = stage.open.url().replace("http://", "");
        let right = arrived.as_ref().is_some_and(|request| {
            request.method == method
                && request.target == "/ok/below?a=b%20c&a=d"
                && request.values("host") == [authority.as_str()]
        });
        ensure(right, || format!("{method}: {arrived:?}"))?;
    }
    Ok(())
}

fn headers() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let notification = Body::Text("{\"jsonrpc\":\"2.0\",\"method\":\"n\"}".to_owned());
    let bare =
        Request::new("POST", "/mcp/open/ok").header("Content-Type", "application/json").body(notification);
    let post = || bare.clone();
    let kept =
        [("x-unknown", "One,  two"), ("mcp-param-city", "=?base64?WsO8cmljaA==?="), ("last-event-id", "7/a")];
    let dropped = [
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Cookie", "a=b"),
        ("Origin", "http://localhost"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Authorization", "Bearer of-somebody"),
    ];
    let all = kept.iter().chain(&dropped);
    let answer = inside.answer(&all.fold(post(), |request, (name, value)| request.header(name, value)))?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    let last = || stage.open.seen.requests().pop().map(|request| request.headers).unwrap_or_default();
    let arrived = last();
    let has = |name: &str| arrived.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    for (name, value) in kept {
        ensure(arrived.contains(&(name.to_owned(), value.to_owned())), || {
            format!("R2: {name}: {arrived:?}")
        })?;
    }
    for (name, _) in dropped {
        ensure(!has(name), || format!("R2: {name} arrived: {arrived:?}"))?;
    }
    // R5, R6: neither is there unless the agent said it.
    ensure(!has("accept") && !has("mcp-protocol-version"), || format!("invented: {arrived:?}"))?;
    for (name, value) in
        [("accept", "*/*"), ("accept", "text/plain;q=0"), ("mcp-protocol-version", "1999-12-31")]
    {
        let answer = inside.answer(&post().header(name, value))?;
        let arrived = last();
        let said: Vec<&(String, String)> = arrived.iter().filter(|(known, _)| known == name).collect();
        let same = said == [&(name.to_owned(), value.to_owned())];
        ensure(answer.status == 200 && same, || format!("R5, R6: {name}: {value}: {arrived:?} {answer:?}"))?;
    }
    Ok(())
}

fn bodies() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    // Numbers as they were written, keys in their order, spaces, escapes: nothing was written anew.
    let odd = "\n {\"params\" : {\"b\":1.50,\"a\":1e2, \"\\u0063\":\"\\/ \\u00fc\"},\t\"method\":\"x\",\"id\":7,\"jsonrpc\":\"2.0\"} \n";
    for request in [fault("ok"), Request::rpc("/mcp/open/ok", 7, "x")] {
        let answer = inside.answer(&request.body(Body::Text(odd.to_owned())))?;
        ensure(answer.status == 200, || format!("{answer:?}"))?;
    }
    for seen in [&stage.faults.seen, &stage.open.seen] {
        let body = seen.requests().pop().map(|request| request.body).unwrap_or_default();
        ensure(body == odd.as_bytes(), || format!("{:?}", String::from_utf8_lossy(&body)))?;
    }
    Ok(())
}

fn trouble() -> Outcome {
    let closed = { Listening::tcp(|stream| async move { drop(stream) })?.port() };
    let hangs_up = Listening::tcp(|stream| async move { drop(stream) })?;
    let stage = Stage::with(&format!(
        "  - name: closed\n    url: http://127.0.0.1:{closed}/mcp\n  - name: hangs\n    url: http://127.0.0.1:{}/mcp\n",
        hangs_up.port()
    ))?;
    let inside = stage.rig.console()?;
    for path in [
        "closed",
        "hangs",
        "faults/status/401",
        "faults/status/403",
        "faults/redirect?to=/ok",
        "open/redirect?to=/ok",
    ] {
        for request in [
            Request::rpc(&format!("/mcp/{path}"), 7, "tools/call"),
            Request::get(&format!("/mcp/{path}")),
            Request::new("DELETE", &format!("/mcp/{path}")),
        ] {
            let answer = inside.answer(&request)?;
            ensure((502..=504).contains(&answer.status) && !answer.kind().is_empty(), || {
                format!("{path}: {request:?}: {answer:?}")
            })?;
        }
    }
    Ok(())
}

fn stays() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let answer = inside.answer(&Request::rpc("/mcp/open/headers", 7, "x"))?;
    ensure(answer.status == 200 && answer.value("x-kept") == Some("yes"), || format!("{answer:?}"))?;
    for name in ["location", "set-cookie", "www-authenticate", "alt-svc", "strict-transport-security"] {
        ensure(answer.value(name).is_none(), || format!("{name}: {answer:?}"))?;
    }
    let mut seen = stage.open.seen.requests();
    inside.answer(&Request::rpc("/mcp/open/headers", 8, "x"))?;
    seen = stage.open.seen.requests().split_off(seen.len());
    let cookies: Vec<_> = seen.iter().flat_map(|request| request.values("cookie")).collect();
    ensure(cookies.is_empty(), || format!("a cookie came back: {cookies:?}"))?;
    let error = inside.answer(&Request::rpc("/mcp/open/redirect?to=http://evil.example/", 7, "x"))?;
    ensure(
        error.json()["error"]["data"]
            == json!({"source": "moat", "kind": "redirect_refused", "server": "open"}),
        || format!("{error:?}"),
    )
}

/// A document's rules of one letter: a row for each, in their order, whose last cell names tests that exist.
struct Rules {
    document: &'static str,
    letter: &'static str,
    count: usize,
    /// A test's own name has to name the rule as well: `r4_...`, `..._r16_r18_...`.
    in_names: bool,
}

const fn rules(document: &'static str, letter: &'static str, count: usize) -> Rules {
    Rules { document, letter, count, in_names: false }
}

const DOCUMENTED: [Rules; 7] = [
    // Each of these tests was seen to fail when its rule was broken.
    Rules { document: "docs/CONFORMANCE.md", letter: "R", count: 24, in_names: true },
    rules("docs/POLICY-RULES.md", "P", 46),
    rules("docs/POLICY-RULES.md", "C", 27),
    rules("docs/OAUTH-RULES.md", "O", 17),
    rules("docs/OAUTH-RULES.md", "K", 8),
    rules("docs/OAUTH-RULES.md", "F", 21),
    rules("docs/OAUTH-RULES.md", "A", 16),
];

/// What is not built says so, and has no test.
fn every_rule_has_a_test() -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut known = BTreeSet::new();
    for part in ["shared", "init", "sidecar", "host-bridge", "tests"] {
        for directory in ["src", "tests", "e2e"].map(|name| root.join(part).join(name)) {
            if directory.is_dir() {
                all_names(&directory, &mut known)?;
            }
        }
    }
    for rules in &DOCUMENTED {
        rules.hold(&fs::read_to_string(root.join(rules.document))?, &known)?;
    }
    Ok(())
}

impl Rules {
    fn hold(&self, document: &str, known: &BTreeSet<String>) -> Outcome {
        let Self { letter, count, .. } = *self;
        let row_of = |line: &str| {
            let number = line.strip_prefix("| ")?.strip_prefix(letter)?.split_once(" |")?.0;
            number.parse::<usize>().ok()
        };
        let rows: Vec<(usize, &str)> =
            document.lines().filter_map(|line| Some((row_of(line)?, line))).collect();
        ensure(rows.iter().map(|(number, _)| *number).eq(1..=count), || {
            let found: Vec<usize> = rows.iter().map(|(number, _)| *number).collect();
            format!("{}: {letter}1 to {letter}{count} in their order, not {found:?}", self.document)
        })?;
        for (number, row) in rows {
            let rule = format!("{}: {letter}{number}", self.document);
            let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
            let named: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
            ensure(named.is_empty() == row.contains("**not built**"), || {
                format!("{rule}: which test holds it?")
            })?;
            for name in named.into_iter().filter(|name| name.contains("::")) {
                ensure(known.contains(name), || format!("{rule}: there is no test {name}"))?;
                let word = format!("{letter}{number}").to_lowercase();
                let says_so = name.split(['_', ':']).any(|part| part == word);
                ensure(says_so || !self.in_names, || format!("{rule}: {name} does not name it"))?;
            }
        }
        Ok(())
    }
}

/// Every test of the sources below a directory, as `module::name`.
fn all_names(directory: &Path, known: &mut BTreeSet<String>) -> Outcome {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            all_names(&path, known)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let end_to_end = path.components().any(|part| part.as_os_str() == "e2e");
            let source = fs::read_to_string(&path)?;
            known.extend(names(&source, end_to_end).into_iter().map(|name| format!("{module}::{name}")));
        }
    }
    Ok(())
}

/// The names of the tests in a source: functions under an attribute for tests, and what is handed to `Test::new`.
fn names(source: &str, end_to_end: bool) -> Vec<String> {
    let mut names = Vec::new();
    if end_to_end {
        let after = source.split("Test::new(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
        names.extend(after.filter_map(|rest| rest.split('"').next()).map(ToOwned::to_owned));
    }
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let function = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
        match function {
            Some(rest) if is_test => names.extend(rest.split(['(', '<']).next().map(ToOwned::to_owned)),
            _ => {}
        }
        is_test = line.starts_with("#[test")
            || line.starts_with("#[tokio::test")
            || (is_test && function.is_none());
    }
    names
}
