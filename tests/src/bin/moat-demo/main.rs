//! `cargo demo`: the whole path once, with everything real, in a throw-away home.
//!
//! ```text
//! build ──► servers, grant ──► sandbox, agent ──► what each side saw ──► verdict ──► clean up
//! ```
//!
//! Exits non-zero when anything is not as it must be, and leaves nothing behind, interrupted or not.
#![forbid(unsafe_code)]

mod page;
mod story;

use std::{process::ExitCode, sync::Arc, thread};

use moat_tests::{
    Outcome, listen,
    rig::{self, Rig},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(trouble) => {
            page::trouble(&trouble);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<ExitCode> {
    page::title();
    if rig::binary("moat").is_err() {
        page::building();
    }
    let runtime = listen::runtime()?;
    // From here on an interruption is a way to end, not an end in the middle.
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let rig = Arc::new(Rig::new()?);
    let (done, ended) = oneshot::channel();
    let told = Arc::clone(&rig);
    let teller = thread::spawn(move || {
        let outcome = story::tell(&told);
        drop(told);
        // Interrupted: nobody waits any more.
        let _nobody_waits = done.send(outcome);
    });
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = ended => outcome.ok(),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        }
    });
    let interrupted = outcome.is_none();
    let left = rig.sweep();
    if !interrupted && teller.join().is_err() {
        return Ok(ExitCode::FAILURE);
    }
    Ok(match outcome {
        Some(outcome) => page::verdict(outcome?, &left),
        None => page::interrupted(&left),
    })
}
