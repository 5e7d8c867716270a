use super::*;

fn server(dir: &Path) -> (Server, PathBuf) {
    let file = dir.join("x.yaml");
    std::fs::write(&file, rules("a")).unwrap();
    let loaded = file::load(&file, "x.yaml", &Scopes::default()).unwrap();
    let source = super::super::bound::Source::File { path: file.clone(), shown: "x.yaml".to_owned() };
    let server = Server {
        name: "x".parse().unwrap(),
        upstream: "https://h/mcp".to_owned().try_into().unwrap(),
        inject: None,
        policy: Some(Bound::new(source, &loaded.policy.set)),
    };
    (server, file)
}

fn rules(operation: &str) -> String {
    format!(
        "scope: x\nmode: enforce\nrules:\n- {{name: r, action: deny, match: {{operation: {operation}}}}}\n"
    )
}

#[test]
fn p40_p41_an_edit_is_judged_beside_and_a_broken_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (server, file) = server(dir.path());
    let bound = server.policy.clone().unwrap();
    let (seen, news) = look(&server, &bound, Seen::default());
    assert_eq!(news, None, "as it was at the start");
    std::fs::write(&file, rules("another")).unwrap();
    let (seen, news) = look(&server, &bound, seen);
    assert!(matches!(news, Some(News::Pending { .. })), "{news:?}");
    assert_eq!(bound.state().policies().unwrap().count(), 2);
    let (seen, news) = look(&server, &bound, seen);
    assert_eq!(news, None, "told once");
    std::fs::write(&file, "scope: [").unwrap();
    let (seen, news) = look(&server, &bound, seen);
    assert_eq!(news, None, "perhaps it is only half written");
    let (seen, news) = look(&server, &bound, seen);
    assert!(matches!(news, Some(News::Failed(_))), "{news:?}");
    assert_eq!(bound.state().policies().unwrap().count(), 2, "what was stricter stays so");
    assert!(bound.state().broken.is_some());
    std::fs::remove_file(&file).unwrap();
    let (seen, _) = look(&server, &bound, seen);
    let (seen, news) = look(&server, &bound, seen);
    assert!(matches!(&news, Some(News::Failed(reason)) if reason.contains("not found")), "{news:?}");
    std::fs::write(&file, rules("a")).unwrap();
    let (_, news) = look(&server, &bound, seen);
    assert_eq!(news, Some(News::Same));
    assert_eq!(bound.state().policies().unwrap().count(), 1);
}

#[test]
fn p43_what_was_counted_and_learned_is_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(dir.path());
    let home = Home::at(dir.path().join("home"));
    let key: Key = ("run_000000000001".parse().unwrap(), server.name.clone());
    let bound = server.policy.unwrap();
    bound.learn("t", "{\"readOnlyHint\":true}");
    std::fs::create_dir_all(dir.path().join("home/runs")).unwrap();
    save(&home, &key, &bound);
    let after: Bound = serde_json::from_str(&serde_json::to_string(&bound).unwrap()).unwrap();
    assert_eq!(after.annotations("t"), None);
    restore(&home, &key.0, &key.1, &after);
    assert_eq!(after.annotations("t").as_deref(), Some("{\"readOnlyHint\":true}"));
}

/// Else an edit that nobody accepted forges what the accepted rules let pass.
#[test]
fn p41_an_edit_that_nobody_accepted_may_deny_and_never_write() {
    let dir = tempfile::tempdir().unwrap();
    let (server, file) = server(dir.path());
    let bound = server.policy.clone().unwrap();
    let (seen, _) = look(&server, &bound, Seen::default());
    let redaction = "- {name: z, action: redact, redact: {target: params.team, patterns: [{match: web, replace: ops}]}}\n";
    std::fs::write(&file, rules("another") + redaction).unwrap();
    let (_, news) = look(&server, &bound, seen);
    assert!(matches!(news, Some(News::Pending { .. })), "{news:?}");
    let state = bound.state();
    let pending = state.pending.as_ref().unwrap();
    assert_eq!(pending.set.rules.len(), 2, "what is shown, and what a reload accepts, is all of it");
    assert!(!pending.rewrites());
}

#[test]
fn p41_a_reload_keeps_what_the_file_said_since() {
    let dir = tempfile::tempdir().unwrap();
    let (server, file) = server(dir.path());
    let bound = server.policy.clone().unwrap();
    let compiled = |operation: &str| {
        std::fs::write(&file, rules(operation)).unwrap();
        Arc::new(file::load(&file, "x.yaml", &Scopes::default()).unwrap().policy)
    };
    let (accepted, newer) = (compiled("b"), compiled("c"));
    let next = bound.with(&accepted);
    bound.suggest(Some(Arc::clone(&newer)), None);
    next.take_effect();
    assert_eq!(bound.state().pending.as_ref().map(|policy| &policy.hash), Some(&newer.hash));
    bound.suggest(Some(accepted), None);
    next.take_effect();
    assert!(bound.state().pending.is_none());
}

#[test]
fn p43_what_cannot_be_read_closes_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(dir.path());
    let home = Home::at(dir.path().join("home"));
    let run: RunId = "run_000000000001".parse().unwrap();
    let path = home.policy_memory(&run, &server.name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "{").unwrap();
    let bound = server.policy.unwrap();
    restore(&home, &run, &server.name, &bound);
    let state = bound.state();
    let Err(reason) = state.policies().map(|_| ()) else { panic!("it serves with full budgets") };
    assert!(reason.contains("moat policy reload run_000000000001"), "{reason}");
}

#[test]
fn p43_what_a_full_disk_did_not_take_is_written_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(dir.path());
    let home = Home::at(dir.path().join("home"));
    let key: Key = ("run_000000000001".parse().unwrap(), server.name.clone());
    let path = home.policy_memory(&key.0, &key.1);
    // A directory in the file's place: nothing can be written there.
    std::fs::create_dir_all(path.join("x")).unwrap();
    let bound = server.policy.unwrap();
    bound.learn("t", "{}");
    save(&home, &key, &bound);
    assert!(path.is_dir());
    std::fs::remove_dir_all(&path).unwrap();
    save(&home, &key, &bound);
    assert!(path.is_file(), "nothing changed since, and it is still to be written");
}

#[test]
fn a_server_cannot_make_the_bridge_remember_long_names() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = server(dir.path());
    let bound = server.policy.unwrap();
    let long = "t".repeat(2000);
    bound.learn(&long, "{}");
    assert_eq!(bound.annotations(&long), None);
}
