//! Granting: in a browser, with a pasted address, by a device; with clients of every kind; and what a failure leaves.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use moat_tests::{Outcome, Trouble, clock::eventually, rig::Ran, trouble::ensure};
use serde_json::json;

use super::{OAuth, STUB};

pub(super) fn a1_granted_and_used() -> Outcome {
    let stage = OAuth::new()?;
    let granted = stage.grant(&[])?.expect_code(0)?;
    for text in [
        "Attempting OAuth discovery for ",
        "Discovered OAuth endpoints.",
        "Registering OAuth client...",
        "Open this URL in your browser to authorize:\n\n  https://localhost:",
        "OAuth credential 'oauth:mine' saved to ",
        "(auto-refresh enabled)",
        "Use in moat.yaml:",
    ] {
        ensure(granted.err.contains(text), || format!("no {text:?} in {}", granted.err))?;
    }
    let file = stage.rig.home().join("credentials/oauth:mine.enc");
    let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure(mode == 0o600, || format!("mode {mode:o}"))?;
    let shown = stage.shown()?;
    ensure(shown["hosts"] == json!(["localhost"]) && shown["oauth"]["client"] == "dcr", || {
        shown.to_string()
    })?;
    // A second grant uses the client and the port again.
    stage.grant(&[])?.expect_code(0)?;
    let again = stage.grant(&[])?.expect_code(0)?;
    ensure(!again.err.contains("Registering"), || again.err.clone())?;
    // The command that an agent's error names works in any directory.
    let mut elsewhere = stage.rig.moat(&["grant", "oauth", "mine", "--timeout", "20s"])?;
    Ran::from(elsewhere.current_dir(stage.rig.user_home()).output()?).expect_code(0)?;

    let inside = stage.rig.console()?;
    for modern in [true, false] {
        let headers = [("Authorization", STUB)];
        let answer = inside.visit("mine", modern, &headers, &[("echo", json!({"text": "hello"}))])?;
        ensure(answer.to_string().contains("mine: hello"), || answer.to_string())?;
    }
    let token = stage.token()?;
    let bearer = format!("Bearer {token}");
    let seen = stage.server.seen.requests();
    let with_it = seen.iter().filter(|request| request.values("authorization") == [bearer.as_str()]).count();
    ensure(with_it >= 3, || format!("{with_it} requests with the token"))?;
    let environ = inside.environ()?.to_string();
    let argv = [
        "sh",
        "-c",
        "cat /proc/[0-9]*/cmdline; grep -rs . \"$HOME\" /workspace 2>/dev/null | head -c 1000000; true",
    ];
    let searched = inside.exec(&argv, &[])?;
    inside.end()?;
    let home = stage.rig.home();
    let mut all = vec![environ, searched.out, granted.err, stage.rig.log()];
    all.extend(stage.rig.lines("audit.jsonl").iter().map(ToString::to_string));
    all.extend(stage.rig.lines("network.jsonl").iter().map(ToString::to_string));
    all.push(stage.rig.run(&["status", "--json"])?.out);
    all.push(stage.rig.run(&["grant", "show", "oauth:mine", "--json"])?.out);
    ensure(all.iter().all(|text| !text.contains(&token)), || "A16: the token is somewhere else".to_owned())?;
    let names: Vec<_> =
        fs::read_dir(home.join("credentials"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure(names.len() == 2, || format!("only the record and the lock: {names:?}"))
}

pub(super) fn a1_clients_of_every_kind() -> Outcome {
    let stage = OAuth::new()?;
    let secret_by_flag = ["--client-id", "secret", "--client-secret", "s:+/ %"];
    for (flags, kind) in [(&["--client-id", "public"][..], "pre"), (&secret_by_flag, "pre")] {
        // One client is not shown to two records: each grant stands alone.
        stage.grant(flags)?.expect_code(0)?;
        ensure(stage.shown()?["oauth"]["client"] == kind, || format!("{:?}", stage.shown()))?;
        stage.rig.run(&["revoke", "oauth:mine"])?.expect_code(0)?;
    }
    // From the file; a mistake in it is told.
    let file = stage.rig.home().join("oauth/mine.yaml");
    fs::create_dir_all(stage.rig.home().join("oauth"))?;
    let issuer = &stage.authority.issuer;
    let text = format!(
        "auth_url: {issuer}/auth\ntoken_url: {issuer}/token\nclient_id: secret\nclient_secret: 's:+/ %'\nissuer: {issuer}\n\
         scopes: [mcp:read]\n"
    );
    fs::write(&file, &text)?;
    stage.grant(&[])?.expect_code(0)?;
    ensure(stage.shown()?["scopes"] == json!(["mcp:read"]), || format!("{:?}", stage.shown()))?;
    ensure(fs::read_to_string(&file)? == text, || "F15: the file was written".to_owned())?;
    fs::write(&file, "client-id: x\n")?;
    let refused = stage.grant(&[])?.expect_code(1)?;
    ensure(refused.err.contains("invalid oauth config") && refused.err.contains("mine.yaml:1:"), || {
        refused.err
    })
}

/// A command that does not outlive its test.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Starts a grant whose address nobody opens by itself; gives what it printed so far.
fn waiting(stage: &OAuth, flags: &[&str], wanted: &str) -> Outcome<(Waiting, PathBuf, String)> {
    let said = stage.rig.user_home().join("said");
    let file = fs::File::create(&said)?;
    let arguments = [&["grant", "oauth", "mine", "--timeout", "25s"], flags].concat();
    let mut command = stage.rig.moat(&arguments)?;
    command.env_remove("BROWSER");
    let child = Waiting(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file).spawn()?);
    let text = eventually("the address is printed", Duration::from_secs(10), || {
        fs::read_to_string(&said).ok().filter(|text| text.contains(wanted))
    })?;
    Ok((child, said, text))
}

/// The word after a text.
fn after<'t>(text: &'t str, before: &str) -> Outcome<&'t str> {
    let found = text.split_once(before).and_then(|(_, rest)| rest.split_whitespace().next());
    found.ok_or_else(|| Trouble::new(format!("no {before:?} in {text}")))
}

