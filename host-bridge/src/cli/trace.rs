//! `moat trace --network`: what a run's servers were asked, and how they answered.
//!
//! Reads the lines of this implementation and those of the Go one, which has other field names.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use jiff::{Timestamp, tz::TimeZone};
use moat_shared::grant::GrantName;
use serde::{Deserialize, Serialize};

use super::{Context, Outcome, pick, print, text::visible, when};
use crate::{home::Home, jsonl::Lines, run::metadata::Record};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat trace --network                 requests of the most recent run
  moat trace --network -v brave-otter  with headers; secrets are never in the trace
  moat trace --network --json | jq '.[] | select(.error)'")]
pub(crate) struct Args {
    /// A run's id, the beginning of one, or its name [default: the most recent run]
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Requests to MCP servers
    #[arg(long)]
    network: bool,
}

/// One line of network.jsonl, of either implementation.
#[derive(Debug, Serialize, Deserialize)]
struct Exchange {
    #[serde(alias = "ts")]
    timestamp: Timestamp,
    method: String,
    url: String,
    #[serde(default, alias = "status_code", skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(default, alias = "req_headers", skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rpc_method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    oauth: Option<String>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let run = pick::one(context, self.run.as_deref())?;
        if !self.network {
            if context.global.json {
                print::line("[]");
            } else {
                print::line("No spans recorded");
            }
            print::note(&format!(
                "Spans are not supported yet. Requests are: moat trace --network {}",
                run.id
            ));
            return Ok(moat_shared::exit::OK);
        }
        let lines = Lines::open(&context.home.network(&run.id));
        let Some(mut lines) = lines.map_err(|error| super::Failure::new(error.to_string()))? else {
            print::line(if context.global.json { "[]" } else { NOTHING });
            return Ok(moat_shared::exit::OK);
        };
        let mut troubles = Troubles::default();
        print::stream(|out| {
            if context.global.json {
                lines.write_array::<Exchange>(out)?;
                return writeln!(out);
            }
            let show = Show { zone: TimeZone::system(), details: context.global.verbose };
            if show.all(&mut lines, &mut troubles, out)? == 0 {
                writeln!(out, "{NOTHING}")?;
            }
            Ok(())
        })?;
        print::skipped(lines.skipped(), "network.jsonl");
        for text in troubles.advice(&context.home, &run) {
            print::note(&format!("\n{text}"));
        }
        Ok(moat_shared::exit::OK)
    }
}

const NOTHING: &str = "No network requests recorded";

/// How exchanges are shown to people.
#[derive(Debug)]
struct Show {
    zone: TimeZone,
    details: bool,
}

impl Show {
    fn all(&self, lines: &mut Lines, troubles: &mut Troubles, out: &mut dyn Write) -> io::Result<u64> {
        let mut shown = 0;
        while let Some(exchange) = lines.next::<Exchange>()? {
            self.one(&exchange, out)?;
            troubles.note(&exchange);
            shown += 1;
        }
        Ok(shown)
    }

    fn one(&self, exchange: &Exchange, out: &mut dyn Write) -> io::Result<()> {
        let Exchange { method, url, .. } = exchange;
        write!(out, "{} {} {} ", when::clock(exchange.timestamp, &self.zone), visible(method), visible(url))?;
        match (&exchange.error, exchange.status, exchange.duration_ms) {
            (Some(reason), _, _) if !reason.is_empty() => writeln!(out, "ERR ({})", visible(reason))?,
            (_, Some(status), Some(duration)) => writeln!(out, "{status} ({duration}ms)")?,
            // The first of a stream's two lines.
            (_, Some(status), None) => writeln!(out, "{status} (streaming)")?,
            (_, None, _) => writeln!(out, "ERR (lost)")?,
        }
        if self.details { Self::details(exchange, out) } else { Ok(()) }
    }

    fn details(exchange: &Exchange, out: &mut dyn Write) -> io::Result<()> {
        let mut detail = |name: &str, value: &str| writeln!(out, "    {}: {}", visible(name), visible(value));
        if let Some(server) = &exchange.server {
            detail("server", server)?;
        }
        if let Some(oauth) = &exchange.oauth {
            detail("oauth", oauth)?;
        }
        if let Some(method) = &exchange.rpc_method {
            detail("rpc method", method)?;
        }
        if let (Some(_), Some(status)) = (&exchange.error, exchange.status) {
            detail("status", &status.to_string())?;
        }
        for (name, value) in exchange.headers.iter().flatten() {
            match value.as_str() {
                Some(value) => detail(name, value)?,
                None => detail(name, &value.to_string())?,
            }
        }
        Ok(())
    }
}

/// What is wrong with the servers whose last request failed in a way that the user can mend.
#[derive(Debug, Default)]
struct Troubles(BTreeMap<String, Trouble>);

#[derive(Debug)]
enum Trouble {
    Rejected,
    Unreachable { url: String },
}

impl Troubles {
    fn note(&mut self, exchange: &Exchange) {
        let Some(server) = &exchange.server else { return };
        match exchange.error.as_deref() {
            Some("rejected_credential") => self.0.insert(server.clone(), Trouble::Rejected),
            Some("refused" | "dns" | "tls") => {
                self.0.insert(server.clone(), Trouble::Unreachable { url: exchange.url.clone() })
            }
            Some(_) => None,
            None => self.0.remove(server),
        };
    }

