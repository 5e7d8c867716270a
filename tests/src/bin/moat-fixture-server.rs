//! The tests' MCP server on its own, for trying things by hand: prints its URL and serves until stdin ends.
//!
//! `moat-fixture-server [HEADER VALUE]` demands a header when it is given one.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "this program says where it listens")]

use std::{io::Read, process::ExitCode};

use moat_tests::{
    Outcome, Trouble,
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
        [] => None,
        [header, value] => Some(Demand::new(header, value)),
        _ => return Err(Trouble::new("usage: moat-fixture-server [HEADER VALUE]")),
    };
    let server = Upstream::plain("fixture", demand)?;
    println!("{}", server.url());
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing)?;
    Ok(())
}
