//! moat.yaml as users write it: each message once, and many at once.

use moat_shared::plan::Agent;
use test_case::test_case;

use super::*;

fn problems(text: &str) -> Vec<String> {
    match parse("moat.yaml", text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(Problems::Invalid { list, .. }) => {
            list.into_iter().map(|p| format!("{}: {}", p.line, p.text)).collect()
        }
        Err(other) => vec![other.to_string()],
    }
}

fn config(text: &str) -> Config {
    parse("moat.yaml", text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn warnings(text: &str) -> Vec<String> {
    config(text).warnings.into_iter().map(|warning| warning.0).collect()
}

const NAMES: &str = "asana, betterstack, cloudflare, context7, hubspot, langfuse-eu, langfuse-hipaa, langfuse-jp, \
                     langfuse-us, linear, notion, posthog, sentry, stripe";

#[test_case("mcp:\n  - url: https://h/\n", "2: mcp[0]: 'name' is required"; "no name")]
#[test_case("mcp:\n  - {name: '', url: https://h/}\n", "2: mcp[0]: 'name' is required"; "empty name")]
#[test_case("mcp:\n  - {name: a, url: https://h/}\n  - {name: a, url: https://h/}\n", "3: mcp[1]: duplicate name 'a'"; "duplicate name")]
#[test_case("mcp:\n  - context7\n  - context7\n", "3: mcp[1]: duplicate name 'context7'"; "duplicate shorthand")]
#[test_case("mcp:\n  - {name: a/b, url: https://h/}\n", "2: mcp[0]: invalid server name \"a/b\": must start with a letter or digit, then letters, digits, '.', '_' and '-', at most 64 characters"; "bad name")]
#[test_case("mcp:\n  - {name: a, url: http://example.com/}\n", "2: mcp[0]: 'url' must use HTTPS (http:// is only allowed for localhost, 127.0.0.1, and [::1])"; "scheme")]
#[test_case("mcp:\n  - {name: a, url: 'https://'}\n", "2: mcp[0]: 'url' is not a valid URL: empty host"; "no host")]
#[test_case("mcp:\n  - {name: a, url: 'https://u:p@h/'}\n", "2: mcp[0]: 'url' must not contain a user name or password; use 'auth' and a grant"; "userinfo")]
#[test_case("mcp:\n  - {name: a, url: 'https://h/#x'}\n", "2: mcp[0]: 'url' must not contain a fragment (#...)"; "fragment")]
#[test_case("mcp:\n  - {name: a, url: https://h/, auth: {header: X-Key}}\n", "2: mcp[0]: 'auth.grant' is required when auth is specified"; "no grant")]
#[test_case("mcp:\n  - {name: a, url: https://h/, auth: {grant: mcp-a}}\n", "2: mcp[0]: 'auth.header' is required when auth is specified"; "no header")]
#[test_case("mcp:\n  - {name: a, url: https://h/, auth: {grant: mcp-a, header: Host}}\n", "2: mcp[0]: 'auth.header' \"Host\" cannot carry a credential: must be a header name, and none of HTTP's or MCP's own"; "forbidden header")]
#[test_case("mcp:\n  - {name: a, url: https://h/, auth: {grant: gitlab, header: X}}\n", "2: mcp[0]: unknown grant \"gitlab\": must be 'mcp-<name>', 'oauth:<name>' or one of github, openai, anthropic, gemini; a name has letters, digits, '.', '_' and '-', at most 64 characters"; "unknown grant")]
#[test_case("mcp:\n  - {name: a, url: https://h/, polcy: x}\n", "2: mcp[0]: unknown key \"polcy\" (did you mean \"policy\"?)"; "unknown key with a suggestion")]
#[test_case("mcp:\n  - {name: a, url: https://h/, transport: sse}\n", "2: mcp[0]: unknown key \"transport\""; "unknown key without one")]
#[test_case("mcp:\n  - {name: a, url: https://h/, auth: {grnt: mcp-a, grant: mcp-a, header: X}}\n", "2: mcp[0].auth: unknown key \"grnt\" (did you mean \"grant\"?)"; "unknown key below")]
#[test_case("mcp:\n  - {name: a, url: https://h/, auth: mcp-a}\n", "2: mcp[0]: 'auth' must be a mapping, not a string"; "auth kind")]
#[test_case("mcp:\n  - {name: a, url: [https://h/]}\n", "2: mcp[0]: 'url' must be a string, not a list"; "url kind")]
#[test_case("mcp:\n  - {name: [a], url: https://h/}\n", "2: mcp[0]: 'name' must be a string, not a list"; "name kind")]
#[test_case("mcp:\n  - [a]\n", "2: mcp[0]: must be a name or a mapping, not a list"; "entry kind")]
#[test_case("mcp:\n  -\n", "2: mcp[0]: must be a name or a mapping, not empty"; "empty entry")]
#[test_case("mcp: linear\n", "1: 'mcp' must be a list, not a string"; "mcp kind")]
#[test_case("mcp: {linear: {}}\n", "1: 'mcp' must be a list, not a mapping"; "mcp as a mapping")]
#[test_case("grants: github\n", "1: 'grants' must be a list, not a string"; "grants kind")]
#[test_case("grants: [github, {a: b}]\n", "1: 'grants[1]' must be a string, not a mapping"; "grant kind")]
#[test_case("grants: [ghub]\n", "1: grants[0]: unknown grant \"ghub\": must be 'mcp-<name>', 'oauth:<name>' or one of github, openai, anthropic, gemini; a name has letters, digits, '.', '_' and '-', at most 64 characters"; "unknown top grant")]
#[test_case("runtime: kvm\n", "1: invalid runtime \"kvm\": must be 'process', 'docker', 'podman' or 'apple'"; "runtime")]
#[test_case("runtime: {node: '20'}\n", "1: 'runtime' must be a string, not a mapping"; "runtime of old")]
#[test_case("sandbox: gvisor\n", "1: invalid sandbox value \"gvisor\": must be empty (default) or 'none'"; "sandbox")]
#[test_case("network:\n  policy: lax\n", "2: invalid network policy \"lax\": must be 'permissive' or 'strict'"; "network policy")]
#[test_case("network:\n  policy: strict\n", "2: 'network.policy: strict' is not supported yet, and a run does not start without it"; "strict")]
#[test_case("network:\n  rules: [a.com]\n", "2: 'network.rules' is not supported yet, and a run does not start without it"; "rules")]
#[test_case("network:\n  keep_policy: x\n", "2: 'network.keep_policy' is not supported yet, and a run does not start without it"; "keep policy")]
#[test_case("network:\n  allow: [a.com]\n", "2: \"network.allow\" is no longer supported, use \"network.rules\" instead\n\nExample:\n  network:\n    rules:\n      - \"api.github.com\""; "allow")]
#[test_case("network:\n  host: [0]\n", "2: network.host: port 0 is out of range (1-65535)"; "port range")]
#[test_case("network:\n  host: [80, 80]\n", "2: network.host: duplicate port 80"; "duplicate port")]
#[test_case("network:\n  host: [http]\n", "2: network.host: a string is no port"; "no port")]
#[test_case("network:\n  mode: bridge\n", "2: invalid network mode \"bridge\": must be 'none', 'open' or 'host'"; "network mode")]
#[test_case("network: none\n", "1: 'network' must be a mapping, not a string"; "network kind")]
#[test_case("env: {A: b}\nsecrets: {A: 'op://x'}\n", "2: key \"A\" defined in both 'env' and 'secrets' - use one or the other"; "env and secrets")]
#[test_case("env: {MOAT_HOME: /x}\n", "1: env: \"MOAT_HOME\" cannot be set: names with MOAT_ are moat's own"; "moat's own variable")]
#[test_case("env: {'A=B': x}\n", "1: env: \"A=B\" is no name of a variable"; "variable name")]
#[test_case("env: {A: [x]}\n", "1: env: 'A' must be a string, not a list"; "variable kind")]
#[test_case("env: [A=b]\n", "1: 'env' must be a mapping, not a list"; "env kind")]
#[test_case("command: ['']\n", "1: command[0] cannot be empty: the first element must be the executable"; "empty command")]
#[test_case("command: npm start\n", "1: 'command' must be a list, not a string"; "command kind")]
#[test_case("interactive: maybe\n", "1: 'interactive' must be true or false, not a string"; "interactive")]
#[test_case("name: ../x\n", "1: 'name' must start with a letter or digit, then letters, digits, '.', '_' and '-', at most 64 characters"; "run name")]
#[test_case("hooks:\n  prerun: x\n", "2: hooks: unknown key \"prerun\" (did you mean \"pre_run\"?)"; "hooks key")]
#[test_case("name: a\nagent: b\nname: c\n", "3: duplicate key \"name\" (first on line 1)"; "duplicate key")]
#[test_case("mcpp: []\n", "1: unknown key \"mcpp\" (did you mean \"mcp\"?)"; "top key")]
#[test_case("mounts: [/data]\n", "1: mounts[0]: invalid mount: /data (expected source:target[:mode])"; "mount form")]
#[test_case("mounts: ['/a:b']\n", "1: mounts[0]: invalid mount: /a:b (target must be an absolute path)"; "mount target")]
#[test_case("mounts: ['/a:/b:rx']\n", "1: mounts[0]: invalid mount: /a:/b:rx (mode must be 'ro' or 'rw')"; "mount mode")]
#[test_case("mounts: ['/a:/b/../..']\n", "1: mounts[0]: invalid mount: /a:/b/../.. (target must not contain '..')"; "mount up")]
#[test_case("mounts: [{source: /a}]\n", "1: mounts[0]: 'target' is required"; "mount without target")]
#[test_case("mounts: [{source: /a, target: /b, exclude: [x]}]\n", "1: mounts[0]: 'exclude' is not supported yet, and a run does not start without it"; "mount exclude")]
#[test_case("codex: {mcp: {x: {args: []}}}\n", "1: codex.mcp.x: 'command' is required"; "stdio command")]
#[test_case("codex: {mcp: {x: {command: a, comand: b}}}\n", "1: codex.mcp.x: unknown key \"comand\" (did you mean \"command\"?)"; "stdio key")]
#[test_case("codex: {mcp: {'x y': {command: a}}}\n", "1: codex.mcp.x y: invalid server name \"x y\": must start with a letter or digit, then letters, digits, '.', '_' and '-', at most 64 characters"; "stdio name")]
#[test_case("codex: {mcp: {x: a}}\n", "1: 'codex.mcp.x' must be a mapping, not a string"; "stdio kind")]
#[test_case("claude: {mcp: {x: {command: a, grant: github}}}\n", "1: claude.mcp.x: 'grant' is not supported for Claude Code local MCP servers — Claude Code manages its own credential injection"; "claude grant")]
#[test_case("gemini: {mcp: {x: {command: a, grant: gitlab}}}\n", "1: gemini.mcp.x: unknown grant \"gitlab\" (supported: github, openai, anthropic, gemini)"; "stdio grant")]
#[test_case("gemini: {mcp: {x: {command: a, grant: mcp-x}}}\n", "1: gemini.mcp.x: unknown grant \"mcp-x\" (supported: github, openai, anthropic, gemini)"; "stdio grant of another kind")]
#[test_case("codex: {mcp: {x: {command: a, grant: github}}}\n", "1: codex.mcp.x: grant \"github\" not declared in top-level grants list — add 'grants: [github]' to moat.yaml"; "stdio grant undeclared")]
#[test_case("codex: {mcp: {x: {command: a, env: {MOAT_X: y}}}}\n", "1: codex.mcp.x.env: \"MOAT_X\" cannot be set: names with MOAT_ are moat's own"; "stdio env")]
#[test_case("mcp:\n  - context7\ngemini: {mcp: {context7: {command: a}}}\n", "3: mcp server name \"context7\" is used by both a remote and a local server — names must be unique"; "remote and local")]
#[test_case("claude: {llm-gateway: {policy: x}}\n", "1: 'claude.llm-gateway.policy' is not supported yet, and a run does not start without it"; "gateway policy")]
#[test_case("- a\n", "1: the file must be a mapping, not a list"; "no mapping")]
fn one_message_each(text: &str, expected: &str) {
    assert_eq!(problems(text), [expected]);
}

#[test_case(".keep/rules.yaml", "MCP server \"a\" policy: policy file not found: .keep/rules.yaml"; "file")]
#[test_case("rules.yml", "MCP server \"a\" policy: policy file not found: rules.yml"; "file by its end")]
#[test_case("jira-readonly", "MCP server \"a\" policy: unknown starter pack \"jira-readonly\" — available packs: linear-readonly, github-readonly, notion-readonly, sentry-readonly, stripe-readonly, readonly"; "unknown pack")]
#[test_case("{allow: []}", "invalid inline policy: 'allow' is empty, so nothing could be called; leave the server out instead"; "empty allow list")]
#[test_case("{deny: ['a[']}", "invalid inline policy: 'deny' has an entry \"a[\" that is not a valid pattern: a class [...] that does not end"; "bad pattern")]
#[test_case("{deny: [a], mode: warn}", "invalid policy mode \"warn\": must be \"enforce\" or \"audit\""; "mode")]
#[test_case("{mode: audit}", "inline policy must have at least one deny rule; use a file path or pack name for file-based policies"; "no rule")]
#[test_case("{deny: []}", "inline policy must have at least one deny rule; use a file path or pack name for file-based policies"; "empty rules")]
#[test_case("{deny: ['']}", "invalid inline policy: 'deny' has an empty entry"; "empty rule")]
#[test_case("{deny: a}", "invalid inline policy: 'deny' must be a list of tool names"; "deny kind")]
#[test_case("[a]", "policy must be a string (file path or pack name) or mapping (inline rules), got list"; "list")]
#[test_case("", "policy must be a string (file path or pack name) or mapping (inline rules), got null"; "nothing")]
fn a_policy_that_cannot_be_kept_is_a_mistake(policy: &str, expected: &str) {
    let text = format!("mcp:\n  - name: a\n    url: https://h/\n    policy: {policy}\n");
    assert_eq!(problems(&text), [format!("4: mcp[0]: {expected}")]);
}

#[test]
fn an_open_entry_beside_a_judged_one_is_warned_of() {
    let text = |second: &str| {
        format!(
            "mcp:\n  - {{name: a, url: https://h/one, policy: {{deny: [x]}}}}\n  - {{name: b, url: {second}}}\n"
        )
    };
    let warned = "moat.yaml: MCP server 'b' has no policy and reaches the same host as 'a', whose policy does not hold for it";
    assert_eq!(warnings(&text("https://h:443/two")), [warned]);
    assert_eq!(warnings(&text("https://other/one")), Vec::<String>::new());
    assert_eq!(warnings(&text("'https://h/two', policy: {deny: [y]}")), Vec::<String>::new());
}

#[test]
fn unknown_servers_list_the_known_ones() {
    let known = format!("unknown MCP server \"lienar\": provide a url, or use a known name ({NAMES})");
    assert_eq!(problems("mcp:\n  - lienar\n"), [format!("2: mcp[0]: {known}")]);
    assert_eq!(problems("mcp:\n  - name: lienar\n"), [format!("2: mcp[0]: 'url' is required ({known})")]);
    assert_eq!(problems("mcp:\n  - {}\n"), ["2: mcp[0]: 'name' is required", "2: mcp[0]: 'url' is required"]);
}

#[test]
fn all_problems_come_at_once_in_the_order_of_their_lines() {
    let text = "\
nmae: x
mcp:
  - name: a
    url: http://example.com/
    polcy: x
  - name: a
    url: ftp://h/
    auth: {header: Host}
grants: github
env:
  MOAT_X: y
  A: 1
  A: 2
command: []
runtime: vm
";
    let all = parse("moat.yaml", text).unwrap_err().to_string();
    assert_eq!(all.lines().count(), 12, "{all}");
    insta::assert_snapshot!(all, @r#"
    loading config: moat.yaml has 11 problems
      moat.yaml:1: unknown key "nmae" (did you mean "name"?)
      moat.yaml:4: mcp[0]: 'url' must use HTTPS (http:// is only allowed for localhost, 127.0.0.1, and [::1])
      moat.yaml:5: mcp[0]: unknown key "polcy" (did you mean "policy"?)
      moat.yaml:6: mcp[1]: duplicate name 'a'
      moat.yaml:7: mcp[1]: 'url' must use HTTPS (http:// is only allowed for localhost, 127.0.0.1, and [::1])
      moat.yaml:8: mcp[1]: 'auth.grant' is required when auth is specified
      moat.yaml:8: mcp[1]: 'auth.header' "Host" cannot carry a credential: must be a header name, and none of HTTP's or MCP's own
      moat.yaml:9: 'grants' must be a list, not a string
      moat.yaml:11: env: "MOAT_X" cannot be set: names with MOAT_ are moat's own
      moat.yaml:13: env: duplicate key "A" (first on line 12)
      moat.yaml:15: invalid runtime "vm": must be 'process', 'docker', 'podman' or 'apple'
    "#);
}

#[test]
fn one_problem_is_told_on_one_line() {
    let error = parse("agent.yaml", "runtime: vm\n").unwrap_err().to_string();
    let text = "loading config: agent.yaml:1: invalid runtime \"vm\": must be 'process', 'docker', 'podman' or 'apple'";
    assert_eq!(error, text);
}

#[test]
fn a_whole_file() {
    let config = config(
        "\
name: my-run
agent: claude
version: 1.0
mcp:
  - context7
  - name: tools
    url: http://localhost:3000/mcp?key=1
  - name: mine
    url: https://Example.com/mcp
    auth: {grant: 'mcp:mine', header: X-Api-Key}
grants: [github]
env: {PORT: 3000, DEBUG: true, EMPTY: , NO_PROXY: x, OCT: 0o7}
command: [npm, start, 1]
interactive: yes
hooks: {pre_run: npm ci}
runtime: process
network: {mode: none, policy: permissive}
codex:
  mcp:
    gh: {command: gh-mcp, args: [-v], env: {A: b}, grant: github, cwd: sub}
mounts: ['./data:/data:ro', {source: /a, target: /b}]
",
    );
    assert_eq!(config.warnings, []);
    assert_eq!(config.name.as_deref(), Some("my-run"));
    assert_eq!(config.agent.as_deref(), Some("claude"));
    let names: Vec<_> = config.servers.iter().map(|server| server.name.as_str()).collect();
    assert_eq!(names, ["context7", "tools", "mine"]);
    let injects: Vec<_> = config
        .servers
        .iter()
        .map(|server| server.inject.as_ref().map(|inject| (inject.grant.as_str(), inject.header.as_str())))
        .collect();
    assert_eq!(injects, [Some(("mcp-context7", "CONTEXT7_API_KEY")), None, Some(("mcp-mine", "X-Api-Key"))]);
    assert_eq!(config.servers[1].upstream.query(), Some("key=1"));
    let grants: Vec<_> = config.grants.iter().map(GrantName::as_str).collect();
    assert_eq!(grants, ["github", "mcp-context7", "mcp-mine"]);
    let env: Vec<_> = config.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(env, [("DEBUG", "true"), ("EMPTY", ""), ("NO_PROXY", "x"), ("OCT", "0o7"), ("PORT", "3000")]);
    assert_eq!(config.command, ["npm", "start", "1"]);
    assert!(config.interactive);
    assert_eq!(config.pre_run.as_deref(), Some("npm ci"));
    assert_eq!(config.runtime, Some(RuntimeName::Process));
    assert_eq!(config.network, Some(NetworkMode::None));
    let stdio = &config.stdio[&Agent::Codex][&"gh".parse::<ServerName>().unwrap()];
    assert_eq!((stdio.command.as_str(), stdio.cwd.as_deref()), ("gh-mcp", Some("sub")));
    assert_eq!(stdio.grant.as_ref().map(GrantName::as_str), Some("github"));
    assert_eq!(config.mounts.iter().map(|mount| mount.read_only).collect::<Vec<_>>(), [true, false]);
}

#[test_case("" ; "nothing")]
#[test_case("# only a comment\n"; "comment")]
#[test_case("mcp:\n"; "nothing below")]
#[test_case("\u{feff}mcp: []\n"; "byte order mark first")]
#[test_case("---\nmcp: []\n...\n"; "explicit document")]
fn nothing_is_configured(text: &str) {
    assert_eq!(config(text), Config::default());
}

#[test]
fn catalog_auth_goes_to_the_catalogs_url_only() {
    let evil = config("mcp:\n  - {name: context7, url: https://evil.example/mcp}\n");
    assert_eq!(evil.servers[0].inject, None);
    assert_eq!(evil.grants, []);
    assert_eq!(
        evil.warnings[0].0,
        "moat.yaml: mcp[0]: 'url' is not the known one of 'context7', so no credential is sent; add 'auth' to send one"
    );
    let same = config("mcp:\n  - {name: context7, url: https://MCP.context7.com:443/mcp}\n");
    assert!(same.servers[0].inject.is_some());
    assert_eq!(same.warnings, []);
    // Half an `auth` is filled in at the catalog's URL only.
    let filled = config("mcp:\n  - {name: context7, auth: {header: X-Mine}}\n");
    assert_eq!(filled.servers[0].inject.as_ref().unwrap().grant.as_str(), "mcp-context7");
    let refused = problems("mcp:\n  - {name: context7, url: https://evil.example/mcp, auth: {header: X}}\n");
    assert_eq!(refused, ["2: mcp[0]: 'auth.grant' is required when auth is specified"]);
}

#[test]
fn what_comes_later_is_warned_of_once() {
    let text = "dependencies: [node]\nservices: {pg: {image: x}}\nclaude: {plugins: {a: true}}\nhooks: {post_build: x}\nnetwork: {host: [80]}\nsandbox: none\nsecrets: {}\n";
    insta::assert_snapshot!(warnings(text).join("\n"), @r"
    moat.yaml: 'dependencies' is not supported yet and is ignored
    moat.yaml: 'sandbox' is not supported yet and is ignored
    moat.yaml: 'services' is not supported yet and is ignored
    moat.yaml: 'claude.plugins' is not supported yet and is ignored
    moat.yaml: 'secrets' is not supported yet and is ignored
    moat.yaml: 'hooks.post_build' is not supported yet and is ignored
    moat.yaml: 'network.host' is not supported yet and is ignored
    ");
}

#[test_case("a: [\n", "loading config: parsing moat.yaml: line 1: unclosed bracket '['"; "open list")]
#[test_case("a: 1\n\tb: 2\n", "loading config: parsing moat.yaml: line 2: a tab where YAML wants spaces"; "tab")]
#[test_case("a: 1\n---\nb: 2\n", "loading config: parsing moat.yaml: line 2: a second document; the file must have one"; "two documents")]
#[test_case("a: *b\n", "loading config: parsing moat.yaml: line 1: "; "unknown alias")]
#[test_case("a: &b [*b]\n", "loading config: parsing moat.yaml: line 1: an alias refers to the value that it is part of"; "alias of itself")]
#[test_case("? [a]\n: b\n", "loading config: parsing moat.yaml: line 1: a key must be a string"; "key")]
#[test_case("<<: a\n", "loading config: parsing moat.yaml: line 1: '<<' takes a mapping or a list of mappings"; "merge")]
#[test_case("name: a\n\u{feff}agent: b\n", "loading config: parsing moat.yaml: line 2: a byte-order mark inside the file; save it as plain UTF-8"; "byte order mark later")]
fn no_yaml(text: &str, expected: &str) {
    let error = parse("moat.yaml", text).unwrap_err().to_string();
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn anchors_and_merge_keys_work() {
    let config = config(
        "\
codex:
  mcp:
    one: &base {command: a, cwd: x}
    two: {<<: *base, command: b}
gemini: {mcp: {three: *base}}
",
    );
    let two = &config.stdio[&Agent::Codex][&"two".parse::<ServerName>().unwrap()];
    assert_eq!((two.command.as_str(), two.cwd.as_deref()), ("b", Some("x")));
    assert_eq!(config.stdio[&Agent::Gemini].len(), 1);
}

#[test]
fn bombs_and_towers_are_refused_quickly() {
    let bomb: String = (1..30).map(|i| format!("a{i}: &a{i} [*a{p}, *a{p}, *a{p}]\n", p = i - 1)).collect();
    let bomb = format!("a0: &a0 [x, x, x]\n{bomb}");
    assert!(parse("moat.yaml", &bomb).unwrap_err().to_string().contains("expand to too much"));
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(1000));
    assert!(parse("moat.yaml", &long).unwrap_err().to_string().contains("expand to too much"));
    for tower in ["[".repeat(10_000), "{a: ".repeat(10_000), "- ".repeat(10_000)] {
        assert!(parse("moat.yaml", &tower).is_err());
    }
    let by_alias: String = (1..40).map(|i| format!("a{i}: &a{i} [[*a{}]]\n", i - 1)).collect();
    let error = parse("moat.yaml", &format!("a0: &a0 [x]\n{by_alias}")).unwrap_err().to_string();
    assert!(error.contains("nested deeper than 64 levels"), "{error}");
}

/// A moat.yaml may be a stranger's: nothing of it reaches the terminal as it is.
#[test_case("\"\\e[2J\": 1\n"; "key")]
#[test_case("codex: {mcp: {\"x\\e[2J\\ny\": {command: a}}}\n"; "stdio name")]
#[test_case("mounts: [\"/a\\e[2J\"]\n"; "mount")]
#[test_case("env: {\"A=\\e[2J\": b}\n"; "variable")]
#[test_case("runtime: \"\\e[2J\"\n"; "runtime")]
fn escape_sequences_are_shown_not_obeyed(text: &str) {
    let error = parse("moat.yaml", text).unwrap_err().to_string();
    assert!(error.contains("{1b}") && !error.contains('\u{1b}'), "{error:?}");
}

#[test]
fn files_are_looked_up_in_order() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(load(dir.path()).unwrap(), Config::default());
    std::fs::write(dir.path().join("agent.yaml"), "name: old\n").unwrap();
    assert_eq!(load(dir.path()).unwrap().name.as_deref(), Some("old"));
    std::fs::write(dir.path().join("moat.yaml"), "name: new\n").unwrap();
    let config = load(dir.path()).unwrap();
    assert_eq!(config.name.as_deref(), Some("new"));
    assert_eq!(config.file, Some(dir.path().join("moat.yaml")));
    std::fs::write(dir.path().join("moat.yaml"), b"name: a\n\xff\n").unwrap();
    let error = crate::cli::with_causes(&load(dir.path()).unwrap_err());
    assert_eq!(error, "loading config: reading moat.yaml: not UTF-8 on line 2");
    std::fs::remove_file(dir.path().join("moat.yaml")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("moat.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = crate::cli::with_causes(&load(dir.path()).unwrap_err());
    assert_eq!(error, "loading config: reading moat.yaml: not a regular file");
    std::fs::remove_file(dir.path().join("moat.yaml")).unwrap();
    std::fs::write(dir.path().join("moat.yaml"), vec![b'#'; 2 << 20]).unwrap();
    let error = crate::cli::with_causes(&load(dir.path()).unwrap_err());
    assert_eq!(error, "loading config: reading moat.yaml: larger than 1048576 bytes");
}

proptest::proptest! {
    #[test]
    fn no_input_panics(text in "[-a-z:{}\\[\\]&*<'\"| \n\t#0-9!]{0,200}") {
        let _any = parse("moat.yaml", &text);
    }

    #[test]
    fn no_bytes_panic(text in "\\PC{0,100}") {
        let _any = parse("moat.yaml", &text);
    }
}

#[test]
fn every_form_of_policy_becomes_rules() {
    let rules = |policy: &str| {
        let parsed = config(&format!("mcp:\n  - name: a\n    url: https://h/\n    policy: {policy}\n"));
        let set = parsed.servers[0].policy.as_ref().unwrap().rule_set().unwrap();
        let rules: Vec<String> = set.rules.iter().map(|rule| rule.name.clone()).collect();
        (set.mode.as_str(), rules.join(" "))
    };
    assert_eq!(rules("linear-readonly"), ("enforce", "deny-non-read".to_owned()));
    assert_eq!(rules("{deny: [a_*, b], mode: audit}"), ("audit_only", "deny-a_* deny-b".to_owned()));
    assert_eq!(rules("{allow: [get_*], deny: [get_x]}"), ("enforce", "deny-get_x allow-list".to_owned()));
}

#[test]
fn a_rule_file_is_read_with_all_its_mistakes_and_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("moat.yaml", "mcp:\n  - name: tracker\n    url: https://h/\n    policy: rules.yaml\n");
    write(
        "rules.yaml",
        "scope: tracker\nrules:\n- name: a\n  action: deny\n  match: {when: \"params.x == 'Bash'\"}\n",
    );
    let config = load(dir.path()).unwrap();
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(
        warnings.iter().any(|w| w.contains("rules.yaml:3: rule \"a\"") && w.contains("'Bash'")),
        "{warnings:?}"
    );
    assert!(
        warnings.iter().any(|w| w.contains("has no 'mode'") && w.contains("mode: enforce")),
        "{warnings:?}"
    );
    write("rules.yaml", "scope: other\nrules:\n- name: a\n  action: allow\n");
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("scope \"other\" does not belong") && error.contains("action \"allow\" is invalid"),
        "{error}"
    );
}
