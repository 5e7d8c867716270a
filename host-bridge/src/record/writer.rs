//! The one writer of every run's `network.jsonl` and `audit.jsonl`.
//!
//! When it is woken ([`Rings`]) it takes what has queued up, and writes it with one call per file. What cannot be written is
//! counted; the run's audit log says so (`records.lost`) as soon as it can be written again.

use std::{collections::VecDeque, fs::File, io, io::Write, sync::Arc};

use jiff::Timestamp;
use moat_shared::id::RunId;
use serde::Serialize;
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::{AuditEvent, AuditLine, Losses, Record, bell::Rings};
use crate::{
    disk,
    home::{Home, private_dir},
};

/// Records taken at once.
const BATCH: usize = 512;
/// Bytes of a file's lines for which room is kept from batch to batch.
const ROOM: usize = 256 * 1024;
const SPARE: usize = 8;
/// Files kept open.
const OPEN_FILES: usize = 64;

/// Takes records until the last recorder is gone.
#[derive(Debug)]
pub(crate) struct Writer {
    records: mpsc::Receiver<Record>,
    files: Files,
    rings: Arc<Rings>,
}

impl Writer {
    pub(super) fn new(
        home: Home,
        records: mpsc::Receiver<Record>,
        losses: Arc<Losses>,
        rings: Arc<Rings>,
    ) -> Self {
        let files = Files { home, open: VecDeque::new(), losses, spare: Vec::new() };
        Self { records, files, rings }
    }

