//! A test's hold on a sandbox: orders to the fixture client in it, answers and their times back.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    Outcome, Trouble,
    clock::{eventually, now},
    console::{
        Event, Exec, Order, Report, Task,
        crowd::{Crowd, Each},
        http::{Body, Call},
        mcp::Visit,
    },
    guest::Machine,
    rig::{PATIENCE, Ran},
};

/// A sandbox with the fixture client in it.
#[derive(Debug)]
pub struct Inside {
    child: Child,
    stdin: Option<ChildStdin>,
    reports: Arc<Mutex<Vec<Report>>>,
    noise: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
    next: std::cell::Cell<u64>,
    writing: Mutex<()>,
    /// What the clock inside says when this machine's says 0.
    ahead: i64,
    /// Lives as long as a guest that needs it.
    machine: Option<Machine>,
    /// `MOAT_RELAY_URL` as the sandbox sees it.
    pub relay_url: String,
}

impl Inside {
    /// Starts the program that `command` starts: the fixture client, in a sandbox or not.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(command: Command) -> Outcome<Self> {
        let mut inside = Self::started(command)?;
        inside.look_around(PATIENCE * 2)?;
        Ok(inside)
    }

    /// The same in a machine of its own, which has another clock: with these bytes first on its stdin, and so long until
    /// its first answer.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn start_after(command: Command, first: &[u8], within: Duration) -> Outcome<Self> {
        let mut inside = Self::started(command)?;
        if let Some(mut stdin) = inside.stdin.as_ref() {
            stdin.write_all(first)?;
        }
        inside.look_around(within)?;
        inside.set_clock()?;
        Ok(inside)
    }

    fn look_around(&mut self, within: Duration) -> Outcome {
        let environ = self.order(Task::Environ)?.value_within(within)?;
        self.relay_url = environ["MOAT_RELAY_URL"].as_str().unwrap_or_default().to_owned();
        Ok(())
    }

    /// Compares the clocks, by the quickest of a few answers.
    fn set_clock(&mut self) -> Outcome {
        let asked = (0..10).map(|_| {
            let before = now();
            // No task has that number: what comes back is the time.
            let there = self.order(Task::Abandon(0))?.value()?["at"].as_i64().unwrap_or_default();
            let (after, before) = (i64::try_from(now())?, i64::try_from(before)?);
            Ok((after - before, there - i64::midpoint(before, after)))
        });
        let asked: Vec<(i64, i64)> = asked.collect::<Outcome<_>>()?;
        self.ahead = asked.into_iter().min().map_or(0, |(_, ahead)| ahead);
        Ok(())
    }

    /// A time of the sandbox's, by this machine's clock.
    fn here(&self, at: u64) -> u64 {
        at.saturating_add_signed(-self.ahead)
    }

    /// With all around it that lives as long.
    #[must_use]
    pub(crate) fn beside(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    fn started(mut command: Command) -> Outcome<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (reports, noise) = (Arc::<Mutex<Vec<Report>>>::default(), Arc::<Mutex<String>>::default());
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let (reports, noise) = (Arc::clone(&reports), Arc::clone(&noise));
            readers.push(thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    match serde_json::from_str(&line) {
                        Ok(report) => reports.lock().unwrap_or_else(PoisonError::into_inner).push(report),
                        Err(_) => append(&noise, &line),
                    }
                }
            }));
        }
        if let Some(stderr) = child.stderr.take() {
            let noise = Arc::clone(&noise);
            readers.push(thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    append(&noise, &line);
                }
            }));
        }
        let stdin = child.stdin.take();
        let next = std::cell::Cell::new(1);
        Ok(Self {
            child,
            stdin,
            reports,
            noise,
            readers,
            next,
            writing: Mutex::default(),
            ahead: 0,
            machine: None,
            relay_url: String::new(),
        })
    }

    /// What moat and the program printed that is no report.
    #[must_use]
    pub fn noise(&self) -> String {
        let noise = self.noise.lock().unwrap_or_else(PoisonError::into_inner).clone();
        noise + &self.machine.as_ref().map(Machine::console).unwrap_or_default()
    }

    /// Gives an order.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub fn order(&self, task: Task) -> Outcome<Pending<'_>> {
        let id = self.next.replace(self.next.get() + 1);
        let line = serde_json::to_string(&Order { id, task })? + "\n";
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.stdin.as_ref().map(|mut stdin| stdin.write_all(line.as_bytes()));
        match written {
            Some(Ok(())) => Ok(Pending { inside: self, id }),
            _ => Err(Trouble::new(format!("the sandbox is gone: {}", self.noise()))),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub fn call(&self, request: &Request) -> Outcome<Pending<'_>> {
        self.order(Task::Http(request.call(&self.authority())))
    }

    /// Sends a request often, and ends each exchange badly.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub fn crowd(&self, request: &Request, count: usize, at_once: usize, each: Each) -> Outcome<Pending<'_>> {
        let call = request.call(&self.authority());
        self.order(Task::Crowd(Crowd { call, count, at_once, each }))
    }

    /// Sends a request and waits for the whole answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn answer(&self, request: &Request) -> Outcome<Answer> {
        self.call(request)?.answer()
    }

    /// The relay's `host:port`.
    #[must_use]
    pub fn authority(&self) -> String {
        self.relay_url.trim_start_matches("http://").trim_end_matches('/').to_owned()
    }

    /// Visits a server of moat.yaml with rmcp.
    ///
    /// # Errors
    /// When it fails.
    pub fn visit(
        &self,
        server: &str,
        modern: bool,
        headers: &[(&str, &str)],
        calls: &[(&str, Value)],
    ) -> Outcome<Value> {
        self.visiting(server, modern, headers, calls, false)?.value()
    }

    /// Visits a server and stays until its tools change.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub fn listen(&self, server: &str, modern: bool) -> Outcome<Pending<'_>> {
        self.visiting(server, modern, &[], &[], true)
    }

    fn visiting(
        &self,
        server: &str,
        modern: bool,
        headers: &[(&str, &str)],
        calls: &[(&str, Value)],
        listen: bool,
    ) -> Outcome<Pending<'_>> {
        let headers: BTreeMap<_, _> = headers.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        let calls = calls.iter().map(|(tool, arguments)| ((*tool).to_owned(), arguments.clone())).collect();
        let url = format!("{}/mcp/{server}", self.relay_url);
        self.order(Task::Mcp(Visit { url, headers, modern, calls, listen }))
    }

    /// The environment inside.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub fn environ(&self) -> Outcome<Value> {
        self.order(Task::Environ)?.value()
    }

    /// Runs a program inside.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec(&self, argv: &[&str], env: &[(&str, Option<&str>)]) -> Outcome<Ran> {
        self.exec_within(argv, env, PATIENCE * 2)
    }

    /// Runs a program inside that may take so long.
    ///
    /// # Errors
    /// When it cannot be started, or takes longer.
    pub fn exec_within(&self, argv: &[&str], env: &[(&str, Option<&str>)], within: Duration) -> Outcome<Ran> {
        let exec = Exec {
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            env: env.iter().map(|&(n, v)| (n.to_owned(), v.map(ToOwned::to_owned))).collect(),
        };
        let value = self.order(Task::Exec(exec))?.value_within(within)?;
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let code = value["code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
        Ok(Ran { code, out: text("stdout"), err: text("stderr") })
    }

    /// The pid of `moat run`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the program end and waits for `moat run`.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(mut self) -> Outcome<i32> {
        self.stdin = None;
        self.wait()
    }

    fn wait(&mut self) -> Outcome<i32> {
        let child = &mut self.child;
        let ended = eventually("moat run ends", PATIENCE, || child.try_wait().ok().flatten());
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        for reader in self.readers.drain(..) {
            // A reader that panicked has already said so.
            let _said = reader.join();
        }
        Ok(ended?.code().unwrap_or(-1))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stdin = None;
        if !self.readers.is_empty() {
            // The rig looks for what is left.
            let _ended = self.wait();
        }
    }
}

