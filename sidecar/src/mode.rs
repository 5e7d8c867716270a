//! The two modes: PID 1, which is all in `moat-init`, and the relay that PID 1 starts.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpListener,
    os::{
        fd::{AsFd, RawFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    pin::Pin,
    process,
};

use moat_init::relay::{FAILED, LISTENER_FD, READY, READY_FD, RelayStart, SOCKET_FD};
use moat_shared::{
    exit, limits,
    rt::{drain, drain::Drained},
    secret::Secret,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::{
    chain::chain,
    log,
    relay::{Relay, Timing},
    sys,
    uplink::{self, FirstOutcome, Tunnel, Uplink},
};

/// Where PID 1 finds its plan and the run's key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StartupFrom {
    /// An inherited descriptor.
    Descriptor(RawFd),
    /// A file that is removed after reading.
    File(PathBuf),
    /// The first bytes of stdin.
    Stdin,
}

/// PID 1.
pub(crate) fn init(from: StartupFrom) -> u8 {
    let startup = match from {
        StartupFrom::Descriptor(fd) => moat_init::startup::from_fd(fd),
        StartupFrom::File(path) => moat_init::startup::from_file(&path),
        StartupFrom::Stdin => moat_init::startup::from_stdin(),
    };
    match startup {
        Ok(startup) => moat_init::run(startup),
        Err(error) => {
            log!("{}", chain(&error));
            exit::SETUP
        }
    }
}

/// The relay. Everything is taken over and checked before the first connection is accepted.
pub(crate) fn relay() -> u8 {
    let prepared = prepare().and_then(|prepared| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| StartError::Io { what: "the runtime", source })?;
        runtime.block_on(serve(prepared))
    });
    match prepared {
        Ok(()) => exit::OK,
        Err(error) => {
            log!("the relay cannot start: {}", chain(&error));
            exit::SETUP
        }
    }
}

/// The relay cannot start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// Something that PID 1 leaves to the relay is not usable.
    #[error("{what} is not usable")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("what PID 1 says on stdin cannot be understood (line {line}, column {column})")]
    Said { line: usize, column: usize },
    #[error("the tunnel cannot be prepared")]
    Uplink(#[from] uplink::SetupError),
}

/// What PID 1 left.
struct Prepared {
    start: RelayStart,
    listener: TcpListener,
    ready: File,
    /// Where the bridge dials, if it dials a socket.
    socket: Option<UnixListener>,
}

fn prepare() -> Result<Prepared, StartError> {
    let io = |what| move |source| StartError::Io { what, source };
    moat_init::harden_process().map_err(io("PR_SET_DUMPABLE"))?;
    if let Err(error) = moat_init::allow_descriptors() {
        log!("the limit of open files stays as it is: {error}");
    }
    let listener = TcpListener::from(sys::inherited(LISTENER_FD).map_err(io("the listening socket"))?);
    listener.set_nonblocking(true).map_err(io("the listening socket"))?;
    let ready = File::from(sys::inherited(READY_FD).map_err(io("the readiness pipe"))?);
    let start = read_start()?;
    let socket = start.tunnel.dialled_socket().map(|_| sys::inherited(SOCKET_FD)).transpose();
    let socket = socket.map_err(io("the tunnel's socket"))?.map(UnixListener::from);
    Ok(Prepared { start, listener, ready, socket })
}

/// Reads what PID 1 says. The run's key is in it: the bytes are wiped, and no error quotes them.
fn read_start() -> Result<RelayStart, StartError> {
    let io = |source| StartError::Io { what: "stdin", source };
    // Not through std's own stdin: its buffer would keep the key.
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(io)?);
    let mut bytes = Vec::with_capacity(16 * 1024);
    let outcome = stdin.take(limits::PLAN as u64).read_to_end(&mut bytes);
    let bytes = Secret::new(bytes);
    outcome.map_err(io)?;
    serde_json::from_slice(bytes.expose())
        .map_err(|error| StartError::Said { line: error.line(), column: error.column() })
}

async fn serve(prepared: Prepared) -> Result<(), StartError> {
    let Prepared { start, listener, ready, socket } = prepared;
    let io = |what| move |source| StartError::Io { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(io("SIGTERM"))?;
    let (uplink, tunnel) = Uplink::new(&start.tunnel, &start.identity, socket)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(io("the listening socket"))?;
    let relay = Relay::new(listener, start.relay_port, start.run, tunnel.clone(), Timing::default());

    let (stop_relay, relay_drain) = drain::drain();
    let (stop_uplink, uplink_drain) = drain::drain();
    let stop = async {
        terminate.recv().await;
        // The tunnel outlives the streams that it carries.
        let streams = stop_relay.drain(limits::DRAIN).await;
        let link = stop_uplink.drain(limits::DRAIN).await;
        if (streams, link) != (Drained::Finished, Drained::Finished) {
            log!("stopped with requests still in flight");
        }
    };
    // A task of its own: what the outermost future is woken for costs a look at all sockets.
    let mut connection = JoinSet::new();
    let uplink: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(uplink.run(uplink_drain));
    connection.spawn(uplink);
    let connected = async {
        while let Some(ended) = connection.join_next().await {
            // A panic is the sidecar's end, also in a build that unwinds.
            if ended.is_err() {
                process::abort();
            }
        }
    };
    let work = async { tokio::join!(relay.run(relay_drain), announce(tunnel, ready), connected) };
    tokio::select! {
        () = stop => {}
        _ = work => {}
    }
    Ok(())
}

/// Tells PID 1 how the first hello ended.
async fn announce(tunnel: Tunnel, mut ready: File) {
    let line = match tunnel.first_outcome().await {
        FirstOutcome::Open => READY.to_owned(),
        FirstOutcome::Refused(text) => format!("{FAILED}{}\n", text.replace('\n', " ")),
        FirstOutcome::Stopped => return,
    };
    if let Err(error) = ready.write_all(line.as_bytes()) {
        log!("PID 1 cannot be told that the relay is ready: {error}");
    }
}
