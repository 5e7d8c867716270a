//! `moat policy check`: loads every policy as a run would, and prints all mistakes and warnings.

use std::path::PathBuf;

use serde::Serialize;

use super::json;
use crate::{
    cli::{Context, Failure, Outcome, print},
    config,
    policy::file::{self, Broken, Scopes},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A workspace with a moat.yaml, or a rule file
    #[arg(value_name = "WORKSPACE|FILE", default_value = ".")]
    path: PathBuf,
    /// Treat warnings as mistakes
    #[arg(long)]
    strict: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Found {
    policies: Vec<Loaded>,
    warnings: Vec<String>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Loaded {
    server: Option<String>,
    source: String,
    mode: &'static str,
    rules: usize,
    sha256: String,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let found = if self.path.is_file() { self.file() } else { self.workspace() };
        if context.global.json {
            json(&found)?;
        } else {
            for policy in &found.policies {
                let server = policy.server.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
                print::line(&format!("{server}{} ({}, {} rules)", policy.source, policy.mode, policy.rules));
            }
            found.warnings.iter().for_each(|warning| print::line(&format!("Warning: {warning}")));
            if found.policies.is_empty() && found.problems.is_empty() {
                print::line("No server has a policy");
            }
        }
        if !found.problems.is_empty() {
            return Err(Failure::new(found.problems.join("\n")));
        }
        if self.strict && !found.warnings.is_empty() {
            return Err(Failure::new(format!("{} warnings, and --strict was given", found.warnings.len())));
        }
        Ok(moat_shared::exit::OK)
    }

    fn file(&self) -> Found {
        let mut found = Found::default();
        let shown = self.path.display().to_string();
        match file::load(&self.path, &shown, &Scopes::default()) {
            Ok(loaded) => {
                found.warnings = loaded.warnings;
                if !loaded.mode_is_given {
                    found.warnings.push(format!(
                        "{shown}: has no 'mode', so it records and blocks nothing (audit_only)"
                    ));
                }
                found.policies.push(Loaded {
                    server: None,
                    source: shown,
                    mode: loaded.policy.set.mode.as_str(),
                    rules: loaded.policy.set.rules.len(),
                    sha256: loaded.policy.hash,
                });
            }
            Err(Broken(problems)) => found.problems = problems,
        }
        found
    }

    fn workspace(&self) -> Found {
        let mut found = Found::default();
        match config::load(&self.path) {
            Ok(config) => {
                found.warnings = config.warnings.iter().map(ToString::to_string).collect();
                for server in &config.servers {
                    let Some(bound) = &server.policy else { continue };
                    match bound.rule_set() {
                        Ok(set) => found.policies.push(Loaded {
                            server: Some(server.name.to_string()),
                            source: bound.source.shown().to_owned(),
                            mode: set.mode.as_str(),
                            rules: set.rules.len(),
                            sha256: bound.sha256.clone(),
                        }),
                        Err(reason) => found.problems.push(reason),
                    }
                }
            }
            Err(problems) => found.problems.push(crate::cli::with_causes(&problems)),
        }
        found
    }
}