    fn advice(&self, home: &Home, run: &Record) -> Vec<String> {
        let texts = self.0.iter().map(|(server, trouble)| match trouble {
            Trouble::Rejected => rejected(server, rejected_grant(home, run, server).as_ref()),
            Trouble::Unreachable { url } => format!(
                "Error: Could not connect to MCP server '{}'\n\
                 Check that the URL in moat.yaml is correct:\n  url: {}",
                visible(server),
                visible(url)
            ),
        });
        texts.collect()
    }
}

fn rejected(server: &str, grant: Option<&GrantName>) -> String {
    let mut text = format!(
        "Warning: MCP authentication failed for '{}'\n\
         This usually means the credential is invalid or expired.",
        visible(server)
    );
    if let Some(grant) = grant {
        text.push_str(&format!("\n\nTo update:\n  moat revoke {grant}\n  {}", grant.command()));
    }
    text
}

/// The grant that this server rejected last, as the audit log knows.
fn rejected_grant(home: &Home, run: &Record, server: &str) -> Option<GrantName> {
    #[derive(Deserialize)]
    struct Rejected {
        r#type: String,
        server: String,
        grant: GrantName,
    }
    let mut lines = Lines::open(&home.audit(&run.id)).ok()??;
    let mut last = None;
    while let Ok(Some(line)) = lines.next::<Rejected>() {
        if line.r#type == "credential.rejected" && line.server == server {
            last = Some(line.grant);
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn shown(text: &str, details: bool) -> (String, Troubles) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{text}").unwrap();
        let mut lines = Lines::open(file.path()).unwrap().unwrap();
        let (mut troubles, mut out) = (Troubles::default(), Vec::new());
        Show { zone: TimeZone::UTC, details }.all(&mut lines, &mut troubles, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), troubles)
    }

    #[test_case(
        r#"{"timestamp":"2026-01-25T10:23:44.512Z","method":"GET","url":"https://h/mcp","status":200,"duration_ms":89,"headers":{},"server":"a"}"#
        => "[10:23:44.512] GET https://h/mcp 200 (89ms)\n"; "ours")]
    #[test_case(
        r#"{"ts":"2026-01-25T10:23:44.512Z","method":"POST","url":"https://h/","status_code":404,"duration_ms":7,"req_headers":{"a":"b"},"resp_body":"x","truncated":true}"#
        => "[10:23:44.512] POST https://h/ 404 (7ms)\n"; "of the Go implementation")]
    #[test_case(
        r#"{"timestamp":"2026-01-25T10:23:44.512Z","method":"GET","url":"https://h/mcp","status":200,"headers":{},"server":"a"}"#
        => "[10:23:44.512] GET https://h/mcp 200 (streaming)\n"; "a stream starts")]
    #[test_case(
        r#"{"timestamp":"2026-01-25T10:23:44.512Z","method":"POST","url":"https://h/mcp","duration_ms":9,"headers":{},"server":"a","error":"timeout"}"#
        => "[10:23:44.512] POST https://h/mcp ERR (timeout)\n"; "failure")]
    #[test_case(
        r#"{"timestamp":"2026-01-25T10:23:44.512Z","method":"G\u001b[2J","url":"x\ny","status":200,"duration_ms":1,"server":"a"}"#
        => "[10:23:44.512] G\\u{1b}[2J x\\u{a}y 200 (1ms)\n"; "control characters")]
    fn lines(text: &str) -> String {
        shown(text, false).0
    }

    #[test]
    fn details() {
        let line = r#"{"timestamp":"2026-01-25T10:23:44Z","method":"POST","url":"u","status":401,"duration_ms":1,"headers":{"KEY":"[REDACTED]"},"server":"c7","rpc_method":"tools/call","error":"rejected_credential"}"#;
        assert_eq!(
            shown(line, true).0,
            "[10:23:44.000] POST u ERR (rejected_credential)\n    server: c7\n    rpc method: tools/call\n    \
             status: 401\n    KEY: [REDACTED]\n"
        );
    }

    #[test]
    fn what_the_recorder_writes_is_read() {
        let exchange = crate::record::Exchange {
            timestamp: Timestamp::UNIX_EPOCH,
            method: "POST".into(),
            url: "https://h/mcp".into(),
            status: Some(502),
            duration_ms: Some(3),
            headers: crate::record::Headers::default(),
            server: "notion".parse().unwrap(),
            operation: None,
            rpc_method: Some("tools/list".into()),
            error: Some(crate::record::Failure::RejectedCredential),
            oauth: None,
        };
        let (text, troubles) = shown(&serde_json::to_string(&exchange).unwrap(), false);
        assert_eq!(text, "[00:00:00.000] POST https://h/mcp ERR (rejected_credential)\n");
        assert!(matches!(troubles.0["notion"], Trouble::Rejected));
    }

    #[test]
    fn trouble_that_is_over_is_not_mentioned() {
        let failed = r#"{"timestamp":"2026-01-25T10:23:44Z","method":"POST","url":"u","server":"a","error":"refused"}"#;
        let fine = r#"{"timestamp":"2026-01-25T10:23:45Z","method":"POST","url":"u","server":"a","status":200,"duration_ms":1}"#;
        assert_eq!(shown(failed, false).1.0.len(), 1);
        assert_eq!(shown(&format!("{failed}\n{fine}"), false).1.0.len(), 0);
    }

    #[test]
    fn the_advice_names_the_commands() {
        let grant = "mcp-context7".parse().unwrap();
        assert_eq!(
            rejected("context7", Some(&grant)),
            "Warning: MCP authentication failed for 'context7'\nThis usually means the credential is invalid or \
             expired.\n\nTo update:\n  moat revoke mcp-context7\n  moat grant mcp context7"
        );
    }
}
