use super::*;
use crate::testing::plan;
use serde_json::json;
use test_case::test_case;

/// Servers that each agent starts itself.
fn with_stdio(mut plan: Plan) -> Plan {
    plan.stdio = serde_json::from_value(json!({
        "codex": {"fs": {"command": "npx", "args": ["-y", "@mcp/fs", "a \"b\""], "env": {"FOO": "bar"}, "grant": null, "cwd": "/workspace"}},
        "claude": {"fs": {"command": "npx", "args": ["-y", "@mcp/fs"], "env": {}, "grant": null, "cwd": null}},
        "gemini": {"gh": {"command": "gh-mcp", "args": [], "env": {}, "grant": "github", "cwd": null}}
    }))
    .unwrap();
    plan
}

fn with_confirm(mut plan: Plan) -> Plan {
    plan.confirm = true;
    plan
}

fn without_notion(mut plan: Plan) -> Plan {
    plan.servers.remove(0);
    plan
}

/// What a user has in the file, with comments where the agent allows them.
fn users(agent: Agent) -> &'static str {
    match agent {
        Agent::Claude => {
            "{\n    \"numStartups\": 12,\n    \"mcpServers\": {\n        \"mine\": {\"type\": \"http\", \"url\": \"http://127.0.0.1:3000/mcp/mine\"},\n        \"tool\": {\"command\": \"tool\"}\n    },\n    \"projects\": {\n        \"/workspace\": {\"hasTrustDialogAccepted\": false, \"history\": []}\n    }\n}\n"
        }
        Agent::Codex => {
            "# My settings\nmodel = \"gpt-5\"   # the big one\napproval_policy = \"untrusted\"\n\n[mcp_servers.mine] # mine\nurl = \"http://127.0.0.1:3000/mcp/mine\"\n\n  # odd indentation\n  [tui]\n  theme = 'dark'\n\n# the end\n"
        }
        Agent::Gemini => {
            "{\n  // my settings\n  \"theme\": \"dark\", /* eyes */\n  \"mcpServers\": {\n    \"mine\": { \"command\": \"mine\" } // keep\n  }\n}\n"
        }
    }
}

