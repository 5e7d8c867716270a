//! The cases, each in both kinds of sandbox where that can make a difference.

use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::{
    sandbox::{KEY, Sandbox, Uids},
    stand_in,
};

type Case = fn(Uids);

/// Every case and its name.
const CASES: [(&str, Case); 13] = [
    ("exit_codes_come_through", exit_codes),
    ("the_hook_runs_before_the_agent", hook),
    ("a_failing_hook_stops_the_start", failing_hook),
    ("without_a_tunnel_nothing_starts", no_tunnel),
    ("the_agent_has_no_privileges", privileges),
    ("the_agent_has_its_environment", environment),
    ("the_key_is_out_of_reach", key),
    ("nothing_outlives_the_agent", leftovers),
    ("signals_are_forwarded", signals),
    ("sigterm_becomes_sigkill_after_the_grace", grace),
    ("sigterm_twice_is_harder", twice),
    ("the_relay_is_restarted_and_no_connection_is_lost", restart),
    ("the_terminal_is_the_agents", terminal),
];

pub(crate) fn all() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (uids, kind, missing) in [
        (Uids::Three, "three uids", lacks(&["--pid", "--fork", "--mount-proc", "--net"])),
        (
            Uids::One,
            "one uid",
            lacks(&["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--net"]),
        ),
    ] {
        for (name, case) in CASES {
            trials.push(
                match missing {
                    None => Trial::test(name, move || {
                        case(uids);
                        Ok::<(), Failed>(())
                    }),
                    Some(reason) => Trial::test(name, move || {
                        eprintln!("SKIPPED {name} ({kind}): {reason}");
                        Ok(())
                    })
                    .with_ignored_flag(true),
                }
                .with_kind(kind),
            );
        }
    }
    trials
}

/// Why such namespaces cannot be made here.
fn lacks(flags: &[&str]) -> Option<&'static str> {
    let made =
        std::process::Command::new("unshare").args(flags).args(["sh", "-c", "ip link set lo up"]).output();
    let missing =
        "these namespaces cannot be made by this user (unshare and ip are needed, and the right to use them)";
    match made {
        Ok(output) if output.status.success() => None,
        _ => {
            eprintln!("SKIPPED {}: {missing}", flags.join(" "));
            Some(missing)
        }
    }
}

fn exit_codes(uids: Uids) {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(Sandbox::new(uids, script).run().code, code, "{script}");
    }
    let missing = Sandbox::new(uids, "").set("command", json!(["no-such-agent"])).run();
    assert_eq!(
        (missing.code, &*missing.err),
        (127, "relay: a line on stderr\nmoat: no-such-agent: command not found\n")
    );
    let directory = Sandbox::new(uids, "").set("command", json!(["/etc"])).run();
    assert_eq!(directory.code, 126, "{directory:?}");
    assert!(directory.err.contains("moat: /etc: cannot be executed"), "{directory:?}");
}

fn hook(uids: Uids) {
    let sandbox = Sandbox::new(uids, "cat order; echo agent")
        .set("pre_run", json!("id -u; pwd; echo hook > order; cat"));
    let ended = sandbox.run();
    assert_eq!(
        (ended.code, &*ended.out),
        (0, "hook\nagent\n"),
        "the hook's output is not the agent's: {ended:?}"
    );
    let uid = &sandbox.plan["user"]["ids"]["uid"];
    assert!(ended.err.contains(&format!("{uid}\n{}\n", sandbox.path("work").display())), "{ended:?}");
}

fn failing_hook(uids: Uids) {
    let ended = Sandbox::new(uids, "echo agent").set("pre_run", json!("exit 3")).run();
    assert_eq!((ended.code, &*ended.out), (3, ""));
    assert!(
        ended.err.ends_with("moat: hooks.pre_run failed (exit code 3); the agent was not started\n"),
        "{ended:?}"
    );
}

fn no_tunnel(uids: Uids) {
    let says =
        Sandbox::new(uids, "echo agent").servers(&[stand_in::FAILS]).set("pre_run", json!("echo hook")).run();
    assert_eq!((says.code, &*says.out), (i32::from(moat_shared::exit::NO_TUNNEL), ""));
    assert!(says.err.contains("moat: cannot reach the bridge: no way; nothing was started"), "{says:?}");
    assert!(!says.err.contains("hook"), "{says:?}");
    let dies = Sandbox::new(uids, "echo agent").servers(&[stand_in::DIES]).run();
    assert_eq!((dies.code, &*dies.out), (i32::from(moat_shared::exit::NO_TUNNEL), ""));
    assert!(dies.err.contains("the relay ended (exit code 9)"), "{dies:?}");
}

fn privileges(uids: Uids) {
    let script = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|SigBlk|SigIgn):' /proc/self/status | tr -d ' \t'; umask; \
                  cat /proc/self/oom_score_adj; ls /proc/self/fd | tr '\n' ' '";
    let sandbox = Sandbox::new(uids, script);
    let ended = sandbox.run();
    let lines: Vec<&str> = ended.out.lines().collect();
    let uid = sandbox.plan["user"]["ids"]["uid"].to_string().repeat(4);
    for expected in [
        &*format!("Uid:{uid}"),
        &*format!("Gid:{uid}"),
        "CapInh:0000000000000000",
        "CapPrm:0000000000000000",
        "CapEff:0000000000000000",
        "CapBnd:0000000000000000",
        "CapAmb:0000000000000000",
        "NoNewPrivs:1",
        "SigBlk:0000000000000000",
        "SigIgn:0000000000000000",
        "0022",
        "0 1 2 3 ", // 3 is the directory that ls reads
    ] {
        assert!(lines.contains(&expected), "{expected} is not in {ended:?}");
    }
    assert!(lines.contains(&"Groups:") || uids == Uids::One, "{ended:?}");
    assert!(lines.iter().any(|line| line.parse::<i32>().is_ok_and(|score| score >= 100)), "{ended:?}");
}

