//! Makes the cells of a row happen and compares what comes of them: with the agent, the upstream, the trace, the log.

use std::{collections::BTreeMap, time::Duration};

use moat_tests::{
    Outcome, Trouble,
    clock::{eventually, millis, now},
    console::Event,
    inside::{Answer, Inside, Pending, Request},
    matrix::{Cell, Gets, Kind, Row, Traced},
    rig::Rig,
    seen::Seen,
    trouble::ensure,
};
use serde_json::{Value, json};

use crate::stage::{FAULTS_HEADER, FAULTS_STUB};

/// How long a stream that is to stay open is looked at.
const STAYS_OPEN: Duration = Duration::from_millis(1000);
/// How long the records may take.
const RECORDED: Duration = Duration::from_secs(5);

/// A server of moat.yaml.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    pub(crate) credential: bool,
}

impl Server {
    pub(crate) fn open(name: &'static str, url: String) -> Self {
        Self { name, url, credential: false }
    }

    /// With the credential that all of them share.
    pub(crate) fn granted(name: &'static str, url: String) -> Self {
        Self { name, url, credential: true }
    }
}

/// Writes moat.yaml.
pub(crate) fn configure(rig: &Rig, servers: &[Server]) -> Outcome {
    let mut yaml = "mcp:\n".to_owned();
    for server in servers {
        yaml.push_str(&format!("  - name: {}\n    url: {}\n", server.name, server.url));
        if server.credential {
            yaml.push_str(&format!("    auth: {{grant: mcp-faults, header: {FAULTS_HEADER}}}\n"));
        }
    }
    rig.config(&yaml)
}

/// What an agent sends.
pub(crate) fn request(server: &str, kind: Kind) -> Request {
    let target = format!("/mcp/{server}/{}", kind.name());
    let post = |method: &str, params: Value| {
        let mut message = json!({"jsonrpc": "2.0", "method": method, "params": params});
        if !kind.id().is_null() {
            message["id"] = kind.id();
        }
        Request::post(&target, &message)
    };
    match kind {
        Kind::Call | Kind::Stream => post("tools/call", json!({"name": "t"})),
        Kind::Listen => post("subscriptions/listen", json!({})),
        Kind::Notification => post("notifications/cancelled", json!({"requestId": 99})),
        Kind::Get => Request::get(&target),
        Kind::Delete => Request::new("DELETE", &target),
    }
}

/// One request on its way.
pub(crate) struct Sent<'a> {
    row: &'a Row,
    kind: Kind,
    cell: Cell,
    call: Pending<'a>,
    at: u64,
    /// The path and query at the upstream.
    target: String,
}

/// Sends the six requests of a row to the server of its name. `path` is what the server's URL has below its root.
pub(crate) fn send<'a>(
    inside: &'a Inside,
    row: &'a Row,
    path: &str,
    credential: bool,
) -> Outcome<Vec<Sent<'a>>> {
    let (below, query) = path.split_once('?').map_or((path, String::new()), |(p, q)| (p, format!("?{q}")));
    let each = Kind::ALL.into_iter().zip(row.cells);
    each.map(|(kind, cell)| {
        let mut request = request(row.name, kind);
        if credential {
            request = request.header(FAULTS_HEADER, FAULTS_STUB);
        }
        let target = format!("/{below}/{}{query}", kind.name());
        Ok(Sent { row, kind, cell, call: inside.call(&request)?, at: now(), target })
    })
    .collect()
}

