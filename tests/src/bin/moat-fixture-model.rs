//! The fake model, for agents in a sandbox that has no network, and the MCP server that such an agent starts itself.
//!
//! `moat-fixture-model PORT NOTES` serves [`moat_tests::model`] until it is ended; `moat-fixture-model stdio NAME` is an
//! MCP server on stdin and stdout.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this program says that it is ready, or why not"
)]

use std::{path::Path, process::ExitCode};

use moat_tests::{Outcome, Trouble, listen, model::Model, tools};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [stdio, name] if stdio == "stdio" => listen::runtime()?.block_on(tools::on_stdio(name)),
        [port, notes] => {
            let _model = Model::start(port.parse()?, Path::new(notes))?;
            println!("ready");
            loop {
                std::thread::park();
            }
        }
        _ => Err(Trouble::new("usage: moat-fixture-model PORT NOTES | stdio NAME")),
    }
}