fn append(noise: &Mutex<String>, line: &str) {
    let mut noise = noise.lock().unwrap_or_else(PoisonError::into_inner);
    noise.push_str(line);
    noise.push('\n');
}

/// A task that runs inside.
#[derive(Debug, Clone, Copy)]
pub struct Pending<'a> {
    inside: &'a Inside,
    id: u64,
}

impl Pending<'_> {
    /// The reports so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let reports = self.inside.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = reports.iter().filter(|report| report.id == self.id).map(|report| report.event.clone());
        ours.map(|event| event.at(|at| self.inside.here(at))).collect()
    }

    /// Waits until the events are as wanted.
    ///
    /// # Errors
    /// When they are not in time, or the sandbox ends.
    pub fn until<T>(
        &self,
        what: &str,
        within: Duration,
        found: impl Fn(&[Event]) -> Option<T>,
    ) -> Outcome<T> {
        let reading = |thread: &thread::JoinHandle<()>| !thread.is_finished();
        eventually(what, within, || {
            let alive = self.inside.readers.first().is_some_and(reading);
            match found(&self.events()) {
                None if !alive => Some(Err(Trouble::new(format!("{what}: the sandbox has ended")))),
                None => None,
                Some(answer) => Some(Ok(answer)),
            }
        })
        .and_then(|answer| answer)
        .map_err(|trouble| {
            Trouble::new(format!("{trouble}\nso far: {:?}\nprinted: {}", self.events(), self.inside.noise()))
        })
    }

    /// Waits for the task's value.
    ///
    /// # Errors
    /// When it fails.
    pub fn value(&self) -> Outcome<Value> {
        self.value_within(PATIENCE * 2)
    }

    /// Waits so long for the task's value.
    ///
    /// # Errors
    /// When it fails.
    pub fn value_within(&self, within: Duration) -> Outcome<Value> {
        self.until("a task inside the sandbox is done", within, |events| match events.last() {
            Some(Event::Done(value)) => Some(Ok(value.clone())),
            Some(Event::Failed(text)) => Some(Err(Trouble::new(text.clone()))),
            _ => None,
        })?
    }

    /// Waits until a body contains this text; when it came.
    ///
    /// # Errors
    /// When it does not come.
    pub fn text(&self, wanted: &str) -> Outcome<u64> {
        self.until(&format!("{wanted:?} arrives"), PATIENCE, |events| {
            let mut so_far = String::new();
            events.iter().find_map(|event| match event {
                Event::Data { at, text, .. } => {
                    so_far.push_str(text);
                    so_far.contains(wanted).then_some(*at)
                }
                _ => None,
            })
        })
    }

    /// Closes the connection of this task; when.
    ///
    /// # Errors
    /// When the sandbox is gone.
    pub fn abandon(&self) -> Outcome<u64> {
        let value = self.inside.order(Task::Abandon(self.id))?.value()?;
        let at = value["at"].as_u64().ok_or_else(|| Trouble::new("no time"))?;
        Ok(self.inside.here(at))
    }

    /// Waits for the whole answer to a request.
    ///
    /// # Errors
    /// When there is none.
    pub fn answer(&self) -> Outcome<Answer> {
        self.value()?;
        let mut answer = Answer::default();
        for event in self.events() {
            match event {
                Event::Head { at, status, headers } => {
                    answer.head_at = at;
                    answer.status = status;
                    answer.headers = headers;
                }
                Event::Data { at, bytes, text } => {
                    answer.bytes += bytes;
                    answer.body.push_str(&text);
                    answer.pieces.push((at, text));
                }
                Event::End { at, clean } => {
                    answer.end_at = at;
                    answer.clean = clean;
                }
                Event::Done(_) | Event::Failed(_) => {}
            }
        }
        Ok(answer)
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// When its head was there.
    pub head_at: u64,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its body, if it was kept.
    pub body: String,
    /// The body's size.
    pub bytes: usize,
    /// Its pieces, and when they came.
    pub pieces: Vec<(u64, String)>,
    /// When it ended.
    pub end_at: u64,
    /// Did it end as HTTP frames it?
    pub clean: bool,
}

