//! Many exchanges at once that end badly, as one task: agents that leave, and agents that do not read.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::http::Call;
use crate::{Outcome, Trouble};

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a reader that stalls has room for.
const WINDOW: u32 = 4096;

/// The same exchange, often.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Crowd {
    /// What each sends.
    pub call: Call,
    /// How many there are.
    pub count: usize,
    /// How many at a time.
    pub at_once: usize,
    /// What becomes of each.
    pub each: Each,
}

/// How an exchange ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Each {
    /// It leaves when its request is written.
    LeavesAtOnce,
    /// It leaves when the answer begins.
    LeavesAtHead,
    /// It reads how the answer begins, and nothing of the rest: until the crowd is abandoned.
    Stalls,
}

/// Makes the exchanges; `stalled` is told when all of those that stall do.
///
/// # Errors
/// When one cannot be made.
pub async fn gather(crowd: Crowd, stalled: impl FnOnce()) -> Outcome<Value> {
    let places = Arc::new(Semaphore::new(crowd.at_once));
    let mut all = JoinSet::new();
    for _ in 0..crowd.count {
        let place = Arc::clone(&places).acquire_owned().await?;
        let (call, each) = (crowd.call.clone(), crowd.each);
        all.spawn(async move {
            let kept = timeout(PATIENCE, exchange(&call, each)).await;
            drop(place);
            kept.map_err(|_| Trouble::new("no answer begins"))?
        });
        while let Some(ended) = all.try_join_next() {
            check(ended)?;
        }
    }
    let mut kept = Vec::new();
    while let Some(ended) = all.join_next().await {
        kept.extend(check(ended)?);
    }
    if crowd.each == Each::Stalls {
        stalled();
        std::future::pending::<()>().await;
    }
    drop(kept);
    Ok(json!({"ended": crowd.count}))
}

fn check(ended: Result<Outcome<Option<TcpStream>>, tokio::task::JoinError>) -> Outcome<Option<TcpStream>> {
    ended.map_err(|error| Trouble::new(error.to_string()))?
}

/// One exchange; the connection of one that stalls.
async fn exchange(call: &Call, each: Each) -> Outcome<Option<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    if each == Each::Stalls {
        socket.set_recv_buffer_size(WINDOW)?;
    }
    let mut stream = socket.connect(call.to.parse()?).await?;
    stream.write_all(call.head.as_bytes()).await?;
    call.body.write(&mut stream).await?;
    if each == Each::LeavesAtOnce {
        return Ok(None);
    }
    let mut begins = [0; 12];
    stream.read_exact(&mut begins).await?;
    match &begins {
        b"HTTP/1.1 200" => Ok((each == Each::Stalls).then_some(stream)),
        _ => Err(Trouble::new(format!("answered {}", String::from_utf8_lossy(&begins)))),
    }
}
