//! The relay: HTTP on the sandbox's loopback for agents, one stream of the tunnel per request.
//!
//! ```text
//! agent ──► serve ──► respond: guard ► route ─┬─► forward ──► tunnel
//!   ▲                                         └─► local (errors, OAuth probes, /healthz)
//!   └── queue ◄── pump ◄──────────────────────────────┘
//! ```
//!
//! It never holds a body, knows no credential, and of MCP only what it needs to say in JSON-RPC that the tunnel is down.

mod answer;
mod chunks;
mod events;
mod forward;
mod guard;
mod headers;
mod http1;
mod local;
mod lost;
mod patience;
mod pump;
mod queue;
mod respond;
mod rewind;
mod route;
mod serve;

use std::{sync::Arc, time::Duration};

use moat_shared::{
    id::RunId,
    limits,
    rt::{drain::Drain, exec::Owned},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

use self::guard::Guard;
use crate::{log, uplink::Tunnel};

/// Connections of agents at a time. Each costs a descriptor; some clients open one per request (R23).
const CONNECTIONS: usize = limits::STREAMS_PER_RUN as usize;
/// After a failed accept, which is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long the relay is patient; the defaults are those of [`limits`].
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// For a request's head, from its first byte.
    pub request_head: Duration,
    /// For an HTTP/1.1 connection on which nothing is asked.
    pub idle: Duration,
    /// For the body of a request that is refused anyway.
    pub refused_body: Duration,
    /// For a tunnel that is down.
    pub tunnel_wait: Duration,
    /// Silence on an event stream before a comment is sent.
    pub keep_alive: Duration,
    /// For a reader that takes nothing while its queue is full.
    pub stalled: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request_head: limits::REQUEST_HEAD,
            idle: limits::AGENT_IDLE,
            refused_body: Duration::from_secs(1),
            tunnel_wait: limits::TUNNEL_WAIT,
            keep_alive: limits::KEEP_ALIVE,
            stalled: Duration::from_secs(30),
        }
    }
}

/// The listener and what its connections share.
#[derive(Debug)]
pub struct Relay {
    listener: TcpListener,
    context: Arc<Context>,
}

/// What every connection needs.
#[derive(Debug)]
struct Context {
    run: RunId,
    port: u16,
    guard: Guard,
    tunnel: Tunnel,
    timing: Timing,
    /// Connections and pumps; nothing is spawned elsewhere.
    tasks: Owned,
}

impl Relay {
    /// A relay on a listener that is bound to loopback. `port` is the one that agents use.
    #[must_use]
    pub fn new(listener: TcpListener, port: u16, run: RunId, tunnel: Tunnel, timing: Timing) -> Self {
        let context = Context { run, port, guard: Guard::new(port), tunnel, timing, tasks: Owned::default() };
        Self { listener, context: Arc::new(context) }
    }

    /// Serves until the drain, then lets what is in flight finish; whoever drains sets the deadline.
    pub async fn run(self, mut drain: Drain) {
        let Self { listener, context } = self;
        let _rest = context.tasks.abort_on_drop();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut crowded = false;
        loop {
            let stream = tokio::select! {
                biased; // a drain must win over a ready listener
                () = drain.signalled() => break,
                stream = accept(&listener) => stream,
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                if !crowded {
                    log!("more than {CONNECTIONS} connections: no more are taken for now");
                }
                crowded = true;
                continue;
            };
            crowded = false;
            context.tasks.spawn(Box::pin(serve::serve(Arc::clone(&context), stream, drain.clone(), place)));
        }
        drop(listener);
        context.tasks.finished().await;
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _from)) => return stream,
            Err(error) => {
                log!("a connection cannot be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
