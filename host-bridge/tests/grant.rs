//! `moat grant` and `moat revoke` as users run them: the real binary, pipes and a real terminal, a throw-away home.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use test_case::test_case;

const SECRET: &str = "ctx7sk-s3cr3t-0123456789";

struct Rig {
    dir: tempfile::TempDir,
}

fn rig() -> Rig {
    Rig { dir: tempfile::tempdir().unwrap() }
}

impl Rig {
    fn home(&self) -> std::path::PathBuf {
        self.dir.path().join("home")
    }

    fn set_up<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env_clear()
            .env("MOAT_HOME", self.home())
            .env("MOAT_KEYRING_BACKEND", "file")
            .current_dir(self.dir.path())
    }

    fn moat(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat"));
        self.set_up(&mut command).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A grant whose terminal is the controlling one, as a login makes it, and which Ctrl-C ends: who is started in the background may
    /// have been told to ignore that.
    #[cfg(target_os = "linux")]
    fn on_its_terminal(&self) -> Command {
        let mut command = Command::new("env");
        self.set_up(&mut command)
            .env("PATH", "/usr/bin:/bin")
            .args(["--default-signal=INT", "setsid", "--ctty", "--wait"])
            .args([env!("CARGO_BIN_EXE_moat"), "grant", "mcp", "context7"]);
        command
    }

    /// Runs it with `input` on a pipe.
    fn run(&self, args: &[&str], input: &str) -> Ran {
        ran(self.moat(args), input)
    }
}

#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn ran(mut command: Command, input: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // It may not read at all.
    let _closed = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Ran {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test_case("ctx7sk-s3cr3t-0123456789"; "without a line's end")]
#[test_case("ctx7sk-s3cr3t-0123456789\n"; "with it")]
#[test_case("  ctx7sk-s3cr3t-0123456789 \r\nmore\n"; "untidy")]
fn piped(input: &str) {
    let rig = rig();
    let granted = rig.run(&["grant", "mcp", "context7"], input);
    let file = rig.home().join("credentials/mcp-context7.enc");
    let expected = format!(
        "Enter credential for MCP server 'context7'\n\
         This will be stored as grant 'mcp-context7'\n\n\
         Validating credential...\n\n\
         MCP credential 'mcp-context7' saved to {}\n\n\
         Configure in moat.yaml:\n\n\
         mcp:\n  - context7\n\n\
         Then run: moat claude ./workspace\n",
        file.display()
    );
    assert_eq!((granted.code, granted.out.as_str(), granted.err), (0, "", expected));
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    assert_eq!(mode(&rig.home().join("encryption.key")), 0o600);
    let shown = rig.run(&["grant", "show", "mcp:context7", "--show-token"], "");
    assert!(shown.out.contains(SECRET), "{shown:?}");
    let masked = rig.run(&["grant", "show", "mcp-context7"], "");
    assert!(masked.out.contains("Token:     ****************6789\n") && !masked.out.contains(SECRET));
}

#[test]
fn nothing_given() {
    let rig = rig();
    let refused = rig.run(&["grant", "mcp", "context7"], "\n");
    assert_eq!(refused.code, 1);
    assert!(refused.err.ends_with("\nError: no credential provided\n"), "{refused:?}");
    assert!(!rig.home().join("credentials").exists());
}

#[test_case("s3cr3t!", "Warning: Credential seems short. MCP server may reject it.\n", 0; "short")]
#[test_case("s3cr3t\u{7}t0ken", "Error: this credential cannot be sent in a header", 1; "control character")]
fn odd_credentials(token: &str, says: &str, code: i32) {
    let granted = rig().run(&["grant", "mcp", "context7"], token);
    assert_eq!(granted.code, code);
    assert!(granted.err.contains(says) && !granted.err.contains(token), "{granted:?}");
}

#[test]
fn listed_and_revoked() {
    let rig = rig();
    let none = rig.run(&["grant", "list"], "");
    assert_eq!(none.out, "No credentials found.\n\nGrant a credential with: moat grant <provider>\n");
    rig.run(&["grant", "mcp", "context7"], SECRET);
    rig.run(&["grant", "github"], SECRET);
    let listed = rig.run(&["grants", "list"], "");
    assert_eq!(
        listed.out,
        "PROVIDER      TYPE   GRANTED\ngithub        token  just now\nmcp-context7  token  just now\n"
    );
    let json = rig.run(&["grant", "list", "--json"], "").out;
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&rows[1]["provider"], &rows[1]["type"]), (&"mcp-context7".into(), &"token".into()));
    assert!(rows[1]["granted_at"].is_string() && !json.contains(SECRET));

    let revoked = rig.run(&["revoke", "mcp:context7"], "");
    assert_eq!((revoked.code, revoked.err.as_str()), (0, "mcp-context7 credential revoked\n"));
    let again = rig.run(&["revoke", "mcp-context7"], "");
    assert_eq!((again.code, again.err.as_str()), (1, "Error: no credential found for mcp-context7\n"));
    rig.run(&["--profile", "work", "grant", "mcp", "context7"], SECRET);
    let work = rig.run(&["--profile", "work", "revoke", "mcp-context7"], "");
    assert_eq!(work.err, "mcp-context7 credential revoked (profile: work)\n");
}

