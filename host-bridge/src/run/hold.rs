//! Holding a run: the bridge knows that somebody answers for it, and tells that somebody what happens.
//!
//! ```text
//! hold ──► events ──► Ended ──► over
//!   ▲         │ the bridge went away
//!   └─ ensure ┘   (whoever notices first starts the next)
//! ```

use std::time::Duration;

use moat_shared::id::RunId;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    cli::with_causes,
    control::{
        api::HoldEvent,
        client::{Client, ClientError},
        spawn,
    },
    env::Environment,
    home::Home,
};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Holds the run until it is over or nobody listens any more.
pub(crate) async fn hold(
    home: Home,
    env: Environment,
    run: RunId,
    first: Client,
    events: mpsc::Sender<HoldEvent>,
) {
    let mut client = Some(first);
    let mut pause = FIRST_PAUSE;
    let mut said = false;
    loop {
        match stream(&home, &env, &run, client.take(), &events).await {
            Ok(Over::Run) => return,
            Ok(Over::Bridge) => {
                pause = FIRST_PAUSE;
                said = false;
                continue;
            }
            Err(text) if !said => {
                said = true;
                let warning = HoldEvent::Warning { text: format!("Warning: no bridge: {text}") };
                if events.send(warning).await.is_err() {
                    return;
                }
            }
            Err(_) => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What has come to an end.
enum Over {
    /// The run, or the interest in it.
    Run,
    /// This bridge; the run goes on.
    Bridge,
}

/// Holds with one bridge, for as long as it is there.
async fn stream(
    home: &Home,
    env: &Environment,
    run: &RunId,
    client: Option<Client>,
    events: &mpsc::Sender<HoldEvent>,
) -> Result<Over, String> {
    let client = match client {
        Some(client) => client,
        None => spawn::ensure(home, env).await.map_err(|error| with_causes(&error))?,
    };
    let mut hold = match client.hold(run).await {
        Ok(hold) => hold,
        Err(error) if error.is_passing() => return Err(with_causes(&error)),
        Err(error @ ClientError::Refused { .. }) => {
            // The bridge knows no such run: its servers are gone for good.
            let ended = HoldEvent::Ended { reason: with_causes(&error) };
            let _nobody_listens = events.send(ended).await;
            return Ok(Over::Run);
        }
        Err(error) => return Err(with_causes(&error)),
    };
    while let Some(event) = hold.next().await {
        let over = matches!(event, HoldEvent::Ended { .. });
        if events.send(event).await.is_err() || over {
            return Ok(Over::Run);
        }
    }
    Ok(Over::Bridge)
}
