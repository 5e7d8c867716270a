//! `moat audit`: how credentials were used, and what was refused.
//!
//! Lines are shown field by field in the order of the file, so that it need not know every kind of event.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
use serde_json::Value;

use super::{Context, Failure, Outcome, pick, print, text::visible, when};
use crate::{jsonl::Lines, run::metadata::Record};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  moat audit                         events of the most recent run
  moat audit brave-otter --json
  moat audit -e audit.json run_a1    write them to a file")]
pub(crate) struct Args {
    /// A run's id, the beginning of one, or its name [default: the most recent run]
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Write run and events to a file (JSON, mode 0600)
    #[arg(short, long, value_name = "FILE")]
    export: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Check an exported audit log (not supported yet)
    Verify {
        /// The exported file
        file: PathBuf,
    },
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        if let Some(Verb::Verify { file }) = self.verb {
            let text = format!("cannot verify {}: 'audit verify' is not supported yet", file.display());
            return Err(Failure::new(text));
        }
        let run = pick::one(context, self.run.as_deref())?;
        let lines = Lines::open(&context.home.audit(&run.id)).map_err(|e| Failure::new(e.to_string()))?;
        if lines.is_none() && context.home.run(&run.id).join("audit.db").exists() {
            let text =
                format!("the audit log of {} is an audit.db of another implementation of moat", run.id);
            return Err(Failure::new(text).with_hint("Reading it is not supported yet."));
        }
        match (&self.export, lines) {
            (Some(file), lines) => export(&run, lines, file)?,
            (None, Some(lines)) => show(lines, context.global.json)?,
            (None, None) => print::line(if context.global.json { "[]" } else { NOTHING }),
        }
        Ok(moat_shared::exit::OK)
    }
}

const NOTHING: &str = "No audit events recorded";

fn show(mut lines: Lines, json: bool) -> Result<(), Failure> {
    print::stream(|out| {
        if json {
            lines.write_array::<Event>(out)?;
            return writeln!(out);
        }
        let zone = TimeZone::system();
        let mut empty = true;
        while let Some(event) = lines.next::<Event>()? {
            empty = false;
            writeln!(out, "{}", event.line(&zone))?;
        }
        if empty { writeln!(out, "{NOTHING}") } else { Ok(()) }
    })?;
    print::skipped(lines.skipped(), "audit.jsonl");
    Ok(())
}

/// Writes `{"run": …, "exported_at": …, "events": […]}`. The file appears complete or not at all.
fn export(run: &Record, lines: Option<Lines>, file: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(format!("cannot write {}: {error}", file.display()));
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let result = write_export(run, lines, &temporary).and_then(|counts| {
        fs::rename(&temporary, file)?;
        Ok(counts)
    });
    let (written, skipped) = result.map_err(|error| {
        // What counts is why; there may be nothing to remove.
        let _gone = fs::remove_file(&temporary);
        failed(error)
    })?;
    print::skipped(skipped, "audit.jsonl");
    print::note(&format!("Exported {written} audit events of {} to {}", run.id, file.display()));
    Ok(())
}

fn write_export(run: &Record, lines: Option<Lines>, file: &Path) -> io::Result<(u64, u64)> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let mut out = io::BufWriter::new(file);
    write!(out, "{{\"run\": ")?;
    serde_json::to_writer(&mut out, &super::list::Shown::from(run))?;
    write!(out, ",\n\"exported_at\": \"{}\",\n\"events\": ", Timestamp::now())?;
    let counts = match lines {
        Some(mut lines) => (lines.write_array::<Event>(&mut out)?, lines.skipped()),
        None => {
            write!(out, "[]")?;
            (0, 0)
        }
    };
    writeln!(out, "}}")?;
    out.flush()?;
    out.get_ref().sync_all()?;
    Ok(counts)
}

/// One event: its fields in the order of the file.
#[derive(Debug)]
struct Event {
    kind: String,
    timestamp: Timestamp,
    fields: Vec<(String, Value)>,
}

impl Event {
    /// `[15:04:05.000] credential.injected grant=mcp-x host=h header=KEY`
    fn line(&self, zone: &TimeZone) -> String {
        let mut line = format!("{} {}", when::clock(self.timestamp, zone), visible(&self.kind));
        for (name, value) in &self.fields {
            if !value.is_null() {
                line.push_str(&format!(" {}={}", visible(name), plain(value)));
            }
        }
        line
    }
}

/// A value as one word where it is one.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => {
            visible(text).into_owned()
        }
        Value::Array(values) if !values.is_empty() => values.iter().map(plain).collect::<Vec<_>>().join(","),
        other => visible(&other.to_string()).into_owned(),
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> de::Visitor<'de> for InOrder {
            type Value = Event;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an audit event")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
                let (mut kind, mut timestamp, mut fields) = (None, None, Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "type" => kind = Some(map.next_value()?),
                        "timestamp" => timestamp = Some(map.next_value()?),
                        _ => fields.push((name, map.next_value()?)),
                    }
                }
                let kind = kind.ok_or_else(|| de::Error::missing_field("type"))?;
                let timestamp = timestamp.ok_or_else(|| de::Error::missing_field("timestamp"))?;
                Ok(Event { kind, timestamp, fields })
            }
        }
        from.deserialize_map(InOrder)
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.fields.len() + 2))?;
        map.serialize_entry("type", &self.kind)?;
        map.serialize_entry("timestamp", &self.timestamp)?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{AuditEvent, AuditLine};

    fn line(event: AuditEvent) -> String {
        let line = AuditLine { event, timestamp: "2026-01-25T10:23:44.5Z".parse().unwrap() };
        let text = serde_json::to_string(&line).unwrap();
        serde_json::from_str::<Event>(&text).unwrap().line(&TimeZone::UTC)
    }

    #[test]
    fn what_the_recorder_writes_is_shown() {
        let (grant, host, server) =
            ("mcp-context7".parse().unwrap(), "mcp.context7.com".into(), "context7".parse().unwrap());
        let header = "CONTEXT7_API_KEY".into();
        assert_eq!(
            line(AuditEvent::CredentialInjected { grant, host, header, server }),
            "[10:23:44.500] credential.injected grant=mcp-context7 host=mcp.context7.com header=CONTEXT7_API_KEY \
             server=context7"
        );
        let servers = vec!["a".parse().unwrap(), "b".parse().unwrap()];
        assert_eq!(line(AuditEvent::RunRegistered { servers }), "[10:23:44.500] run.registered servers=a,b");
        assert_eq!(
            line(AuditEvent::RequestDenied { server: None, reason: "a b\u{1b}[2J".into(), judged: None }),
            "[10:23:44.500] request.denied reason=\"a b\\u001b[2J\""
        );
    }

    #[test]
    fn an_export_is_one_private_json_document() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.jsonl");
        fs::write(&log, "{\"type\":\"x\",\"timestamp\":\"2026-01-25T10:23:44Z\",\"n\":1}\noops\n").unwrap();
        let metadata = crate::run::metadata::Metadata::new(
            "x".into(),
            Path::new("/w"),
            "process",
            crate::control::api::Process::current(),
            Timestamp::UNIX_EPOCH,
        );
        let run = Record { id: "run_0123456789ab".parse().unwrap(), metadata };
        let file = dir.path().join("out.json");
        export(&run, Lines::open(&log).unwrap(), &file).unwrap();
        let exported: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(exported["events"][0]["n"], 1);
        assert_eq!(exported["run"]["run_id"], "run_0123456789ab");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
