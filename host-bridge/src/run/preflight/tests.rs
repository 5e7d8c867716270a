//! Every report and every dialogue, word for word.

use std::{collections::VecDeque, fs, io, os::unix::fs::PermissionsExt};

use moat_shared::secret::Secret;

use super::*;
use crate::config;

/// Answers what it was told to; writes down what it hears.
#[derive(Debug, Default)]
struct Scripted {
    answers: VecDeque<Option<&'static str>>,
    heard: String,
}

impl Scripted {
    fn new<const N: usize>(answers: [Option<&'static str>; N]) -> Self {
        Self { answers: answers.into(), heard: String::new() }
    }
}

impl Ask for Scripted {
    fn question(&mut self, question: &str) -> io::Result<Option<String>> {
        let answer = self.answers.pop_front().expect("an answer");
        self.heard.push_str(&format!("{question}<{}>\n", answer.unwrap_or("EOF")));
        Ok(answer.map(str::to_owned))
    }
    fn secret(&mut self, prompt: &str) -> io::Result<Secret<String>> {
        self.heard.push_str(&format!("{prompt}<hidden>\n"));
        Ok(Secret::new(self.answers.pop_front().expect("a secret").unwrap_or_default().to_owned()))
    }
    fn say(&mut self, text: &str) {
        self.heard.push_str(text);
        self.heard.push('\n');
    }
}

struct Rig {
    dir: tempfile::TempDir,
    home: Home,
    env: Environment,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path().join("home"));
    Rig { home, dir, env: Environment::from([("MOAT_KEYRING_BACKEND", "file")]) }
}

