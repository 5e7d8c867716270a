//! `moat doctor`: looks at every part, says what is wrong, and what mends it. It changes nothing and starts nothing.
//!
//! One file per section; each adds its findings to a [`Report`].

mod bridge;
mod credentials;
mod runtime;
mod servers;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use moat_shared::hint::Hint;
use serde::Serialize;

use super::{Context, Failure, Outcome, print, proxy::block_on, text::visible, with_causes};
use crate::{credentials::Store, runtime::process::Process};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Looks at the bridge, the tunnels of its runs, credentials and their key, the runtime, and the servers of the moat.yaml
in the workspace. Each problem comes with its remedy. Exit code 1 if something is broken.

Examples:
  moat doctor
  moat doctor ./project -v
  moat doctor --json | jq '.[] | select(.verdict == \"problem\")'")]
pub(crate) struct Args {
    /// The workspace whose moat.yaml is looked at
    #[arg(value_name = "WORKSPACE", default_value = ".")]
    workspace: PathBuf,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut report = Report::default();
        let store = Store::open(&context.home, &context.env, context.global.profile.as_ref());
        block_on(async {
            let status = bridge::look(&context.home, Timestamp::now(), &mut report).await;
            credentials::look(&context.home, &store, &mut report);
            runtime::look(Path::new("/proc/sys"), nix::unistd::geteuid().is_root(), &mut report);
            let process = Process { env: &context.env, home: &context.home };
            runtime::network(&process, &mut report);
            runtime::users(&process, &self.workspace, &mut report);
            runtime::engines(&context.env, &mut report).await;
            let servers = servers::look(&self.workspace, &store, &mut report);
            servers::reach(&servers, &mut report).await;
            if let Some(status) = &status {
                servers::last_errors(&servers, status, &mut report);
            }
            Ok(moat_shared::exit::OK)
        })?;
        if context.global.json {
            let text = serde_json::to_string_pretty(&report.0).map_err(|e| Failure::new(e.to_string()))?;
            print::line(&text);
        } else {
            print::line(report.text(context.global.verbose).trim_end());
        }
        Ok(if report.is_broken() { moat_shared::exit::FAILURE } else { moat_shared::exit::OK })
    }
}

/// A part of moat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Section {
    Bridge,
    Tunnel,
    Credentials,
    Runtime,
    Mcp,
}

impl Section {
    const fn title(self) -> &'static str {
        match self {
            Self::Bridge => "Bridge",
            Self::Tunnel => "Tunnels",
            Self::Credentials => "Credentials",
            Self::Runtime => "Runtime",
            Self::Mcp => "MCP servers",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    section: Section,
    verdict: Verdict,
    text: String,
    remedy: Option<String>,
    /// For `-v` only.
    details: Vec<String>,
}

/// Everything that was looked at.
#[derive(Debug, Default)]
struct Report(Vec<Finding>);

impl Report {
    fn add(&mut self, section: Section, verdict: Verdict, text: impl Into<String>) -> &mut Finding {
        let finding = Finding { section, verdict, text: text.into(), remedy: None, details: Vec::new() };
        self.0.push(finding);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn ok(&mut self, section: Section, text: impl Into<String>) -> &mut Finding {
        self.add(section, Verdict::Ok, text)
    }

    fn warning(&mut self, section: Section, text: impl Into<String>) -> &mut Finding {
        self.add(section, Verdict::Warning, text)
    }

    fn problem(&mut self, section: Section, text: impl Into<String>) -> &mut Finding {
        self.add(section, Verdict::Problem, text)
    }

    /// A problem with an error's text, causes and remedy.
    fn error(&mut self, section: Section, error: &(impl Hint + 'static)) -> &mut Finding {
        let remedy = error.hint().map(std::borrow::Cow::into_owned);
        let finding = self.problem(section, with_causes(error));
        finding.remedy = remedy;
        finding
    }

    fn is_broken(&self) -> bool {
        self.0.iter().any(|finding| finding.verdict == Verdict::Problem)
    }

    fn text(&self, details: bool) -> String {
        let mut text = String::new();
        let mut section = None;
        for finding in &self.0 {
            if section != Some(finding.section) {
                let gap = if section.is_some() { "\n" } else { "" };
                text.push_str(&format!("{gap}{}\n", finding.section.title()));
                section = Some(finding.section);
            }
            finding.write(details, &mut text);
        }
        let problems = self.0.iter().filter(|finding| finding.verdict == Verdict::Problem).count();
        text.push_str(&match problems {
            0 => "\nNo problems found\n".to_owned(),
            1 => "\n1 problem found\n".to_owned(),
            n => format!("\n{n} problems found\n"),
        });
        text
    }
}

impl Finding {
    fn remedy(&mut self, remedy: impl Into<String>) -> &mut Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn detail(&mut self, detail: impl Into<String>) -> &mut Self {
        self.details.push(detail.into());
        self
    }

    fn write(&self, details: bool, text: &mut String) {
        let mark = match self.verdict {
            Verdict::Ok => "[ok]  ",
            Verdict::Warning => "[warn]",
            Verdict::Problem => "[FAIL]",
        };
        let mut lines = self.text.lines();
        text.push_str(&format!("  {mark} {}\n", visible(lines.next().unwrap_or_default())));
        let remedy = self.remedy.iter().flat_map(|remedy| remedy.lines());
        let details = self.details.iter().filter(|_| details).flat_map(|detail| detail.lines());
        for line in lines.chain(remedy).chain(details) {
            let line = format!("         {}", visible(line));
            text.push_str(&format!("{}\n", line.trim_end()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_for_people() {
        let mut report = Report::default();
        report.ok(Section::Bridge, "running").detail("pid 7");
        report.problem(Section::Mcp, "notion: no grant").remedy("To fix:\n  moat grant oauth notion");
        report.warning(Section::Mcp, "odd\u{1b}[2J");
        assert_eq!(
            report.text(true),
            "Bridge\n  [ok]   running\n         pid 7\n\nMCP servers\n  [FAIL] notion: no grant\n         To fix:\n           \
             moat grant oauth notion\n  [warn] odd\\u{1b}[2J\n\n1 problem found\n"
        );
        assert!(!report.text(false).contains("pid 7"));
        assert!(report.is_broken());
    }
}