impl Answer {
    /// The first value of a header.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON, or the last event's data.
    #[must_use]
    pub fn json(&self) -> Value {
        let last = || {
            self.body.lines().rev().find_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        };
        serde_json::from_str(&self.body).ok().or_else(last).unwrap_or(Value::Null)
    }

    /// The kind of an error that moat made.
    #[must_use]
    pub fn kind(&self) -> String {
        self.json()["error"]["data"]["kind"].as_str().unwrap_or_default().to_owned()
    }
}

/// A request to be written by hand.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    host: Option<String>,
    headers: Vec<(String, String)>,
    body: Body,
    keep: bool,
    first: Option<String>,
}

impl Request {
    /// With this method and this target.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            host: None,
            headers: Vec::new(),
            body: Body::Text(String::new()),
            keep: true,
            first: None,
        }
    }

    /// A GET that asks for an event stream.
    #[must_use]
    pub fn get(target: &str) -> Self {
        Self::new("GET", target).header("Accept", "text/event-stream")
    }

    /// A POST of this message.
    #[must_use]
    pub fn post(target: &str, message: &Value) -> Self {
        let post = Self::new("POST", target).header("Content-Type", "application/json");
        post.header("Accept", "application/json, text/event-stream").body(Body::Text(message.to_string()))
    }

    /// A call of a method with this id.
    #[must_use]
    pub fn rpc(target: &str, id: u64, method: &str) -> Self {
        Self::post(target, &serde_json::json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {}}))
    }

    /// With another header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this `Host` instead of the relay's.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// With this body.
    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Only the size of the answer's body matters.
    #[must_use]
    pub const fn counted(mut self) -> Self {
        self.keep = false;
        self
    }

    /// After a CONNECT to this authority.
    #[must_use]
    pub fn through(mut self, authority: &str) -> Self {
        self.first = Some(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        self
    }

    fn call(&self, relay: &str) -> Call {
        let host = self.host.as_deref().unwrap_or(relay);
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("Connection: close\r\n\r\n");
        Call {
            to: relay.to_owned(),
            first: self.first.clone(),
            head,
            body: self.body.clone(),
            keep: self.keep,
        }
    }
}
