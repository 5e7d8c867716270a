//! Runs: what is known of them on disk, and how they are started, attached and stopped.
//!
//! ```text
//! command line + moat.yaml ──order──► checked ──session──► registered ──► started ──► attached ──► over
//! ```

mod attach;
mod hold;
mod log;
pub(crate) mod metadata;
mod mounts;
pub(crate) mod name;
pub(crate) mod order;
mod plan;
pub(crate) mod preflight;
pub(crate) mod select;
mod session;
mod signals;
mod terminal;
mod tracked;

use order::{Order, Request};

use crate::{
    cli::{Context, Failure, Outcome, print},
    runtime::process::Process,
};

/// Checks, starts, waits. The exit code is the command's.
pub(crate) fn start(request: Request, context: &Context) -> Outcome {
    if !context.global.dry_run {
        print::note("Initializing...");
    }
    let order = order::prepare(request, context)?;
    for warning in &order.warnings {
        print::note(&format!("Warning: {warning}"));
    }
    if context.global.dry_run {
        return describe(&order, context.global.json);
    }
    crate::home::private_dir(context.home.root())
        .map_err(|error| Failure::new(format!("making {}: {error}", context.home.root().display())))?;
    // One thread: the sandbox dies with the thread that started its builder.
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("starting: {error}")))?;
    let runtime = Process { env: &context.env, home: &context.home };
    tokio.block_on(Box::pin(session::run(order, &runtime, context)))
}

/// What would be started.
fn describe(order: &Order, json: bool) -> Outcome {
    let servers: Vec<_> = order.config.servers.iter().map(|server| server.name.as_str()).collect();
    if json {
        let order = serde_json::json!({
            "name": order.name.to_string(),
            "runtime": "process",
            "workspace": order.workspace.display().to_string(),
            "command": order.command,
            "servers": servers,
        });
        print::line(&format!("{order:#}"));
        return Ok(moat_shared::exit::OK);
    }
    let list = if servers.is_empty() { "none".to_owned() } else { servers.join(", ") };
    print::note(&format!(
        "Would start {} (process runtime)\n  workspace: {}\n  command:   {}\n  servers:   {list}",
        order.name,
        order.workspace.display(),
        order.command.join(" "),
    ));
    Ok(moat_shared::exit::OK)
}

/// Would the sandbox have a terminal?
pub(crate) fn has_terminal() -> bool {
    terminal::size().is_some()
}
