//! The servers of the workspace's moat.yaml: is the file in order, is each grant there and bound to the server's host?

use std::path::Path;

use super::{Report, Section};
use crate::{
    config,
    credentials::{Store, token_for},
    server::Server,
};

const HERE: Section = Section::Mcp;

/// Returns the servers, for whoever knows more about them.
pub(super) fn look(workspace: &Path, store: &Store, report: &mut Report) -> Vec<Server> {
    let config = match config::load(workspace) {
        Ok(config) => config,
        Err(error) => {
            report.error(HERE, &error);
            return Vec::new();
        }
    };
    let Some(file) = &config.file else {
        let text = format!("no moat.yaml in {}", workspace.display());
        report.ok(HERE, text);
        return Vec::new();
    };
    for warning in &config.warnings {
        report.warning(HERE, warning.to_string());
    }
    if config.servers.is_empty() {
        report.ok(HERE, format!("{} names none", file.display()));
    }
    for server in &config.servers {
        one(server, store, report);
    }
    config.servers
}

fn one(server: &Server, store: &Store, report: &mut Report) {
    let name = &server.name;
    match token_for(store, server) {
        Ok(None) => drop(report.ok(HERE, format!("{name}: needs no credential"))),
        Ok(Some(token)) => {
            drop(report.ok(
                HERE,
                format!("{name}: grant '{}' is there, and bound to {}", token.grant(), token.host()),
            ))
        }
        Err(error) => {
            let finding = report.error(HERE, &error);
            if !finding.text.contains(&format!("'{name}'")) {
                finding.text = format!("{name}: {}", finding.text);
            }
        }
    }
    if let Some(finding) = report.0.last_mut() {
        // Without the query, which may hold a key.
        finding.detail(format!("{:?}", server.upstream));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{env::Environment, home::Home};

    fn report(yaml: &str) -> Report {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("moat.yaml"), yaml).unwrap();
        let env = Environment::from([("MOAT_KEYRING_BACKEND", "file")]);
        let store = Store::open(&Home::at(dir.path().join("home")), &env, None);
        let mut report = Report::default();
        look(dir.path(), &store, &mut report);
        report
    }

    #[test]
    fn a_missing_grant_names_its_command() {
        let report =
            report("mcp:\n  - context7\n  - {name: local, url: 'http://localhost:3000/mcp?key=s3cr3t'}\n");
        assert!(report.is_broken());
        let text = report.text(true);
        assert!(text.contains("context7: grant 'mcp-context7' is not configured"), "{text}");
        assert!(text.contains("moat grant mcp context7"), "{text}");
        assert!(text.contains("local: needs no credential"), "{text}");
        assert!(!text.contains("s3cr3t"), "{text}");
    }

    #[test]
    fn a_broken_file_is_a_problem_with_its_lines() {
        let text = report("mcp:\n  - contxt7\npolcy: x\n").text(false);
        assert!(text.contains("moat.yaml:2") && text.contains("moat.yaml:3"), "{text}");
    }
}
