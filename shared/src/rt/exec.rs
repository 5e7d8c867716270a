//! Tasks with an owner, who is an executor for hyper as well.
//!
//! hyper's HTTP/2 streams hold a handle of their own executor, so dropping one's own handle does not end them:
//! whoever owns the connection calls [`Owned::abort_all`] when it is over, or keeps an [`AbortOnDrop`].

use std::{
    future::{Future, poll_fn},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
};

use tokio::task::JoinSet;

/// Spawns into one owned [`JoinSet`].
#[derive(Debug, Clone, Default)]
pub struct Owned(Arc<Mutex<JoinSet<()>>>);

impl Owned {
    /// Takes a task in. tokio and the compiler move its future several times: a large one comes in a box, and no future
    /// around it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Drops every task: what they held is released as soon as they are not running.
    pub fn abort_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// A guard that does so.
    pub fn abort_on_drop(&self) -> AbortOnDrop {
        AbortOnDrop(self.clone())
    }

    /// Waits until all that was spawned has ended.
    pub async fn finished(&self) {
        poll_fn(|context| {
            let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                match tasks.poll_join_next(context) {
                    Poll::Ready(Some(_)) => {}
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }
}

/// Ends the tasks of an [`Owned`] when it is dropped.
#[derive(Debug)]
#[must_use = "dropping this ends the tasks"]
pub struct AbortOnDrop(Owned);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort_all();
    }
}

impl<F> hyper::rt::Executor<F> for Owned
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        // hyper's take kilobytes.
        self.spawn(Box::pin(future));
    }
}