impl Sent<'_> {
    fn name(&self) -> String {
        format!("{}/{}", self.row.name, self.kind.name())
    }

    /// Waits until the upstream has the request.
    pub(crate) fn arrived(&self, seen: &Seen) -> Outcome {
        let found = || seen.requests().iter().any(|request| request.target == self.target).then_some(());
        eventually(&format!("{} arrives", self.name()), Duration::from_secs(20), found)
    }

    /// Waits until the agent has the answer's start.
    pub(crate) fn started(&self) -> Outcome {
        let data = |events: &[Event]| events.iter().any(|e| matches!(e, Event::Data { .. })).then_some(());
        self.call.until(&format!("{} starts", self.name()), Duration::from_secs(20), data)
    }

    /// The fault happens now: time counts from here.
    pub(crate) fn counts_from_now(&mut self) {
        self.at = now();
    }

    /// Compares what the agent gets.
    pub(crate) fn agent(&self, seen: &Seen) -> Outcome {
        let trouble = |text: String| Trouble::new(format!("{}: {text}", self.name()));
        let patience = Duration::from_millis(self.cell.within) + Duration::from_secs(20);
        if self.cell.gets == Gets::Waits {
            return self.stays_open(seen).map_err(|error| trouble(error.to_string()));
        }
        let (got, at, answer) = self.call.until("an end", patience, |events| self.end(events))?;
        let took = millis(at.saturating_sub(self.at));
        let wanted = self.cell.gets.to_string();
        ensure(got == wanted, || format!("wanted {wanted}, got {got}: {answer:?}"))
            .map_err(|e| trouble(e.to_string()))?;
        #[expect(clippy::cast_precision_loss, reason = "seconds, at most")]
        let within = self.cell.within as f64;
        ensure(took <= within, || trouble(format!("{got} after {took:.0} ms")).to_string())?;
        match self.cell.gets {
            Gets::Error(..) | Gets::Event(_) => {
                self.is_told(&answer).map_err(|error| trouble(error.to_string()))
            }
            // What came before the cut is not withheld: an id to resume from may be in it.
            Gets::Cut if self.kind.streams() && !self.row.name.starts_with("gzip") => {
                ensure(answer.body.contains("data:"), || {
                    trouble(format!("no event before the cut: {answer:?}")).to_string()
                })
            }
            Gets::Status(_) => self.is_theirs(&answer).map_err(|error| trouble(error.to_string())),
            _ => Ok(()),
        }
    }

    /// What came, in the words of [`Gets`], once it is over.
    fn end(&self, events: &[Event]) -> Option<(String, u64, Answer)> {
        match events.last() {
            Some(Event::Done(_)) => {
                let answer = self.call.answer().ok()?;
                // A relay that is gone tears what it has begun as well.
                let broken = self.cell.gets == Gets::Broken && !answer.clean;
                let got = if broken { "broken".to_owned() } else { observed(self.kind, &answer) };
                Some((got, answer.end_at, answer))
            }
            Some(Event::Failed(_)) => Some(("broken".to_owned(), now(), Answer::default())),
            _ => None,
        }
    }

    /// An error says enough, to whom it concerns.
    fn is_told(&self, answer: &Answer) -> Outcome {
        let body = answer.json();
        let message = body["error"]["message"].as_str().unwrap_or_default();
        ensure(body["id"] == self.kind.id(), || format!("another id: {body}"))?;
        ensure(message.len() > 30 && body["error"]["data"]["server"] == self.row.name, || {
            format!("says too little: {body}")
        })?;
        let remedy = match body["error"]["data"]["kind"].as_str() {
            Some("upstream_rejected_credential") => "moat grant mcp faults",
            Some("tunnel_lost") => "check before you repeat it",
            Some("tunnel_down") => "moat proxy status",
            _ => self.row.name,
        };
        ensure(message.contains(remedy), || format!("no {remedy:?} in {message}"))?;
        // The half of an event that came before is not glued to it.
        let glued =
            answer.body.split("\n\n").any(|event| event.contains("\"error\"") && event.contains("progress"));
        ensure(!glued, || format!("glued to another event: {:?}", answer.body))
    }

    /// The upstream's own words came, without those that would start an agent's OAuth.
    fn is_theirs(&self, answer: &Answer) -> Outcome {
        ensure(answer.value("www-authenticate").is_none(), || "the challenge came through".to_owned())?;
        let says = self.target.starts_with("/status-") || self.target.starts_with("/open-");
        let empty = self.target.contains("-empty/");
        ensure(!says || empty != answer.body.contains("upstream says no"), || format!("{:?}", answer.body))?;
        ensure(!says || answer.value("retry-after") == Some("7"), || format!("{:?}", answer.headers))
    }

    fn stays_open(&self, seen: &Seen) -> Outcome {
        self.arrived(seen)?;
        let looked_at = Duration::from_micros(now().saturating_sub(self.at));
        std::thread::sleep(STAYS_OPEN.saturating_sub(looked_at));
        let over = |e: &Event| matches!(e, Event::End { .. } | Event::Done(_) | Event::Failed(_));
        let events = self.call.events();
        ensure(!events.iter().any(over), || format!("it ended: {events:?}"))?;
        let left = self.call.abandon()?;
        let noticed = seen.gone(&self.target, Duration::from_millis(self.cell.within))?;
        ensure(millis(noticed.saturating_sub(left)) <= 2000.0, || {
            "the upstream was slow to notice".to_owned()
        })
    }

    /// It arrived as often as it should have.
    fn counted(&self, seen: &Seen) -> Outcome {
        let times = seen.requests().iter().filter(|request| request.target == self.target).count();
        ensure(times == self.cell.arrives, || format!("{}: sent {times} times", self.name()))
    }

    /// The trace has one line about its end, with the right word.
    fn traced(&self, lines: &[Value]) -> Outcome {
        let below = format!("/{}", self.kind.name());
        let ours = |line: &&Value| {
            line["server"] == self.row.name && line["url"].as_str().is_some_and(|url| url.ends_with(&below))
        };
        let ends: Vec<&Value> =
            lines.iter().filter(ours).filter(|line| line["duration_ms"].is_u64()).collect();
        let right = match (self.cell.traced, &ends[..]) {
            (Traced::Nothing, []) => true,
            (Traced::Well, [end]) => end["error"].is_null(),
            (Traced::As(word), [end]) => end["error"] == word,
            _ => false,
        };
        ensure(right, || format!("{}: wanted {:?} in the trace: {ends:?}", self.name(), self.cell.traced))
    }
}