impl Rig {
    fn config(&self, text: &str) -> Config {
        fs::write(self.dir.path().join("moat.yaml"), text).unwrap();
        config::load(self.dir.path()).unwrap()
    }
    fn store(&self) -> Store {
        Store::open(&self.home, &self.env, None)
    }
    fn put(&self, grant: &str, hosts: &[&str]) {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let token = Secret::new("s3cr3t-t0ken".to_owned());
        let now = Timestamp::UNIX_EPOCH;
        self.store().put(&Credential::new(grant.parse().unwrap(), token, hosts, now)).unwrap();
    }
    fn silently(&self, text: &str) -> String {
        let checked = preflight(&self.config(text), &self.home, &self.env, None, PromptPolicy::Never);
        checked.map_or_else(|failure| failure.text, |()| "ready".to_owned())
    }
    /// What was heard, and how it ended.
    fn asked<const N: usize>(&self, text: &str, answers: [Option<&'static str>; N]) -> String {
        let mut person = Scripted::new(answers);
        let checked = with_prompts(&self.config(text), &self.store(), None, &mut person, &|grant| {
            Err(crate::cli::Failure::new(format!("would sign in for {grant}")))
        });
        assert!(person.answers.is_empty(), "not asked for: {:?}", person.answers);
        let end = checked.map_or_else(|failure| failure.text, |()| "ready".to_owned());
        format!("{}--\n{end}", person.heard)
    }
}

const MINE: &str =
    "mcp:\n  - {name: mine, url: 'https://mcp.mine.example/', auth: {grant: mcp-mine, header: X-Key}}\n";

#[test]
fn a_missing_grant() {
    insta::assert_snapshot!(rig().silently("mcp: [context7]\n"), @r"
    MCP server 'context7' requires grant 'mcp-context7' but it's not configured

    To fix:
      moat grant mcp context7

    Then run again.
    ");
}

#[test]
fn everything_that_is_missing_in_one_report() {
    let rig = rig();
    rig.put("mcp-bound", &["elsewhere.example"]);
    let text = "\
mcp:
  - context7
  - langfuse-eu
  - langfuse-us
  - {name: bound, url: 'https://here.example/', auth: {grant: mcp-bound, header: X}}
  - {name: open, url: 'https://open.example/'}
grants: [github, openai]
";
    insta::assert_snapshot!(rig.silently(text), @r"
    MCP server 'context7' requires grant 'mcp-context7' but it's not configured
    MCP server 'langfuse-eu' requires grant 'mcp-langfuse' but it's not configured
    MCP server 'langfuse-us' requires grant 'mcp-langfuse' but it's not configured
    MCP server 'bound': grant 'mcp-bound' was not granted for host 'here.example'

    To fix:
      moat grant mcp context7
      moat grant mcp langfuse
      moat grant allow mcp-bound here.example

    Then run again.

    missing grants:
      - github: not configured
        Run: moat grant github
      - openai: not configured
        Run: moat grant openai

    Configure the grants above, then run again.
    ");
}

#[test]
fn commands_name_the_profile() {
    let rig = rig();
    let profile = "work".parse().unwrap();
    let config = rig.config("mcp: [context7]\n");
    let failure = preflight(&config, &rig.home, &rig.env, Some(&profile), PromptPolicy::Never).unwrap_err();
    assert!(failure.text.contains("\n  moat grant mcp context7 --profile work\n"), "{failure}");
}

#[test]
fn nothing_is_needed_or_all_is_there() {
    let rig = rig();
    assert_eq!(rig.silently(""), "ready");
    assert_eq!(rig.silently("mcp: [{name: a, url: 'https://h/'}]\n"), "ready");
    rig.put("mcp-context7", &[]);
    rig.put("github", &[]);
    assert_eq!(rig.silently("mcp: [context7]\ngrants: [github]\n"), "ready");
}

#[test]
fn a_changed_key() {
    let rig = rig();
    rig.put("mcp-context7", &[]);
    rig.put("github", &[]);
    let another = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, [1; 32]);
    fs::write(rig.home.key_file(), another).unwrap();
    insta::assert_snapshot!(rig.silently("mcp: [context7]\ngrants: [github]\n"), @r"
    MCP server 'context7' requires grant 'mcp-context7' but it cannot be decrypted: the encryption key has changed

    To fix:
      moat grant mcp context7

    Then run again.

    missing grants:
      - github: encryption key changed
        Run: moat grant github

    Configure the grants above, then run again.
    ");
}

#[test]
fn a_key_that_others_may_read() {
    let rig = rig();
    rig.put("mcp-context7", &[]);
    fs::set_permissions(rig.home.key_file(), fs::Permissions::from_mode(0o644)).unwrap();
    let text = rig.silently("mcp: [context7]\n").replace(&rig.home.root().display().to_string(), "HOME");
    insta::assert_snapshot!(text, @r"
    MCP server 'context7' requires grant 'mcp-context7' but it cannot be read: HOME/encryption.key may be read by others (mode 644)

    To fix:
      chmod 600 HOME/encryption.key

    Then run again.
    ");
}

#[test]
fn a_file_of_another_grant() {
    let rig = rig();
    rig.put("mcp-other", &[]);
    let dir = rig.home.credentials(None);
    fs::rename(dir.join("mcp-other.enc"), dir.join("mcp-context7.enc")).unwrap();
    let text = rig.silently("mcp: [context7]\n").replace(&rig.home.root().display().to_string(), "HOME");
    insta::assert_snapshot!(text, @r#"
    MCP server 'context7' requires grant 'mcp-context7' but it cannot be read: HOME/credentials/mcp-context7.enc holds the credential of "mcp-other", not of 'mcp-context7'

    To fix:
      moat revoke mcp-context7
      moat grant mcp context7

    Then run again.
    "#);
}

#[test]
fn granted_on_the_terminal() {
    let rig = rig();
    insta::assert_snapshot!(rig.asked("mcp: [context7]\n", [Some(""), Some("s3cr3t-t0ken")]).replace(&rig.home.root().display().to_string(), "HOME"), @r"

    1 grant(s) needed before this run can start:
      • mcp-context7

    Grant mcp-context7 now? [Y/n] <>
      Credential: <hidden>
    Validating credential...
      ✓ mcp-context7 granted
    --
    ready
    ");
}

#[test]
fn a_host_is_confirmed_once() {
    let rig = rig();
    insta::assert_snapshot!(rig.asked(MINE, [Some("y"), Some("s3cr3t-t0ken"), Some("y")]), @r"

    1 grant(s) needed before this run can start:
      • mcp-mine

    Grant mcp-mine now? [Y/n] <y>
      Credential: <hidden>
    Validating credential...
      ✓ mcp-mine granted
    Send grant 'mcp-mine' to host 'mcp.mine.example'? [y/N] <y>
    --
    ready
    ");
    assert_eq!(rig.silently(MINE), "ready");
}

#[test]
fn a_host_is_not_bound_by_silence() {
    for answer in [None, Some(""), Some("n")] {
        let rig = rig();
        rig.put("mcp-mine", &[]);
        let heard = rig.asked(MINE, [answer]);
        assert!(heard.ends_with(
            "MCP server 'mine': grant 'mcp-mine' was not granted for host 'mcp.mine.example'\n\n\
             To fix:\n  moat grant allow mcp-mine mcp.mine.example\n\nThen run again."
        ));
        assert!(rig.store().read(&"mcp-mine".parse().unwrap()).unwrap().hosts.is_empty());
    }
}

#[test]
fn skipped_and_aborted() {
    let text = "mcp: [context7]\ngrants: [github]\n";
    insta::assert_snapshot!(rig().asked(text, [Some("n"), None]), @r"

    2 grant(s) needed before this run can start:
      • github
      • mcp-context7

    Grant github now? [Y/n] <n>
      Skipped. Run later with: moat grant github
    Grant mcp-context7 now? [Y/n] <EOF>
      Aborted.
    --
    MCP server 'context7' requires grant 'mcp-context7' but it's not configured

    To fix:
      moat grant mcp context7

    Then run again.

    missing grants:
      - github: not configured
        Run: moat grant github

    Configure the grants above, then run again.
    ");
}

#[test]
fn an_empty_credential_grants_nothing() {
    let heard = rig().asked("mcp: [context7]\n", [Some("y"), Some("")]);
    assert!(heard.contains("\n  no credential provided\n"), "{heard}");
    assert!(heard.contains("it's not configured"), "{heard}");
}

#[test]
fn nobody_is_asked_who_does_not_want_to_be() {
    let env = Environment::from([("MOAT_NO_PROMPT", "1")]);
    assert_eq!(PromptPolicy::of(false, &env), PromptPolicy::Never);
    assert_eq!(PromptPolicy::of(true, &Environment::default()), PromptPolicy::Never);
}

#[test]
fn what_cannot_be_honoured_stops_the_run() {
    let rig = rig();
    let check = |config: &Config| preflight(config, &rig.home, &rig.env, None, PromptPolicy::Never);
    fs::create_dir_all(rig.home.root()).unwrap();
    fs::write(rig.home.config_file(), "debug: 1\n").unwrap();
    let failure = check(&rig.config("")).unwrap_err();
    assert_eq!(failure.text, "loading config: config.yaml:1: 'debug' must be a mapping, not a number");
}

#[test]
fn an_oauth_grant_is_signed_in_for_and_not_typed() {
    let heard = rig().asked("mcp: [linear]\n", [Some("y")]);
    assert!(heard.contains("would sign in for oauth:linear"), "{heard}");
    assert!(heard.contains("To fix:\n  moat grant oauth linear"), "{heard}");
}

#[test]
fn an_oauth_grant_that_is_dead_stops_the_start() {
    let rig = rig();
    let check = |rejected: bool, expires: &str| {
        let mut credential = crate::credentials::Credential::new(
            "oauth:linear".parse().unwrap(),
            moat_shared::secret::Secret::new("token".to_owned()),
            [].into(),
            jiff::Timestamp::UNIX_EPOCH,
        );
        credential.expires_at = Some(expires.parse().unwrap());
        let mut record = Record::of(credential);
        if rejected {
            record = record.rejected_for(crate::oauth::refresh::Class::InvalidGrant, jiff::Timestamp::now());
        } else {
            record.set(crate::oauth::record::key::REFRESH_TOKEN, Some("r"));
        }
        rig.store().put(record.credential()).unwrap();
        let config = rig.config("mcp: [linear]\n");
        preflight(&config, &rig.home, &rig.env, None, PromptPolicy::Never).map_err(|failure| failure.text)
    };
    let (past, future) = ("2026-01-01T00:00:00Z", "2126-01-01T00:00:00Z");
    assert_eq!(check(false, past), Ok(()), "it will be renewed");
    assert_eq!(check(true, future), Ok(()), "it is good for a while");
    let text = check(true, past).unwrap_err();
    assert!(
        text.starts_with(
            "MCP server 'linear' requires grant 'oauth:linear' but it needs a new authorization"
        ),
        "{text}"
    );
    assert!(text.contains("moat grant oauth linear"), "{text}");
}
