//! The uplink: one HTTP/2 connection to the bridge, kept open.
//!
//! ```text
//! Connecting ──► Greeting ──► Open ──► Draining ──► (gone)
//!      ▲             │          │
//!      └── backoff ◄─┴──────────┘
//! ```
//!
//! It does not know MCP. A request becomes a stream; who may send what is decided on the other side. One task
//! ([`Uplink::run`]) owns the connection and says what state it is in; requests hold a [`Tunnel`].

pub(crate) mod exchange;
mod greet;
pub(crate) mod link;
mod listen;
mod transport;

use std::{io, os::unix::net::UnixListener, sync::Arc};

use moat_shared::{
    hint::Hint,
    limits,
    plan::{self, Identity},
    rt::{
        backoff::{Attempt, Backoff},
        drain::Drain,
        exec::Owned,
    },
    tls::{self, TlsError},
};
use rustls::ClientConfig;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::{
    greet::{Broken, GreetError, Greeted, Standing, greet},
    link::{Link, Opened},
    transport::Transport,
};
pub use self::{
    link::{FirstOutcome, Tunnel},
    transport::TransportError,
};
use crate::{chain::chain, log};

/// The tunnel cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Endpoint.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// The task that owns the connection.
#[derive(Debug)]
pub struct Uplink {
    transport: Transport,
    tls: Arc<ClientConfig>,
    link: watch::Sender<Link>,
    /// Of all connections that this uplink ever had: streams of one that says goodbye finish in peace.
    tasks: Owned,
    generation: u64,
}

impl Uplink {
    /// Everything that can be wrong with endpoint and key is found here. `socket`: where the bridge dials a unix socket, the
    /// one that PID 1 listens at.
    ///
    /// # Errors
    /// When the endpoint is not supported or the identity not usable.
    pub fn new(
        tunnel: &plan::Tunnel,
        identity: &Identity,
        socket: Option<UnixListener>,
    ) -> Result<(Self, Tunnel), SetupError> {
        let transport = Transport::new(tunnel, socket)?;
        let tls = Arc::new(tls::sidecar_config(identity)?);
        let (link, seen) = watch::channel(Link::Down("it was not tried yet".into()));
        let uplink = Self { transport, tls, link, tasks: Owned::default(), generation: 0 };
        Ok((uplink, Tunnel::new(seen)))
    }

    /// Keeps the tunnel open until the drain, then says goodbye.
    pub async fn run(mut self, mut drain: Drain) {
        let mut backoff = Backoff::default();
        loop {
            let greeted = tokio::select! {
                biased;
                () = drain.signalled() => break,
                greeted = self.connect() => greeted,
            };
            let attempt = match greeted {
                Err(attempt) => attempt,
                Ok(mut standing) => {
                    let since = Instant::now();
                    let ended = tokio::select! {
                        biased;
                        () = drain.signalled() => return self.say_goodbye(standing).await,
                        () = self.transport.turn_away() => Ok(()),
                        ended = &mut standing => ended,
                    };
                    let why = ended
                        .map_or_else(|error| why_it_broke(&error), |()| "the bridge closed it".to_owned());
                    log!("the tunnel is down: {why}");
                    self.link.send_replace(Link::Down(why.into()));
                    Attempt::Stood(since.elapsed())
                }
            };
            tokio::select! {
                biased;
                () = drain.signalled() => break,
                () = sleep(backoff.pause(attempt)) => {}
            }
        }
        self.link.send_replace(Link::Draining);
    }

    /// One attempt, under one deadline. Publishes what came of it.
    async fn connect(&mut self) -> Result<Standing, Attempt> {
        let attempt = greet(&self.transport, &self.tls, &self.tasks);
        match timeout(limits::HANDSHAKE, attempt).await {
            Ok(Ok(greeted)) => Ok(self.opened(greeted)),
            Ok(Err(GreetError::Refused(refusal))) => {
                self.say(Link::Refused(Arc::new(refusal)));
                Err(Attempt::InVain)
            }
            Ok(Err(error)) => {
                let (link, attempt) = judged(&error);
                self.say(link);
                Err(attempt)
            }
            Err(_elapsed) => {
                let seconds = limits::HANDSHAKE.as_secs();
                self.say(Link::Down(format!("{} within {seconds} s", self.transport.nobody()).into()));
                Err(Attempt::InVain)
            }
        }
    }

    fn opened(&mut self, greeted: Greeted) -> Standing {
        let Greeted { sender, standing, bridge, protocol } = greeted;
        self.generation += 1;
        // The first is what a start is for, and needs no line on the user's terminal.
        if self.generation > 1 {
            log!(
                "the tunnel is open again: {}, bridge {}, protocol {protocol}",
                self.transport,
                bridge.build
            );
        }
        let (generation, bridge) = (self.generation, Arc::new(bridge));
        self.link.send_replace(Link::Open(Opened { generation, sender, bridge, protocol }));
        standing
    }

    /// Publishes a failure; logs it when it is not the one before, so that an outage is one line and not thousands.
    fn say(&self, link: Link) {
        let text = |link: &Link| match link {
            Link::Down(why) => format!("the tunnel is down: {why}"),
            Link::Refused(refusal) => refusal.message.trim_start_matches("moat: ").to_owned(),
            Link::Open(_) | Link::Draining => String::new(),
        };
        let now = text(&link);
        if text(&self.link.send_replace(link)) != now {
            log!("{now}");
        }
    }

    /// GOAWAY, and the end of the stream of bytes, once nothing is in flight any more.
    async fn say_goodbye(self, standing: Standing) {
        self.link.send_replace(Link::Draining);
        let finished = async {
            // With the last sender gone the connection closes itself.
            let _how = standing.await.is_ok();
            self.tasks.finished().await;
        };
        if timeout(limits::DRAIN, finished).await.is_err() {
            log!("the tunnel was cut with requests in flight");
        }
        self.tasks.abort_all();
    }
}

/// What to say of an attempt that failed, and what it counts as.
fn judged(error: &GreetError) -> (Link, Attempt) {
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    let nobody = matches!(error, GreetError::Dial(_));
    let attempt = if nobody { Attempt::Nobody } else { Attempt::InVain };
    (Link::Down(format!("{}{hint}", chain(error)).into()), attempt)
}

/// A bridge that dies, or whose host does, is the common case and needs no more words than these.
fn why_it_broke(error: &Broken) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let io = match error {
        Broken::Http2(error) => error.get_io().map(io::Error::kind),
        Broken::Silent => None,
    };
    if let Some(BrokenPipe | ConnectionReset | UnexpectedEof) = io {
        "the bridge went away".to_owned()
    } else {
        chain(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::transport::DialError;
    use test_case::test_case;

    /// Of a port where nobody listens one device says so at once (Firecracker, the kernel's own: a reset), another lets the
    /// kernel's two seconds pass (vhost-device-vsock): the same remedy, and tried again as soon.
    #[test_case(libc::ECONNRESET; "reset")]
    #[test_case(libc::ETIMEDOUT; "no answer")]
    fn nobody_listens_on_the_host(code: i32) {
        let source = io::Error::from_raw_os_error(code);
        let error = GreetError::Dial(DialError { endpoint: "vsock:2:5000".parse().unwrap(), source });
        let (Link::Down(why), attempt) = judged(&error) else { panic!("refused") };
        assert_eq!(attempt, Attempt::Nobody);
        assert!(why.starts_with("no connection to the bridge at vsock:2:5000: "), "{why}");
        let remedy = "; nobody listens there: is the bridge running? try `moat proxy status` on the host";
        assert!(why.ends_with(remedy), "{why}");
    }
}
