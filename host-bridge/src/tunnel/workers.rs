//! The threads that serve the tunnels: a tunnel stays on one, with all its streams and their upstreams' connections.
//!
//! ```text
//! accept loop ──► the worker with the fewest tunnels ──► its own runtime: tunnel ► streams ► pipeline ► upstream
//! ```
//!
//! So that a request is handed from thread to thread nowhere on its way: waking another thread costs more than most of
//! what a request needs to have done. Several workers, because what one run makes the bridge compute must not hold up
//! all others.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use moat_shared::rt::{drain::Drain, stream::Stream};
use socket2::Socket;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    task::{JoinSet, yield_now},
};

use super::{Door, Shared, carrier::Origin, connection::Connection, half_open::Guard};

/// All of them.
pub(super) struct Workers {
    workers: Vec<Worker>,
}

struct Worker {
    tunnels: Arc<AtomicUsize>,
    /// Dropping it lets the worker finish what it has.
    arrivals: Option<mpsc::UnboundedSender<Arrival>>,
    /// Dropping it ends the worker and all of its tunnels.
    cut: Option<oneshot::Sender<()>>,
    finished: Option<oneshot::Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A connection that was accepted.
struct Arrival {
    socket: Socket,
    origin: Origin,
    half_open: Guard,
    drain: Drain,
    counted: Counted,
}

/// One tunnel of a worker's, until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts one for each of these.
    pub(super) fn start<D: Door>(shared: Vec<Arc<Shared<D>>>) -> io::Result<Self> {
        let workers = shared.into_iter().map(Worker::start).collect::<io::Result<_>>()?;
        Ok(Self { workers })
    }

    /// Gives a connection to the one that has the fewest.
    pub(super) fn take(&self, (socket, origin): (Socket, Origin), half_open: Guard, drain: Drain) {
        let least = self.workers.iter().min_by_key(|worker| worker.tunnels.load(Ordering::Relaxed));
        if let Some(Worker { tunnels, arrivals: Some(arrivals), .. }) = least {
            let arrival = Arrival { socket, origin, half_open, drain, counted: Counted::of(tunnels) };
            // A worker that is gone takes the connection with it.
            drop(arrivals.send(arrival));
        }
    }

    /// Waits until every tunnel is gone.
    pub(super) async fn finish(mut self) {
        for worker in &mut self.workers {
            worker.arrivals = None;
        }
        for worker in &mut self.workers {
            if let Some(finished) = worker.finished.take() {
                // An error means that it is gone, which is as good.
                let _gone = finished.await.is_err();
            }
        }
    }
}

impl Worker {
    fn start<D: Door>(shared: Arc<Shared<D>>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (arrivals, arriving) = mpsc::unbounded_channel();
        let (cut, is_cut) = oneshot::channel();
        let (finish, finished) = oneshot::channel();
        let work = move || {
            serve(runtime, shared, arriving, is_cut);
            // Whoever waits for it may have gone.
            let _told = finish.send(()).is_ok();
        };
        let thread = thread::Builder::new().name("tunnels".to_owned()).spawn(work)?;
        Ok(Self {
            tunnels: Arc::default(),
            arrivals: Some(arrivals),
            cut: Some(cut),
            finished: Some(finished),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.arrivals = None;
        self.cut = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker of the tunnels has failed");
        }
    }
}

fn serve<D: Door>(
    runtime: Runtime,
    shared: Arc<Shared<D>>,
    mut arriving: mpsc::UnboundedReceiver<Arrival>,
    mut cut: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        let mut tunnels = JoinSet::new();
        let work = async {
            loop {
                tokio::select! {
                    Some(_) = tunnels.join_next() => {}
                    arrival = arriving.recv() => match arrival {
                        // In a flood most have made room for a newer one while they waited here.
                        Some(mut arrival) => if !arrival.half_open.is_evicted() {
                            tunnels.spawn(tunnel(Arc::clone(&shared), arrival));
                            // It has its turn before the next is taken in: what waits is small, a tunnel is not.
                            yield_now().await;
                        },
                        None => break,
                    },
                }
            }
            while tunnels.join_next().await.is_some() {}
        };
        tokio::select! {
            biased; // what ends everything comes first
            _ = &mut cut => {}
            () = work => {}
        }
    });
    // Names are looked up on threads beside; one that hangs must not hold up the end.
    runtime.shutdown_background();
}

async fn tunnel<D: Door>(shared: Arc<Shared<D>>, arrival: Arrival) {
    let Arrival { socket, origin, half_open, drain, counted } = arrival;
    let via = origin.via();
    match Stream::new(socket) {
        Ok(stream) => Box::pin(Connection::new(shared, half_open, drain, origin, via).serve(stream)).await,
        Err(error) => tracing::error!(%error, "a tunnel cannot be served"),
    }
    drop(counted);
}
