//! `moat logs`: what a run printed, while it runs and afterwards.

use std::{io, io::Write, path::PathBuf, thread, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use moat_shared::id::RunId;
use serde::{Deserialize, Serialize};

use super::{Context, Outcome, pick, print, text::harmless, when};
use crate::{home::Home, jsonl::Lines, run::metadata::Record};

/// How often a file that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat logs                   the last 100 lines of the most recent run
  moat logs -n 20 -f run_a1   the last 20 lines, then what comes until the run ends
  moat logs --json            one JSON object per line: {\"ts\", \"line\"}")]
pub(crate) struct Args {
    /// A run's id, the beginning of one, or its name [default: the most recent run]
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    lines: u64,
    /// Go on as the run prints more, until it ends
    #[arg(short, long)]
    follow: bool,
}

/// One line of logs.jsonl.
#[derive(Debug, Serialize, Deserialize)]
struct LogLine {
    ts: Timestamp,
    line: String,
}

/// How a line is shown.
#[derive(Debug)]
enum Form {
    Json,
    /// For the terminal: control characters go.
    Terminal {
        zone: TimeZone,
        colour: bool,
    },
    /// For a pipe or a file: as it was printed.
    Plain {
        zone: TimeZone,
    },
}

impl Form {
    fn write(&self, line: &LogLine, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Json => {
                serde_json::to_writer(&mut *out, line)?;
                writeln!(out)
            }
            Self::Terminal { zone, colour } => {
                writeln!(out, "{} {}", when::clock(line.ts, zone), harmless(&line.line, *colour))
            }
            Self::Plain { zone } => writeln!(out, "{} {}", when::clock(line.ts, zone), line.line),
        }
    }
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let run = pick::one(context, self.run.as_deref())?;
        let zone = TimeZone::system();
        let form = if context.global.json {
            Form::Json
        } else if print::is_terminal() {
            Form::Terminal { zone, colour: print::colour(&context.env) }
        } else {
            Form::Plain { zone }
        };
        let mut skipped = 0;
        let mut shown = 0;
        print::stream(|out| {
            let mut reader = Reader::new(context.home.logs(&run.id), self.lines);
            let result =
                reader.show(&mut || Ok(!self.follow || is_over(&context.home, &run.id)?), &form, out);
            skipped = reader.lines.as_ref().map_or(0, Lines::skipped);
            shown = result?;
            Ok(())
        })?;
        print::skipped(skipped, "logs.jsonl");
        if shown == 0 && skipped == 0 && !context.global.json {
            print::note("No output recorded");
        }
        Ok(moat_shared::exit::OK)
    }
}

/// Reads a run's log, which may not be there yet.
#[derive(Debug)]
struct Reader {
    file: PathBuf,
    lines: Option<Lines>,
    count: u64,
}

impl Reader {
    fn new(file: PathBuf, count: u64) -> Self {
        Self { file, lines: None, count }
    }

    /// Shows the last lines and what follows until it is over. Returns how many there were.
    fn show(
        &mut self,
        is_over: &mut dyn FnMut() -> io::Result<bool>,
        form: &Form,
        out: &mut dyn Write,
    ) -> io::Result<u64> {
        let mut shown = 0;
        loop {
            // Asked before reading: what a run printed before it ended is read afterwards.
            let over = is_over()?;
            shown += self.show_what_is_there(form, out)?;
            if over {
                return Ok(shown);
            }
            out.flush()?;
            thread::sleep(LOOK);
        }
    }

    fn show_what_is_there(&mut self, form: &Form, out: &mut dyn Write) -> io::Result<u64> {
        if self.lines.is_none() {
            self.lines = Lines::open(&self.file)?;
            if let Some(lines) = &mut self.lines {
                lines.seek_to_last(self.count)?;
            }
        }
        let Some(lines) = &mut self.lines else { return Ok(0) };
        let mut shown = 0;
        while let Some(line) = lines.next::<LogLine>()? {
            form.write(&line, out)?;
            shown += 1;
        }
        Ok(shown)
    }
}

/// Is the run over, or gone?
fn is_over(home: &Home, run: &RunId) -> io::Result<bool> {
    let record = Record::read(home, run).map_err(io::Error::other)?;
    Ok(record.is_none_or(|record| !record.state().is_live()))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::mpsc};

    use super::*;
    use crate::{control::api::Process, run::metadata::Metadata};

    fn home() -> (tempfile::TempDir, Home, Record) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let metadata =
            Metadata::new("x".into(), Path::new("/w"), "process", Process::current(), Timestamp::UNIX_EPOCH);
        let mut run = Record::create(&home, "run_0123456789ab".parse().unwrap(), metadata).unwrap();
        run.running(&home, String::new(), Timestamp::UNIX_EPOCH).unwrap();
        (dir, home, run)
    }

    fn line(n: usize) -> String {
        format!("{{\"ts\":\"2026-01-25T10:23:44.{n:03}Z\",\"line\":\"line {n}\"}}\n")
    }

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_last_lines_are_shown() {
        let (_dir, home, run) = home();
        append(&home.logs(&run.id), &(0..80).map(line).collect::<String>());
        let mut out = Vec::new();
        let mut reader = Reader::new(home.logs(&run.id), 2);
        assert_eq!(reader.show(&mut || Ok(true), &Form::Plain { zone: TimeZone::UTC }, &mut out).unwrap(), 2);
        assert_eq!(String::from_utf8(out).unwrap(), "[10:23:44.078] line 78\n[10:23:44.079] line 79\n");
    }

    #[test]
    fn what_was_printed_just_before_the_end_is_shown() {
        let (_dir, home, run) = home();
        let logs = home.logs(&run.id);
        let mut reader = Reader::new(logs.clone(), 10);
        let mut ends = || {
            append(&logs, &line(1));
            Ok(true)
        };
        assert_eq!(reader.show(&mut ends, &Form::Plain { zone: TimeZone::UTC }, &mut Vec::new()).unwrap(), 1);
    }

    /// Tells of each flush what has been written so far.
    struct Tell(Vec<u8>, mpsc::Sender<String>);
    impl Write for Tell {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.1.send(String::from_utf8(self.0.clone()).unwrap()).map_err(io::Error::other)
        }
    }

    #[test]
    fn following_shows_lines_as_they_come_and_ends_with_the_run() {
        let (_dir, home, mut run) = home();
        let logs = home.logs(&run.id);
        let (tell, told) = mpsc::channel::<String>();
        let until = |part: &str| loop {
            let so_far = told.recv_timeout(Duration::from_secs(10)).unwrap();
            if so_far.contains(part) {
                break;
            }
        };
        thread::scope(|scope| {
            let (home, id) = (&home, run.id.clone());
            let mut reader = Reader::new(logs.clone(), 10);
            let following = scope.spawn(move || {
                let mut out = Tell(Vec::new(), tell);
                reader
                    .show(&mut || is_over(home, &id), &Form::Plain { zone: TimeZone::UTC }, &mut out)
                    .unwrap()
            });
            until("");
            append(&logs, &line(1));
            until("line 1\n");
            append(&logs, &line(2)[..20]);
            append(&logs, &line(2)[20..]);
            until("line 2\n");
            append(&logs, &line(3));
            run.stopped(home, 0, Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(following.join().unwrap(), 3, "what came last before the end is shown");
        });
    }
}