#[test]
fn hosts_are_bound_and_said() {
    let rig = rig();
    let yaml =
        "mcp:\n  - {name: mine, url: 'https://mine.example/mcp', auth: {grant: mcp-mine, header: X}}\n";
    fs::write(rig.dir.path().join("moat.yaml"), yaml).unwrap();
    let granted = rig.run(&["grant", "mcp", "mine"], SECRET);
    assert!(granted.err.contains("Bound to the hosts in this directory's moat.yaml: mine.example\n"));
    assert!(!granted.err.contains("Configure in moat.yaml"), "it is configured: {granted:?}");
    let hosts = |rig: &Rig| {
        let shown = rig.run(&["grant", "show", "mcp-mine", "--json"], "").out;
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["hosts"].to_string()
    };
    assert_eq!(hosts(&rig), r#"["mine.example"]"#);
    let allowed = rig.run(&["grant", "allow", "mcp-mine", "Two.example"], "");
    assert_eq!(allowed.err, "Grant 'mcp-mine' may now be sent to 'two.example'\n");
    assert_eq!(hosts(&rig), r#"["mine.example","two.example"]"#);
    // A new token keeps them; a URL replaces them.
    let again = rig.run(&["grant", "mcp", "mine"], SECRET);
    assert!(
        again.err.contains("Bound to the same hosts as before: mine.example, two.example\n"),
        "{again:?}"
    );
    rig.run(&["grant", "mcp", "mine", "--url", "http://localhost:3000/mcp"], SECRET);
    assert_eq!(hosts(&rig), r#"["localhost"]"#);
    assert_eq!(rig.run(&["grant", "allow", "mcp-none", "h"], "").code, 1);
}

#[test]
fn a_dry_run_changes_nothing() {
    let rig = rig();
    let dry = rig.run(&["--dry-run", "grant", "mcp", "context7"], SECRET);
    assert!(dry.code == 0 && dry.err.starts_with("Would save grant 'mcp-context7' to "), "{dry:?}");
    assert!(!rig.home().exists());
    rig.run(&["grant", "mcp", "mine"], SECRET);
    assert_eq!(rig.run(&["--dry-run", "grant", "allow", "mcp-mine", "h"], "").code, 0);
    assert!(rig.run(&["grant", "show", "mcp-mine"], "").out.contains("Hosts:     none yet\n"));
    assert_eq!(
        rig.run(&["--dry-run", "revoke", "mcp-mine"], "").err,
        "Would remove the credential of 'mcp-mine'\n"
    );
    assert_eq!(rig.run(&["revoke", "mcp-mine"], "").code, 0);
}

#[test_case(&["grant", "oauth", "mine"], 1, "Error: no OAuth configuration found for \"mine\"\n\nProvide one of:\n  1. CLI flags: --auth-url, --token-url, --client-id\n"; "oauth without anything")]
#[test_case(&["grant", "oauth", "a/b"], 1, "Error: invalid name: \"a/b\" contains invalid characters\n"; "oauth name")]
#[test_case(&["grant", "oauth", "a", "--auth-url", "http://h/x"], 2, "auth_url must use HTTPS (got \"http\")"; "oauth endpoint")]
#[test_case(&["grant", "oauth", "a", "--auth-url", "https://h/x"], 1, "Error: invalid OAuth flags: token-url is required\n"; "half of the endpoints")]
#[test_case(&["grant", "oauth", "a", "--auth-url", "https://h/x", "--token-url", "https://h/y"], 1, "Error: invalid OAuth flags: client-id is required\n"; "endpoints without a client")]
#[test_case(&["grant", "mcp", "a/b"], 1, "Error: invalid server name: \"a/b\" contains invalid characters\n"; "name")]
#[test_case(&["grant", "mcp", "a", "--url", "http://example.com/"], 2, "'url' must use HTTPS"; "url")]
#[test_case(&["grant", "show", "mcp-a"], 1, "Error: no credential found for mcp-a\n\nTo store one:\n  moat grant mcp a\n"; "missing")]
#[test_case(&["revoke", "gitlab"], 2, "unknown grant \"gitlab\""; "grant")]
#[test_case(&["--profile", "../x", "grant", "list"], 2, "invalid profile name \"../x\": must start with a letter or digit and contain only letters, digits, hyphens, and underscores"; "profile")]
fn refused(args: &[&str], code: i32, says: &str) {
    let refused = rig().run(args, SECRET);
    assert_eq!(refused.code, code, "{refused:?}");
    assert!(refused.err.contains(says), "{refused:?}");
}

#[test]
fn many_at_once_keep_one_key_and_whole_files() {
    let rig = rig();
    let tokens: Vec<String> = (0..8).map(|n| format!("{SECRET}-{n}")).collect();
    std::thread::scope(|scope| {
        let all: Vec<_> = tokens
            .iter()
            .map(|token| scope.spawn(|| rig.run(&["grant", "mcp", "context7"], token)))
            .collect();
        for one in all {
            let granted = one.join().unwrap();
            assert_eq!(granted.code, 0, "{granted:?}");
        }
    });
    let shown = rig.run(&["grant", "show", "mcp-context7", "--show-token"], "").out;
    assert!(tokens.iter().any(|token| shown.contains(token.as_str())), "{shown}");
    assert_eq!(fs::read_dir(rig.home().join("credentials")).unwrap().count(), 1);
}

/// A session bus that is named but not there: no keychain, no hanging, the file and one warning.
#[cfg(target_os = "linux")]
#[test]
fn without_a_keychain_the_file_is_used_and_said_once() {
    let rig = rig();
    let with_dead_bus = |name: &str| {
        let mut command = rig.moat(&["grant", "mcp", name]);
        command.env_remove("MOAT_KEYRING_BACKEND").env(
            "DBUS_SESSION_BUS_ADDRESS",
            format!("unix:path={}", rig.dir.path().join("no-bus").display()),
        );
        ran(command, SECRET)
    };
    let first = with_dead_bus("one");
    let warning = format!(
        "Warning: this machine has no keychain, so the encryption key is in {}.",
        rig.home().join("encryption.key").display()
    );
    assert!(first.code == 0 && first.err.contains(&warning), "{first:?}");
    let second = with_dead_bus("two");
    assert!(second.code == 0 && !second.err.contains("keychain"), "{second:?}");
}

/// On a terminal the credential is asked for, and what is typed is not shown.
#[cfg(target_os = "linux")]
#[test]
fn typed_on_a_terminal() {
    let rig = rig();
    let pty = nix::pty::openpty(None, None).unwrap();
    let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let mut command = rig.on_its_terminal();
    command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
    let mut child = command.spawn().unwrap();
    // The command holds copies of the terminal; with them gone, reading ends with the child.
    drop((command, pty.slave));
    let mut terminal = fs::File::from(pty.master);
    let mut screen = String::new();
    let mut bytes = [0; 1024];
    let mut typed = false;
    while let Ok(count @ 1..) = terminal.read(&mut bytes) {
        screen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        if !typed && screen.ends_with("Credential: ") {
            terminal.write_all(format!("{SECRET}\r").as_bytes()).unwrap();
            typed = true;
        }
    }
    assert!(child.wait().unwrap().success(), "{screen}");
    assert!(typed && screen.contains("saved to") && !screen.contains(SECRET), "{screen}");
    let shown = rig.run(&["grant", "show", "mcp-context7", "--show-token"], "").out;
    assert!(shown.contains(SECRET), "{shown}");
}

/// Ctrl-C while the echo is off must not leave the terminal so.
#[cfg(target_os = "linux")]
#[test]
fn interrupted_while_typing() {
    use nix::sys::termios::{LocalFlags, tcgetattr};

    let rig = rig();
    let pty = nix::pty::openpty(None, None).unwrap();
    let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let mut command = rig.on_its_terminal();
    command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
    let mut child = command.spawn().unwrap();
    let echoes = || tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
    let mut terminal = fs::File::from(pty.master.try_clone().unwrap());
    let mut screen = String::new();
    let mut bytes = [0; 1024];
    while !screen.ends_with("Credential: ") {
        let count = terminal.read(&mut bytes).unwrap();
        assert!(count > 0, "{screen}");
        screen.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    // The prompt is there a moment before the echo is off.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while echoes() {
        assert!(std::time::Instant::now() < deadline, "what is typed is hidden");
        std::thread::yield_now();
    }
    terminal.write_all(b"\x03").unwrap();
    assert!(!child.wait().unwrap().success(), "{screen}");
    assert!(echoes(), "the terminal is as it was");
}