fn observed(kind: Kind, answer: &Answer) -> String {
    let error = answer.kind();
    let ours = !error.is_empty() && answer.json()["error"]["data"]["source"] == "moat";
    let events = answer.value("content-type") == Some("text/event-stream");
    if !answer.clean {
        return "cut".to_owned();
    }
    if ours {
        return if events { format!("event {error}") } else { format!("{} {error}", answer.status) };
    }
    let response = answer.body.contains(&format!("\"kind\":\"{}\"", kind.name())) && answer.status == 200;
    if response { "answer".to_owned() } else { answer.status.to_string() }
}

/// Compares everything about requests whose fault has happened; tells of every cell that is not as it should be.
pub(crate) fn judge(rig: &Rig, sent: &[Sent<'_>], seen: impl Fn(&Row) -> Seen) -> Outcome {
    judge_when(rig, sent, seen, || Ok(()))
}

/// The same; `told` happens when the agents have what they get, and before the records are looked at.
pub(crate) fn judge_when(
    rig: &Rig,
    sent: &[Sent<'_>],
    seen: impl Fn(&Row) -> Seen,
    told: impl FnOnce() -> Outcome,
) -> Outcome {
    let mut troubles: Vec<String> = Vec::new();
    for one in sent {
        troubles.extend(one.agent(&seen(one.row)).err().map(|trouble| trouble.to_string()));
    }
    troubles.extend(told().err().map(|trouble| trouble.to_string()));
    for one in sent {
        troubles.extend(one.counted(&seen(one.row)).err().map(|trouble| trouble.to_string()));
    }
    // The records come last, and all of them: each is waited for together with the others.
    let mut untraced = Vec::new();
    let _told_below = eventually("the trace is complete", RECORDED, || {
        let lines = rig.lines("network.jsonl");
        untraced = sent.iter().filter_map(|one| one.traced(&lines).err()).map(|t| t.to_string()).collect();
        untraced.is_empty().then_some(())
    });
    troubles.append(&mut untraced);
    troubles.extend(unlogged(rig, sent));
    ensure(troubles.is_empty(), || {
        format!("{} cells are not as the table has them:\n{}", troubles.len(), troubles.join("\n"))
    })
}

/// Rows whose warnings in the log are more or fewer than its cells say.
fn unlogged(rig: &Rig, sent: &[Sent<'_>]) -> Vec<String> {
    let log = rig.log();
    let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
    for one in sent {
        *wanted.entry(one.row.name).or_default() += usize::from(one.cell.logged);
    }
    let names = |line: &str, name: &str| {
        [format!("server={name} "), format!("server=\"{name}\"")].iter().any(|server| line.contains(server))
    };
    let count = |name: &str| log.lines().filter(|line| line.contains(" WARN ") && names(line, name)).count();
    let wrong = wanted.into_iter().filter(|(name, wanted)| count(name) != *wanted);
    wrong.map(|(name, wanted)| format!("{name}: {} warnings in the log, not {wanted}", count(name))).collect()
}
