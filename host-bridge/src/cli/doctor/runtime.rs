//! May this user make the namespaces that the process runtime needs?

use std::{fs, path::Path};

use moat_shared::plan::Agent;

use super::{Report, Section};
use crate::{
    env::Environment,
    runtime::{
        apple::{self, AppleError},
        choose::{Needs, choose, rule},
        docker::{EngineError, build, engine::Kind},
        embed,
        process::Process,
    },
};

const HERE: Section = Section::Runtime;

/// Settings that take user namespaces from ordinary users: file below /proc/sys, the value that does, its remedy.
const SWITCHES: [(&str, &str, &str); 3] = [
    ("user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0\n  or give moat an AppArmor profile with 'userns,'",
    ),
];

pub(super) fn look(sysctls: &Path, is_root: bool, report: &mut Report) {
    if !cfg!(target_os = "linux") {
        report.problem(HERE, "process: needs Linux; other runtimes are not supported yet");
        return;
    }
    if is_root {
        report.ok(HERE, "process: this is root, which may make namespaces");
        return;
    }
    let off = SWITCHES.iter().find(|(file, value, _)| {
        // A switch that this kernel does not have is not thrown.
        fs::read_to_string(sysctls.join(file)).is_ok_and(|text| text.trim() == *value)
    });
    match off {
        Some((file, value, remedy)) => {
            report
                .problem(
                    HERE,
                    format!(
                        "process: user namespaces are not allowed here ({} = {value})",
                        file.replace('/', ".")
                    ),
                )
                .remedy(format!("To fix:\n  {remedy}"));
        }
        None => {
            report.ok(HERE, "process: user namespaces are allowed");
        }
    }
}

/// Which engines answer, and which runtime a run gets that asks for none.
pub(super) async fn engines(env: &Environment, report: &mut Report) {
    for kind in [Kind::Docker, Kind::Podman] {
        match kind.find(env).await {
            Ok(engine) => {
                let name = kind.name();
                let found = report.ok(
                    HERE,
                    format!(
                        "{name}: {} {} answers at {}",
                        engine.kind,
                        engine.version,
                        engine.socket.display()
                    ),
                );
                if engine.is_apart {
                    found.detail(
                        "it has a kernel of its own, and so a machine: the tunnel goes over a published port"
                            .to_owned(),
                    );
                }
            }
            // That an engine is not there is no problem: nobody has asked for it.
            Err(EngineError::NotThere { looked, .. }) => {
                let found = report.ok(HERE, format!("{}: no engine answers", kind.name()));
                for place in looked {
                    found.detail(place);
                }
            }
            Err(error) => {
                report.error(HERE, &error);
            }
        }
    }
    apples(env, report).await;
    match embed::carried_names().as_str() {
        "none" => report.warning(HERE, "this moat carries no sidecar"),
        names => report.ok(HERE, format!("this moat carries sidecars for: {names}")),
    };
    defaults(env, report).await;
}

/// Apple's containers: what was found, and what that means for a run that asks for nothing.
async fn apples(env: &Environment, report: &mut Report) {
    let is_macos = cfg!(target_os = "macos");
    let found = match apple::find(env).await {
        Ok(found) => found,
        Err(AppleError::NotThere) => {
            report.ok(HERE, "apple: there is no 'container' in PATH");
            return;
        }
        // Elsewhere it may be anything that has this name.
        Err(error) if !is_macos => {
            let text = format!("apple: the 'container' in PATH is none that moat can use: {error}");
            report.ok(HERE, text).detail("only --runtime apple would start it");
            return;
        }
        Err(error) => {
            report.error(HERE, &error);
            return;
        }
    };
    let text = format!("apple: container {} is {}", found.version, found.cli.program().display());
    let why = match rule(is_macos, true) {
        Some(_) => "this is macOS: a run that asks for no runtime gets it",
        None => "this is not macOS: only --runtime apple starts it",
    };
    report.ok(HERE, text).detail(why);
    if let Some(warning) = found.warning {
        report.warning(HERE, format!("apple: {warning}"));
    }
    match apple::check_service(&found.cli).await {
        Ok(()) => {
            report.ok(HERE, "apple: its service is running");
        }
        Err(error) => {
            report.error(HERE, &error);
        }
    }
}

/// What a run gets that asks for no runtime, and why.
async fn defaults(env: &Environment, report: &mut Report) {
    for (image, what) in [(None, "a run that names no image"), (Some("any"), "a run that names an image")] {
        match choose(None, Needs { image, agent: None }, env).await {
            Ok((chosen, _)) => report.ok(HERE, format!("{what} gets {}", chosen.name())),
            Err(_) => report.ok(HERE, format!("{what} cannot start: it needs a container engine")),
        };
    }
    for agent in Agent::ALL {
        let verb = agent.name();
        let own = build::Kind::Of(agent).image();
        match choose(None, Needs { image: None, agent: Some(agent) }, env).await {
            Ok((chosen, Some(image))) => {
                report.ok(HERE, format!("moat {verb} gets {} with {image}", chosen.name()))
            }
            Ok((chosen, None)) => {
                let gets = format!("moat {verb} gets {}: no Docker that answers has {own}", chosen.name());
                report.ok(HERE, format!("{gets} (moat image build {verb} makes it)"))
            }
            Err(error) => report.error(HERE, &error),
        };
    }
}

/// Can `network.mode: open` be had?
pub(super) fn network(process: &Process<'_>, report: &mut Report) {
    match process.pasta() {
        Some(pasta) => {
            report.ok(HERE, format!("process: network.mode open is possible, with {}", pasta.display()))
        }
        None => report
            .ok(HERE, "process: network.mode open is not possible, because pasta is not installed")
            .detail("it is in the package passt"),
    };
}

/// Says so when relay and agent are one uid.
pub(super) fn users(process: &Process<'_>, workspace: &Path, report: &mut Report) {
    // A workspace that cannot be looked at is the servers' section's to tell.
    if !process.separates_users(workspace).unwrap_or(true) {
        report
            .warning(HERE, "process: relay and agent are the same user in the sandbox")
            .remedy(
                "To separate them, install newuidmap and newgidmap (package uidmap) and give your user a range:\n  \
                 sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER",
            );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("kernel/unprivileged_userns_clone", "0\n", false => true; "switched off")]
    #[test_case("kernel/unprivileged_userns_clone", "1\n", false => false; "switched on")]
    #[test_case("kernel/apparmor_restrict_unprivileged_userns", "1\n", false => true; "AppArmor")]
    #[test_case("user/max_user_namespaces", "0\n", true => false; "root")]
    #[test_case("user/max_user_namespaces", "63000\n", false => false; "many")]
    fn broken(file: &str, value: &str, is_root: bool) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
        let mut report = Report::default();
        look(dir.path(), is_root, &mut report);
        assert_eq!(report.0.len(), 1);
        report.is_broken()
    }
}