pub(super) fn a10_pasted() -> Outcome {
    let stage = OAuth::new()?;
    a_pasted_address(&stage)?;
    stage.token().map(drop)
}

pub(super) fn a_pasted_address(stage: &OAuth) -> Outcome {
    let (mut child, said, text) = waiting(stage, &["--client-id", "public"], "ssh -L")?;
    let url = after(&text, "to authorize:")?;
    // The browser is on another machine: it ends on an address that leads nowhere there.
    let jar = stage.rig.user_home().join("jar2").to_string_lossy().into_owned();
    let trust = stage.rig.trust().to_string_lossy().into_owned();
    let mut ended = url.to_owned();
    for _ in 0..10 {
        let page = Command::new("curl")
            .args([
                "-sS",
                "--cacert",
                &trust,
                "-c",
                &jar,
                "-b",
                &jar,
                "-o",
                "/dev/null",
                "-w",
                "%{redirect_url}",
            ])
            .arg(&ended)
            .output()?;
        ended = String::from_utf8(page.stdout)?;
        if ended.contains("/callback?") {
            break;
        }
    }
    ensure(ended.contains("/callback?"), || format!("it ends on {ended}"))?;
    let mut stdin = child.0.stdin.take().ok_or_else(|| Trouble::new("no stdin"))?;
    writeln!(stdin, "just-a-code")?;
    writeln!(stdin, "http://127.0.0.1:1/callback?code=c&state=of-another-sign-in")?;
    writeln!(stdin, "{ended}")?;
    drop(stdin);
    ensure(child.0.wait()?.success(), || fs::read_to_string(&said).unwrap_or_default())?;
    let text = fs::read_to_string(&said)?;
    ensure(text.contains("paste all of it") && text.contains("does not belong to this sign-in"), || {
        text.clone()
    })?;
    let code = after(&ended.replace('&', " "), "code=")?.to_owned();
    ensure(!text.contains(&code), || "O9: the code was printed".to_owned())
}

pub(super) fn a10_by_device() -> Outcome {
    let stage = OAuth::new()?;
    a_device(&stage)?;
    ensure(stage.shown()?["oauth"]["auto_refresh"] == true, || format!("{:?}", stage.shown()))
}

pub(super) fn a_device(stage: &OAuth) -> Outcome {
    let (mut child, said, text) = waiting(stage, &["--device"], "enter the code: ")?;
    let (page, code) =
        (after(&text, "any device:")?.to_owned(), after(&text, "enter the code: ")?.to_owned());
    approve_device(stage, &page, &code)?;
    ensure(child.0.wait()?.success(), || fs::read_to_string(&said).unwrap_or_default())
}

/// Enters the code and says yes, as a person with a browser would.
fn approve_device(stage: &OAuth, page: &str, code: &str) -> Outcome {
    let jar = stage.rig.user_home().join("jar3").to_string_lossy().into_owned();
    let trust = stage.rig.trust().to_string_lossy().into_owned();
    let curl = |arguments: &[&str]| -> Outcome<String> {
        let ran = Command::new("curl")
            .args(["-sSL", "--cacert", &trust, "-c", &jar, "-b", &jar])
            .args(arguments)
            .output()?;
        ensure(ran.status.success(), || String::from_utf8_lossy(&ran.stderr).into_owned())?;
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    };
    let hidden = |form: &str, name: &str| -> Option<String> {
        let (_, rest) = form.split_once(&format!("name=\"{name}\" value=\""))?;
        rest.split('"').next().map(str::to_owned)
    };
    let form = curl(&[page])?;
    let xsrf = hidden(&form, "xsrf").ok_or_else(|| Trouble::new(format!("no form: {form}")))?;
    let confirm = curl(&["-d", &format!("xsrf={xsrf}&user_code={code}"), page])?;
    let xsrf = hidden(&confirm, "xsrf").ok_or_else(|| Trouble::new(format!("no confirmation: {confirm}")))?;
    curl(&["-d", &format!("xsrf={xsrf}&user_code={code}&confirm=yes"), page]).map(drop)
}

pub(super) fn f7_an_empty_token_replaces_nothing() -> Outcome {
    let stage = OAuth::granted()?;
    let file = stage.rig.home().join("credentials/oauth:mine.enc");
    let before = fs::read(&file)?;
    for fault in ["empty", "redirect", "unavailable", "lost"] {
        stage.authority.set(&format!("fault={fault}&times=1"))?;
        let failed = stage.grant(&[])?.expect_code(1)?;
        ensure(
            failed.err.contains("Error: exchanging code: token endpoint")
                && !failed.err.contains("SECRET-MARKER"),
            || format!("{fault}: {}", failed.err),
        )?;
        ensure(fs::read(&file)? == before, || format!("{fault}: O4: the old credential was touched"))?;
    }
    Ok(())
}