    /// Writes until the last recorder is dropped and everything is written.
    pub(crate) async fn run(self) {
        let Self { mut records, mut files, rings } = self;
        let mut batch = Vec::with_capacity(BATCH);
        let mut is_open = true;
        while is_open {
            rings.rung().await;
            loop {
                while batch.len() < BATCH && is_open {
                    match records.try_recv() {
                        Ok(record) => batch.push(record),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => is_open = false,
                    }
                }
                if batch.is_empty() {
                    break;
                }
                let work = tokio::task::spawn_blocking(move || {
                    files.write(&mut batch);
                    (files, batch)
                });
                match work.await {
                    Ok(back) => (files, batch) = back,
                    Err(error) => {
                        tracing::error!(%error, "the record writer failed; nothing more is recorded");
                        return;
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Network,
    Audit,
}

#[derive(Debug)]
struct Open {
    run: RunId,
    kind: Kind,
    file: File,
    /// The last line was cut short; the next one starts on a line of its own.
    torn: bool,
}

#[derive(Debug)]
struct Files {
    home: Home,
    /// The most recently used last.
    open: VecDeque<Open>,
    losses: Arc<Losses>,
    /// Room for lines, from the batches before.
    spare: Vec<Vec<u8>>,
}

/// The lines of one batch for one file.
struct Lines {
    run: RunId,
    kind: Kind,
    text: Vec<u8>,
    count: u64,
}

impl Files {
    fn write(&mut self, batch: &mut Vec<Record>) {
        self.confess();
        let mut sorted: Vec<Lines> = Vec::new();
        let (mut over, mut marks) = (Vec::new(), Vec::new());
        for record in batch.drain(..) {
            match record {
                Record::Exchange(run, exchange) => self.add(&mut sorted, &run, Kind::Network, &exchange),
                Record::Audit(run, line) => {
                    self.add(&mut sorted, &run, Kind::Audit, &line);
                    if matches!(line.event, AuditEvent::RunUnregistered { .. }) {
                        over.push(run);
                    }
                }
                Record::Mark(mark) => marks.push(mark),
            }
        }
        for lines in &sorted {
            if let Err(error) = self.append(lines) {
                self.losses.add(&lines.run, lines.count);
                tracing::error!(run = %lines.run, %error, lost = lines.count, "records could not be written");
            }
        }
        for mark in marks {
            // Who has stopped waiting needs no word.
            let _heard = mark.send(()).is_ok();
        }
        self.open.retain(|open| !over.contains(&open.run));
        self.spare.extend(sorted.into_iter().map(|lines| lines.text).filter(|text| text.capacity() <= ROOM));
        self.spare.truncate(SPARE);
        self.spare.iter_mut().for_each(Vec::clear);
    }

    /// Writes down what was lost before.
    fn confess(&mut self) {
        for (run, count) in self.losses.take_owed() {
            let line = AuditLine { event: AuditEvent::RecordsLost { count }, timestamp: Timestamp::now() };
            let mut sorted = Vec::new();
            self.add(&mut sorted, &run, Kind::Audit, &line);
            if sorted.iter().any(|lines| self.append(lines).is_err()) {
                self.losses.still_owed(run, count);
            }
        }
    }

    fn add(&mut self, sorted: &mut Vec<Lines>, run: &RunId, kind: Kind, line: &impl Serialize) {
        let known = sorted.iter().position(|lines| lines.kind == kind && lines.run == *run);
        let index = known.unwrap_or_else(|| {
            sorted.push(Lines {
                run: run.clone(),
                kind,
                text: self.spare.pop().unwrap_or_default(),
                count: 0,
            });
            sorted.len() - 1
        });
        let lines = &mut sorted[index];
        // Strings, numbers and maps with string keys: none of these types can fail to serialise.
        if serde_json::to_writer(&mut lines.text, line).is_ok() {
            lines.text.push(b'\n');
        }
        lines.count += 1;
    }

    fn append(&mut self, lines: &Lines) -> io::Result<()> {
        let known = self.open.iter().position(|open| open.kind == lines.kind && open.run == lines.run);
        let mut open = match known.and_then(|index| self.open.remove(index)) {
            Some(open) => open,
            None => self.open_file(lines)?,
        };
        let written = open.write(&lines.text);
        self.open.push_back(open);
        if self.open.len() > OPEN_FILES {
            self.open.pop_front();
        }
        written
    }

    fn open_file(&self, lines: &Lines) -> io::Result<Open> {
        private_dir(&self.home.run(&lines.run))?;
        let path = match lines.kind {
            Kind::Network => self.home.network(&lines.run),
            Kind::Audit => self.home.audit(&lines.run),
        };
        Ok(Open { run: lines.run.clone(), kind: lines.kind, file: disk::append(&path)?, torn: false })
    }
}

impl Open {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
        }
        let written = self.file.write_all(text);
        self.torn = written.is_err();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::super::Recorder;
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn run_id(last: u8) -> RunId {
        RunId::from_random([0, 0, 0, 0, 0, last])
    }

    fn event() -> AuditEvent {
        AuditEvent::RunRegistered { servers: vec!["context7".parse().unwrap()] }
    }

    fn kinds(home: &Home, run: &RunId) -> Vec<String> {
        let text = fs::read_to_string(home.audit(run)).unwrap();
        let kind = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["type"].as_str().unwrap().to_owned()
        };
        text.lines().map(kind).collect()
    }

    #[tokio::test]
    async fn who_waits_finds_all_lines_in_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let (recorder, writer) = Recorder::with_writer(home.clone());
        let waits = async {
            for count in 1..=20 {
                recorder.audit(&run_id(1), event());
                recorder.written().await;
                assert_eq!(kinds(&home, &run_id(1)).len(), count);
            }
        };
        tokio::select! {
            () = waits => {}
            () = writer.run() => panic!("the writer is over"),
        }
    }

    #[tokio::test]
    async fn more_runs_than_files_are_kept_open() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let (recorder, writer) = Recorder::with_writer(home.clone());
        for round in 0..3 {
            for last in 0..100 {
                recorder.audit(&run_id(last), event());
            }
            assert_eq!(recorder.lost(), 0, "round {round}");
        }
        drop(recorder);
        writer.run().await;
        for last in 0..100 {
            assert_eq!(kinds(&home, &run_id(last)), vec!["run.registered"; 3]);
        }
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(home.audit(&run_id(1))), 0o600);
        assert_eq!(mode(home.run(&run_id(1))), 0o700);
    }

    #[tokio::test]
    async fn a_loss_is_counted_and_written_down_when_possible() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let run = run_id(1);
        // A directory in the file's place: nothing can be written there.
        fs::create_dir_all(home.audit(&run)).unwrap();
        let (recorder, writer) = Recorder::with_writer(home.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(writer.run());
        recorder.audit(&run, event());
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
        while recorder.lost() == 0 {
            assert!(tokio::time::Instant::now() < deadline, "the loss was not counted");
            tokio::task::yield_now().await;
        }
        fs::remove_dir(home.audit(&run)).unwrap();
        recorder.audit(&run, event());
        drop(recorder);
        tasks.join_all().await;
        assert_eq!(kinds(&home, &run), ["records.lost", "run.registered"]);
    }

    #[test]
    fn a_full_queue_counts() {
        let (recorder, _records) = Recorder::new(1);
        recorder.audit(&run_id(1), event());
        recorder.audit(&run_id(1), event());
        assert_eq!(recorder.lost(), 1);
        assert_eq!(recorder.losses.take_owed(), [(run_id(1), 1)].into());
    }

    #[test]
    fn a_line_after_a_torn_one_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut file = disk::append(&path).unwrap();
        file.write_all(b"{\"half").unwrap();
        let mut open = Open { run: run_id(1), kind: Kind::Audit, file, torn: true };
        open.write(b"{}\n").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "{\"half\n{}\n");
    }
}
