//! An executor for hyper that owns what it spawns: dropping the last handle aborts the tasks.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::JoinSet;

/// Spawns into one owned [`JoinSet`].
#[derive(Debug, Clone, Default)]
pub struct Owned(Arc<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Owned
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            future.await;
        });
    }
}