fn snapshot(name: String, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../tests/golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn golden() {
    let mut cases = 0;
    for agent in Agent::ALL {
        let fresh = edited(agent, None, &plan()).unwrap();
        let shown = [
            ("fresh", fresh.clone()),
            ("stdio", edited(agent, None, &with_stdio(plan())).unwrap()),
            ("noyolo", edited(agent, None, &with_confirm(plan())).unwrap()),
            ("existing", edited(agent, Some(users(agent)), &plan()).unwrap()),
            ("server-removed", edited(agent, Some(&fresh), &without_notion(plan())).unwrap()),
            ("noyolo-after-yolo", edited(agent, Some(&fresh), &with_confirm(plan())).unwrap()),
        ];
        for (case, text) in shown {
            snapshot(format!("{}-{case}", agent.name()), &text);
            cases += 1;
        }
    }
    snapshot("mcp-json-fresh".into(), &mcp_json::merged(None, &with_stdio(plan())).unwrap());
    assert_eq!(cases, 18);
}

#[test_case(Agent::Claude)]
#[test_case(Agent::Codex)]
#[test_case(Agent::Gemini)]
fn again_changes_nothing(agent: Agent) {
    for before in [None, Some(users(agent))] {
        let plan = with_stdio(plan());
        let once = edited(agent, before, &plan).unwrap();
        assert_eq!(edited(agent, Some(&once), &plan).unwrap(), once);
    }
}

/// Every line of the user's is still there as it was, but for the comma that JSON needs after it and our answer to
/// Claude Code's question, which has its place in an object of the user's.
#[test_case(Agent::Claude)]
#[test_case(Agent::Codex)]
#[test_case(Agent::Gemini)]
fn what_is_the_users_survives(agent: Agent) {
    let mut text = edited(agent, Some(users(agent)), &with_stdio(plan())).unwrap();
    if let Some(start) = text.find(", \"enabledMcpjsonServers\": [") {
        let length = text[start..].find(']').unwrap() + 1;
        text.replace_range(start..start + length, "");
    }
    let mut lines = text.lines();
    for line in users(agent).lines() {
        let line = line.replace("\"hasTrustDialogAccepted\": false", "\"hasTrustDialogAccepted\": true");
        let same =
            |found: &str| found == line || found.replacen(',', "", 1) == line || *found == format!("{line},");
        assert!(lines.any(same), "{line:?} is gone or moved in\n{text}");
    }
}

/// Servers of a project that the user has said yes to stay, and a list that is no list is not touched.
#[test_case(r#"{"projects":{"/workspace":{"enabledMcpjsonServers":["theirs","public"]}}}"# => r#"["theirs","public","notion","context7"]"#; "joined")]
#[test_case(r#"{"projects":{"/workspace":{"enabledMcpjsonServers":"odd"}}}"# => r#""odd""#; "odd")]
fn servers_of_the_project_need_no_answer(before: &str) -> String {
    let text = edited(Agent::Claude, Some(before), &plan()).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["projects"]["/workspace"]["enabledMcpjsonServers"].to_string()
}

#[test_case(Agent::Claude, "{\"mcpServers\": {\n \"notion\": {\"command\": \"x\"}}}", 2)]
#[test_case(Agent::Claude, "{\"mcpServers\": {\"public\": {\"type\": \"http\", \"url\": \"http://127.0.0.1:3000/mcp/public\"}}}", 1; "a server of the user's on loopback")]
#[test_case(Agent::Codex, "\n\n[mcp_servers.notion]\nurl = \"https://mcp.notion.com/mcp\"\n", 3)]
#[test_case(Agent::Codex, "[mcp_servers]\nnotion = {url = \"https://mcp.notion.com/mcp\"}\n", 2; "inline")]
#[test_case(Agent::Codex, "mcp_servers.notion.url = \"https://mcp.notion.com/mcp\"\n", 1; "dotted")]
#[test_case(Agent::Gemini, "{\n// mine\n\"mcpServers\": {\"context7\": {\"url\": \"x\"}}}", 3)]
fn a_name_of_the_users_is_not_taken(agent: Agent, before: &str, line: usize) {
    let fault = edited(agent, Some(before), &plan()).unwrap_err();
    assert!(matches!(fault, Fault::Clash { .. }), "{fault:?}");
    assert_eq!(fault.line(), line);
}

#[test_case(Agent::Claude, "{\"a\": 1,\n}" => (2, "not valid JSON: a comma without a member after it".to_owned()))]
#[test_case(Agent::Claude, "{\n// no comments here\n}" => (2, "not valid JSON: comments are not allowed in this file".to_owned()); "comment")]
#[test_case(Agent::Claude, "{\n\"mcpServers\": []}" => (2, "\"mcpServers\" is not an object".to_owned()); "list")]
#[test_case(Agent::Claude, "[]" => (1, "the document is not an object".to_owned()); "not even an object")]
#[test_case(Agent::Gemini, "{\"security\": true}" => (1, "\"security\" is not an object".to_owned()))]
#[test_case(Agent::Codex, "a = 1\nmcp_servers = 1\n" => (2, "mcp_servers is not a table".to_owned()))]
fn broken_files_are_refused(agent: Agent, before: &str) -> (usize, String) {
    let fault = edited(agent, Some(before), &plan()).unwrap_err();
    (fault.line(), fault.to_string())
}

#[test]
fn broken_toml_is_refused_with_its_line() {
    let fault = edited(Agent::Codex, Some("a = 1\nb = \n"), &plan()).unwrap_err();
    assert_eq!(fault.line(), 2);
    assert!(fault.to_string().starts_with("not valid TOML: "), "{fault}");
}

#[test_case("http://127.0.0.1:19080/mcp/notion", "notion" => true)]
#[test_case("http://127.0.0.1:1/mcp/notion", "notion" => true; "any port")]
#[test_case("http://127.0.0.1:19080/mcp/notion", "other" => false; "another name")]
#[test_case("http://127.0.0.1:19080/mcp/notion/x", "notion" => false; "longer")]
#[test_case("http://127.0.0.1:99999/mcp/notion", "notion" => false; "no port")]
#[test_case("http://localhost:19080/mcp/notion", "notion" => false; "not as we spell it")]
#[test_case("https://127.0.0.1:19080/mcp/notion", "notion" => false; "https")]
fn relay_urls(url: &str, name: &str) -> bool {
    is_relay_url(url, name)
}

#[test]
fn a_user_who_moved_the_files_finds_them_there() {
    let mut plan = plan();
    assert_eq!(path(Agent::Claude, &plan), Path::new("/home/agent/.claude.json"));
    assert_eq!(path(Agent::Codex, &plan), Path::new("/home/agent/.codex/config.toml"));
    assert_eq!(path(Agent::Gemini, &plan), Path::new("/home/agent/.gemini/settings.json"));
    plan.env.insert("CLAUDE_CONFIG_DIR".into(), "/etc/c".into());
    plan.env.insert("CODEX_HOME".into(), "codex".into());
    assert_eq!(path(Agent::Claude, &plan), Path::new("/etc/c/.claude.json"));
    assert_eq!(path(Agent::Codex, &plan), Path::new("/workspace/codex/config.toml"));
}

#[test]
fn no_credential_and_no_grant_in_a_stdio_server() {
    let text = edited(Agent::Gemini, None, &with_stdio(plan())).unwrap();
    assert!(text.contains("\"GITHUB_TOKEN\": \"moat-stub-github\""), "{text}");
}

#[test_case("{}"; "empty object")]
#[test_case("{}\n"; "empty object and newline")]
#[test_case("{\n}\n"; "empty lines")]
#[test_case("{\"mcpServers\": {}}"; "empty servers")]
#[test_case("{\"mcpServers\":{\"mine\":{\"command\":\"m\"}}}"; "one line")]
#[test_case("{\n\t\"mcpServers\": {\n\t\t\"mine\": {\n\t\t\t\"command\": \"m\"\n\t\t}\n\t},\n\t\"other\": [1, 2]\n}\n\n"; "tabs")]
#[test_case("{\r\n  \"mcpServers\": {\r\n    \"mine\": {}\r\n  }\r\n}\r\n"; "crlf")]
fn the_users_mcp_json_is_the_same_bytes_after_the_run(before: &str) {
    let plan = with_stdio(plan());
    let during = mcp_json::merged(Some(before), &plan).unwrap();
    assert!(during.contains("/mcp/notion"));
    assert_eq!(mcp_json::merged(Some(&during), &plan).unwrap(), during, "a crash, then the next start");
    assert_eq!(mcp_json::without(&during, false).unwrap(), mcp_json::Afterwards::Text(before.to_owned()));
    assert_eq!(mcp_json::without(before, false).unwrap(), mcp_json::Afterwards::Same);
}

#[test]
fn an_mcp_json_of_ours_goes_and_what_was_put_in_meanwhile_stays() {
    use mcp_json::{Afterwards, merged, merged_copy, without};
    let made = merged(None, &plan()).unwrap();
    assert_eq!(without(&made, false).unwrap(), Afterwards::Gone);
    let mut text =
        crate::files::json::edit::Text::new(&made, crate::files::json::parse::Comments::Refused).unwrap();
    text.insert(&["mcpServers"], &[("new".to_owned(), json!({"command": "n"}))]).unwrap();
    let Afterwards::Text(kept) = without(&text.into_string(), false).unwrap() else { panic!("lost") };
    assert_eq!(
        serde_json::from_str::<Value>(&kept).unwrap(),
        json!({"mcpServers": {"new": {"command": "n"}}})
    );
    let copy = merged_copy("{\"mcpServers\": {\"mine\": {}}}", &plan()).unwrap();
    assert_eq!(without(&copy, true).unwrap(), Afterwards::Gone);
    assert!(merged(Some("{\"mcpServers\": {\"notion\": {}}}"), &plan()).is_err(), "a name of the user's");
}
