//! Runs: what is known of them on disk, and how they are started, attached and stopped.
//!
//! ```text
//! command line + moat.yaml ──order──► checked ──session──► registered ──► started ──► attached ──► over
//! ```

mod attach;
mod carriers;
pub(crate) mod detach;
pub(crate) mod exec;
mod hold;
mod log;
pub(crate) mod metadata;
mod mounts;
pub(crate) mod name;
pub(crate) mod order;
mod plan;
pub(crate) mod preflight;
mod remembered;
pub(crate) mod select;
mod session;
mod signals;
mod terminal;
mod tracked;
mod watch;

use order::{Order, Request};

use crate::{
    cli::{Context, Failure, Outcome, print},
    runtime::{
        apple::{self, Apple},
        choose::{Chosen, Needs, choose},
        docker::Docker,
        process::Process,
    },
};

/// Checks, starts, waits. The exit code is the command's.
pub(crate) fn start(request: Request, context: &Context) -> Outcome {
    if !context.global.dry_run && !detach::is_holder(&context.env) {
        print::note("Initializing...");
    }
    let detached = request.detached && !context.global.dry_run;
    let holder = detached && detach::is_holder(&context.env);
    let request = if holder { Request { allowed: detach::receive()?, ..request } } else { request };
    let mut order = order::prepare(request, context)?;
    if detached && !holder {
        return detach::start(&order, context);
    }
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("starting: {error}")))?;
    let needs = Needs { image: order.image.as_deref(), agent: order.agent };
    let chosen = tokio.block_on(choose(order.runtime, needs, &context.env));
    let (chosen, image) = chosen.map_err(|error| Failure::from_error(&error))?;
    order.image = image;
    if let Chosen::Apple(apple::Found { warning: Some(warning), .. }) = &chosen {
        order.warnings.push(warning.clone());
    }
    for warning in &order.warnings {
        print::note(&format!("Warning: {warning}"));
    }
    let keep = !context.global.dry_run;
    for change in remembered::changes(&context.home, &order.workspace, &order.config.servers, keep) {
        print::note(&format!("Warning: {change}"));
    }
    if let Some(agent) = order.agent
        && matches!(chosen, Chosen::Process)
        && order.config.network.is_none()
    {
        print::note(&format!(
            "Warning: the sandbox has no network, so {} cannot reach its model; to give it one, write\n  network:\n    \
             mode: open\nin moat.yaml, or 'mode: none' to be told this no more",
            agent.name()
        ));
    }
    if context.global.dry_run {
        return describe(&order, &chosen, context.global.json);
    }
    crate::home::private_dir(context.home.root())
        .map_err(|error| Failure::new(format!("making {}: {error}", context.home.root().display())))?;
    // One thread: the process runtime's sandbox dies with the thread that started its builder.
    match chosen {
        Chosen::Process => {
            let runtime = Process { env: &context.env, home: &context.home };
            tokio.block_on(Box::pin(session::run(order, &runtime, context)))
        }
        Chosen::Engine(engine) => {
            let runtime = Docker { engine, home: &context.home };
            tokio.block_on(Box::pin(session::run(order, &runtime, context)))
        }
        Chosen::Apple(found) => {
            let runtime = Apple { cli: found.cli, home: &context.home };
            tokio.block_on(Box::pin(session::run(order, &runtime, context)))
        }
    }
}

/// What would be started.
fn describe(order: &Order, chosen: &Chosen, json: bool) -> Outcome {
    let runtime = chosen.name();
    let image = (!matches!(chosen, Chosen::Process)).then_some(order.image.as_deref()).flatten();
    let servers: Vec<_> = order.config.servers.iter().map(|server| server.name.as_str()).collect();
    if json {
        let order = serde_json::json!({
            "name": order.name.to_string(),
            "runtime": runtime,
            "image": image,
            "workspace": order.workspace.display().to_string(),
            "command": order.command,
            "servers": servers,
        });
        print::line(&format!("{order:#}"));
        return Ok(moat_shared::exit::OK);
    }
    let list = if servers.is_empty() { "none".to_owned() } else { servers.join(", ") };
    let command = if order.command.is_empty() { "the image's".to_owned() } else { order.command.join(" ") };
    let image = image.map(|image| format!("\n  image:     {image}")).unwrap_or_default();
    print::note(&format!(
        "Would start {} ({runtime} runtime)\n  workspace: {}{image}\n  command:   {command}\n  servers:   {list}",
        order.name,
        order.workspace.display(),
    ));
    Ok(moat_shared::exit::OK)
}

/// Would the sandbox have a terminal?
pub(crate) fn has_terminal() -> bool {
    terminal::size().is_some()
}
