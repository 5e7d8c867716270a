//! The tests' MCP server on its own, for trying things by hand: prints its URL and serves until stdin ends.
//!
//! `moat-fixture-server [HEADER VALUE]` demands a header when it is given one. `moat-fixture-server suite` is the server
//! that the official conformance suite is run against.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "this program says where it listens")]

use std::{io::Read, process::ExitCode};

use moat_tests::{
    Outcome, Trouble,
    suite::server::SuiteServer,
    upstream::{Demand, Upstream},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            println!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let demand = match &arguments[..] {
        [suite] if suite == "suite" => {
            let server = SuiteServer::start()?;
            println!("{}", server.url());
            return until_stdin_ends();
        }
        [] => None,
        [header, value] => Some(Demand::new(header, value)),
        _ => return Err(Trouble::new("usage: moat-fixture-server [suite | HEADER VALUE]")),
    };
    let server = Upstream::plain("fixture", demand)?;
    println!("{}", server.url());
    until_stdin_ends()
}

fn until_stdin_ends() -> Outcome {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing)?;
    Ok(())
}