fn environment(uids: Uids) {
    let script = "echo $HOME $USER $LOGNAME $MOAT_RUN_ID $MOAT_RELAY_URL $NO_PROXY $no_proxy $TERM; pwd";
    let sandbox = Sandbox::new(uids, script)
        .set("env", json!({"PATH": "/usr/bin:/bin", "TERM": "xterm", "NO_PROXY": "a"}));
    let expected = format!(
        "{} agent agent run_0123456789ab http://127.0.0.1:19080 a,localhost,127.0.0.1,::1 a,localhost,127.0.0.1,::1 xterm\n{}\n",
        sandbox.path("home").display(),
        sandbox.path("work").display()
    );
    assert_eq!(sandbox.run().out, expected);
}

/// Plan gone; neither PID 1 nor the relay can be read, traced or seen into; no process shows the key.
fn key(uids: Uids) {
    let script = format!(
        "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] && continue; tr '\\0' ' ' < $p/cmdline; echo \" $p\"; \
         for f in environ mem maps fd/0 fd/3 auxv; do head -c1 $p/$f > /dev/null 2>&1 && echo readable $p/$f; done; done; \
         grep -rl {KEY} /tmp/plan.json '{{}}' 2>/dev/null; true"
    );
    let sandbox = Sandbox::new(uids, &script);
    let ended = sandbox.run();
    assert!(!sandbox.path("plan.json").exists());
    assert!(ended.out.contains("/proc/self/exe relay"), "{ended:?}");
    assert!(!ended.out.contains(KEY) && !ended.out.contains("readable /proc/1/"), "{ended:?}");
    let relay = ended.out.lines().find(|line| line.starts_with("/proc/self/exe relay")).unwrap();
    let relay = relay.split_whitespace().last().unwrap();
    assert!(!ended.out.contains(&format!("readable {relay}/")), "{ended:?}");
}

fn leftovers(uids: Uids) {
    let script =
        "setsid nohup sleep 1000 & (trap '' TERM HUP; sleep 1000) & (sleep 0.01; exit 5) & disown -a; exit 4";
    let before = std::time::Instant::now();
    assert_eq!(Sandbox::new(uids, script).run().code, 4);
    assert!(before.elapsed() < std::time::Duration::from_secs(10));
}

/// Waits for a signal and tells it.
fn waiting(signal: &str, then: &str) -> String {
    format!("trap '{then}' {signal}; touch up; while :; do sleep 0.02; done")
}

fn signals(uids: Uids) {
    for signal in ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"] {
        let sandbox = Sandbox::new(uids, &waiting(signal, &format!("echo got {signal}; exit 42")));
        let running = sandbox.start();
        sandbox.wait_for("work/up");
        running.signal(signal);
        let ended = running.wait();
        assert_eq!((ended.code, &*ended.out), (42, &*format!("got {signal}\n")), "{ended:?}");
    }
}

fn grace(uids: Uids) {
    let sandbox = Sandbox::new(uids, &waiting("TERM", "touch asked")).set("grace_ms", json!(300));
    let running = sandbox.start();
    sandbox.wait_for("work/up");
    running.signal("TERM");
    sandbox.wait_for("work/asked");
    assert_eq!(running.wait().code, 137);
}

fn twice(uids: Uids) {
    let sandbox = Sandbox::new(uids, &waiting("TERM", "touch asked")).set("grace_ms", json!(3_600_000));
    let running = sandbox.start();
    sandbox.wait_for("work/up");
    running.signal("TERM");
    sandbox.wait_for("work/asked");
    running.signal("TERM");
    assert_eq!(running.wait().code, 137);
}

fn restart(uids: Uids) {
    let script = "for i in 1 2 3; do exec 5<>/dev/tcp/127.0.0.1/19080; echo die >&5; exec 5>&-; \
                  exec 6<>/dev/tcp/127.0.0.1/19080; echo hey >&6; read answer <&6; echo $answer; exec 6>&-; done";
    let ended = Sandbox::new(uids, script).run();
    assert_eq!((ended.code, &*ended.out), (0, "relay\nrelay\nrelay\n"), "{ended:?}");
    assert_eq!(
        ended.err, "relay: a line on stderr\n",
        "the restarted relay does not write where the agent does"
    );
}

fn terminal(uids: Uids) {
    let script = "trap 'echo int' INT; read -r _ _ _ _ group _ tty foreground _ < /proc/$$/stat; \
                  echo own $((group == foreground)) $((group == $$)) tty $((tty > 0)); echo > /dev/tty; touch up; \
                  kill -INT 0; kill -TSTP $$; echo continued; stty size > /dev/null && echo stty";
    let sandbox = Sandbox::new(uids, script).set("terminal", json!(true));
    let words: Vec<String> = sandbox.words().iter().map(|word| format!("'{word}'")).collect();
    let output = std::process::Command::new("script")
        .args(["-qefc", &words.join(" "), "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    for line in ["own 1 1 tty 1", "int", "continued", "stty"] {
        assert!(out.lines().any(|found| found == line), "{line} is not in {out:?}");
    }
    assert!(output.status.success(), "{out:?}");
}
