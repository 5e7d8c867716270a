//! What QEMU is asked while it runs: its monitor's JSON lines (QMP).

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::Value;

use crate::{Outcome, Trouble, rig::PATIENCE, trouble::ensure};

/// A connection to the monitor; it takes one at a time.
#[derive(Debug)]
pub(super) struct Monitor {
    lines: BufReader<UnixStream>,
    /// What came while something else was waited for.
    events: Vec<Value>,
}

impl Monitor {
    pub(super) fn open(socket: &Path) -> Outcome<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self { lines: BufReader::new(stream), events: Vec::new() };
        let hello = monitor.next()?;
        ensure(hello["QMP"].is_object(), || format!("no monitor: {hello}"))?;
        monitor.ask("qmp_capabilities", "")?;
        Ok(monitor)
    }

    /// Carries out a command; `arguments` are the members of a JSON object.
    pub(super) fn ask(&mut self, command: &str, arguments: &str) -> Outcome {
        let line = format!("{{\"execute\":\"{command}\",\"arguments\":{{{arguments}}}}}\n");
        self.lines.get_mut().write_all(line.as_bytes())?;
        loop {
            let said = self.next()?;
            if said["event"].is_string() {
                self.events.push(said);
                continue;
            }
            return ensure(said["return"].is_object(), || format!("{command}: {said}"));
        }
    }

    /// Waits for an event of a device.
    pub(super) fn event(&mut self, name: &str, device: &str) -> Outcome {
        let is_it = |event: &Value| event["event"] == name && event["data"]["device"] == device;
        loop {
            if self.events.drain(..).any(|event| is_it(&event)) {
                return Ok(());
            }
            let said = self.next()?;
            self.events.push(said);
        }
    }

    fn next(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line)?;
        ensure(read > 0, || "the monitor is gone".to_owned())?;
        serde_json::from_str(&line).map_err(|error| Trouble::new(format!("{error}: {line}")))
    }
}
