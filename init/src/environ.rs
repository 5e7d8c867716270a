//! The agent's environment: what the plan says, and what PID 1 adds. Nothing in it is secret.

use std::collections::BTreeMap;

use moat_shared::plan::{Agent, Plan};

/// What a program finds commands in when nobody said otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The relay's names, which must not be looked for behind a proxy.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The base of every server's URL.
pub(crate) fn relay_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// The complete environment of the agent and its hook.
pub(crate) fn of_agent(plan: &Plan) -> BTreeMap<String, String> {
    let mut env = plan.env.clone();
    env.entry("PATH".into()).or_insert_with(|| PATH.into());
    env.insert("HOME".into(), plan.user.home.to_string_lossy().into_owned());
    env.insert("USER".into(), plan.user.name.clone());
    env.insert("LOGNAME".into(), plan.user.name.clone());
    env.insert("MOAT_RUN_ID".into(), plan.run.to_string());
    env.insert("MOAT_RELAY_URL".into(), relay_url(plan.relay_port));
    let upper = plan.env.get("NO_PROXY").or_else(|| plan.env.get("no_proxy"));
    let lower = plan.env.get("no_proxy").or_else(|| plan.env.get("NO_PROXY"));
    env.insert("NO_PROXY".into(), with_loopback(upper.map(String::as_str)));
    env.insert("no_proxy".into(), with_loopback(lower.map(String::as_str)));
    if plan.agent.is_none_or(|agent| agent == Agent::Gemini) {
        // In a folder that it does not trust, Gemini has no MCP at all. The user's settings keep their word on it
        // in the file; the workspace of this run was named by the user.
        env.entry("GEMINI_CLI_TRUST_WORKSPACE".into()).or_insert_with(|| "true".into());
    }
    env
}

/// The user's list and the loopback names that it lacks. `*` means everything already.
fn with_loopback(given: Option<&str>) -> String {
    let given = given.unwrap_or_default().trim();
    if given == "*" {
        return given.to_owned();
    }
    let mut names: Vec<&str> = given.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    for name in LOOPBACK {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;
    use test_case::test_case;

    #[test_case(None => "localhost,127.0.0.1,::1"; "none")]
    #[test_case(Some("") => "localhost,127.0.0.1,::1"; "empty")]
    #[test_case(Some("corp.example, 10.0.0.0/8") => "corp.example,10.0.0.0/8,localhost,127.0.0.1,::1"; "extended")]
    #[test_case(Some("::1,localhost") => "::1,localhost,127.0.0.1"; "only what lacks")]
    #[test_case(Some("*") => "*"; "everything")]
    fn no_proxy(given: Option<&str>) -> String {
        with_loopback(given)
    }

    #[test]
    fn each_spelling_keeps_its_own_value_or_takes_the_others() {
        let mut plan = plan();
        plan.env.insert("NO_PROXY".into(), "a.example".into());
        let env = of_agent(&plan);
        assert_eq!(env["NO_PROXY"], "a.example,localhost,127.0.0.1,::1");
        assert_eq!(env["no_proxy"], "a.example,localhost,127.0.0.1,::1");
        plan.env.insert("no_proxy".into(), "b.example".into());
        assert_eq!(of_agent(&plan)["no_proxy"], "b.example,localhost,127.0.0.1,::1");
    }

    #[test]
    fn what_pid_1_says_wins_over_the_plan() {
        let mut plan = plan();
        plan.env.insert("HOME".into(), "/root".into());
        plan.env.insert("MOAT_RUN_ID".into(), "other".into());
        plan.env.insert("PATH".into(), "/opt/bin".into());
        let env = of_agent(&plan);
        assert_eq!(env["HOME"], "/home/agent");
        assert_eq!(env["MOAT_RUN_ID"], "run_0123456789ab");
        assert_eq!(env["MOAT_RELAY_URL"], "http://127.0.0.1:19080");
        assert_eq!((&*env["USER"], &*env["LOGNAME"]), ("agent", "agent"));
        assert_eq!(env["PATH"], "/opt/bin");
    }

    #[test]
    fn nothing_secret() {
        for (name, value) in of_agent(&plan()) {
            assert!(!value.contains("PRIVATE KEY"), "{name}");
        }
    }
}
