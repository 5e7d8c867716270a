//! The program inside the sandbox: does what JSON lines on stdin say (see `moat_tests::console`).
//!
//! `moat-fixture-client` alone reads orders. `moat-fixture-client mcp '<visit as JSON>'` makes one visit and prints it.
//! `moat-fixture-client suite URL` is the client that the official conformance suite tests.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "this program's answers go to stdout")]

use std::{
    collections::HashMap,
    io::{BufRead, Write},
    process::ExitCode,
};

use moat_tests::{
    Outcome, Trouble, clock,
    console::{Event, Exec, Order, Report, Task, crowd, http, mcp, search},
    suite,
};
use serde_json::{Value, json};
use tokio::{process::Command, sync::mpsc, task::JoinSet};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            println!("{}", json!({"trouble": trouble.to_string()}));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => runtime.block_on(obey()),
        ["mcp", visit] => {
            let answer = runtime.block_on(mcp::visit(serde_json::from_str(visit)?))?;
            println!("{answer}");
            Ok(())
        }
        ["suite", url] => runtime.block_on(suite::client::play(url)),
        _ => Err(Trouble::new("usage: moat-fixture-client [mcp VISIT | suite URL]")),
    }
}

/// Reads orders until stdin ends.
async fn obey() -> Outcome {
    let (to, mut orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    let (mut tasks, mut running) = (JoinSet::new(), HashMap::new());
    loop {
        tokio::select! {
            line = orders.recv() => match line {
                None => return Ok(()),
                Some(line) => {
                    let order: Order = serde_json::from_str(&line)?;
                    if let Task::Abandon(other) = order.task {
                        abandon(order.id, running.remove(&other));
                    } else {
                        running.insert(order.id, tasks.spawn(perform(order)));
                    }
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

fn abandon(id: u64, task: Option<tokio::task::AbortHandle>) {
    if let Some(task) = task {
        task.abort();
    }
    report(id, Event::Done(json!({"at": clock::now()})));
}

async fn perform(order: Order) {
    let id = order.id;
    let event = match carry_out(id, order.task).await {
        Ok(value) => Event::Done(value),
        Err(trouble) => Event::Failed(trouble.to_string()),
    };
    report(id, event);
}

async fn carry_out(id: u64, task: Task) -> Outcome<Value> {
    match task {
        Task::Http(call) => http::exchange(call, |event| report(id, event)).await.map(|()| Value::Null),
        Task::Crowd(crowd) => {
            let stalled =
                || report(id, Event::Data { at: clock::now(), bytes: 0, text: "stalled".to_owned() });
            crowd::gather(crowd, stalled).await
        }
        Task::Abandon(_) => Ok(Value::Null),
        Task::Mcp(visit) => mcp::visit(visit).await,
        Task::Search(what) => Ok(search::search(&what)),
        Task::Exec(exec) => execute(exec).await,
        Task::Read(path) => Ok(json!(String::from_utf8_lossy(&std::fs::read(path)?))),
        Task::Environ => {
            let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
            Ok(std::env::vars_os().map(|(name, value)| (text(name), json!(text(value)))).collect())
        }
    }
}

async fn execute(exec: Exec) -> Outcome<Value> {
    let (program, arguments) = exec.argv.split_first().ok_or_else(|| Trouble::new("nothing to run"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    for (name, value) in exec.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output().await?;
    Ok(json!({
        "code": output.status.code(),
        "stdout": String::from_utf8_lossy(&output.stdout),
        "stderr": String::from_utf8_lossy(&output.stderr),
    }))
}

fn report(id: u64, event: Event) {
    if let Ok(line) = serde_json::to_string(&Report { id, event }) {
        let mut stdout = std::io::stdout().lock();
        // When nobody reads any more, stdin has ended as well and the program is about to leave.
        let _nobody_reads = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}
