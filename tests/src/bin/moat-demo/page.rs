//! How the demo looks: plain text, two columns, a verdict. The only part that prints.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the demo's page")]

use std::process::ExitCode;

use moat_tests::Trouble;
use nix::unistd::Pid;

const LEFT: usize = 46;

/// Who it is and what comes.
pub(crate) fn title() {
    println!("moat: an agent in a sandbox uses two MCP servers and never holds a credential\n");
}

/// Why nothing happens for a while, the first time.
pub(crate) fn building() {
    eprintln!("building moat with its sidecar; this takes a minute or two the first time ...\n");
}

/// A heading over two columns.
pub(crate) fn headings(left: &str, right: &str) {
    row(left, right);
    row(&"-".repeat(LEFT - 3), &"-".repeat(LEFT - 3));
}

/// One row of two columns.
pub(crate) fn row(left: &str, right: &str) {
    println!("{}", format!("{left:<LEFT$}{right}").trim_end());
}

/// A line of its own.
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// A heading of its own.
pub(crate) fn heading(text: &str) {
    println!("\n{text}\n{}", "-".repeat(text.chars().count()));
}

/// What must be so, and whether it is.
#[derive(Debug)]
pub(crate) struct Check {
    /// In words.
    pub(crate) claim: &'static str,
    /// What speaks against it.
    pub(crate) against: Option<String>,
}

/// Prints the checks; success only when nothing speaks against any and nothing is left.
pub(crate) fn verdict(checks: Vec<Check>, left: &[Pid]) -> ExitCode {
    let cleaned = Check {
        claim: "sandbox, bridge, servers and home are gone",
        against: (!left.is_empty()).then(|| format!("these processes had to be killed: {left:?}")),
    };
    heading("Checked");
    let mut failed = 0;
    for check in checks.into_iter().chain([cleaned]) {
        match check.against {
            None => println!("ok      {}", check.claim),
            Some(against) => {
                failed += 1;
                println!("FAILED  {}\n        {against}", check.claim);
            }
        }
    }
    if failed == 0 {
        println!(
            "\nEverything is as it must be. Yours next: moat grant mcp NAME, then moat claude ./project"
        );
        ExitCode::SUCCESS
    } else {
        eprintln!("\n{failed} of these are not as they must be.");
        ExitCode::FAILURE
    }
}

/// The user had seen enough.
pub(crate) fn interrupted(left: &[Pid]) -> ExitCode {
    eprintln!("\ninterrupted; cleaned up{}", if left.is_empty() { "" } else { ", not without force" });
    ExitCode::from(130)
}

/// It did not come to a verdict.
pub(crate) fn trouble(trouble: &Trouble) {
    eprintln!("\nThe demo could not be carried out: {trouble}");
}
