//! Time that is the same inside and outside a sandbox, and waiting for a condition.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

use crate::{Outcome, Trouble};

/// `CLOCK_MONOTONIC` in microseconds: comparable between processes of one kernel.
#[must_use]
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| Duration::from(time).as_micros())
        .ok()
        .and_then(|micros| u64::try_from(micros).ok())
        .unwrap_or_default()
}

/// Microseconds as milliseconds.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Asks `probe` until it has an answer.
///
/// # Errors
/// When there is none by the deadline.
pub fn eventually<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> Outcome<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(answer) = probe() {
            return Ok(answer);
        }
        if Instant::now() >= end {
            return Err(Trouble::new(format!("not within {within:?}: {what}")));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
