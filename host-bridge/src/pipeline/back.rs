//! The answer on its way to the agent: what its status means, which headers travel, and in what form its body does.
//!
//! ```text
//! 401, 403 with a credential ──► 502, the agent never starts OAuth (section 6.3)
//! 3xx with Location          ──► 502, nobody follows (section 6.2)
//! 202                        ──► no body, no content type (R13); of a request 502, nobody would ever answer it
//! text/event-stream          ──► event by event
//! everything else            ──► held back shortly, so that a cut is an error the agent can read; then as it comes,
//!                                status as received (R11, R12)
//! ```

mod announce;
mod decode;
mod events;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod relay;
pub(super) mod review;
mod watch;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, response::Parts};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Empty};
use moat_shared::limits;

pub(crate) use self::relay::Incomplete;
use self::{
    announce::Announcer,
    decode::Coding,
    events::{Endpoint, Events},
    relay::{Relay, Scrub},
    review::{ANSWER_MAX, Reviewed, Reviewer},
    watch::Watch,
};
use super::{
    Body,
    error::PipelineError,
    forward::Streaming,
    headers,
    hold::{Allowance, Hold, Kept},
    inject::Credential,
    parse::Asked,
    place::Placed,
    record::Trace,
    session::Sessions,
};
use crate::{
    record::{AuditEvent, Failure, Recorder},
    upstream::{legacy::Handles, scan::Scrubber},
};

/// How much of an answer that is no event stream is held back, and how long, so that one which is cut or cannot be
/// read becomes an error with an id. Slow answers are not kept waiting for: their head travels (section 6.14).
const HOLD: usize = 64 * 1024;
const HOLD_FOR: Duration = Duration::from_millis(250);

/// What the way back needs of the pipeline.
#[derive(Debug)]
pub(super) struct Way<'a> {
    pub(super) sessions: &'a Sessions,
    pub(super) handles: &'a Handles,
    pub(super) recorder: &'a Recorder,
    pub(super) allowance: &'a Allowance,
}

/// Turns an upstream's answer into the agent's.
pub(super) async fn back(
    streaming: Streaming,
    way: Way<'_>,
    mut trace: Trace,
) -> Result<Response<Body>, (PipelineError, Trace)> {
    let Streaming { placed, method, asked, credential, response } = streaming;
    let (parts, body) = response.into_parts();
    trace.status(parts.status.as_u16());
    if let Err(error) = judge(&parts, &placed, credential.as_ref(), way.recorder) {
        return Err((error, trace));
    }
    let mut head = Response::new(());
    *head.status_mut() = parts.status;
    *head.headers_mut() = head_of(&parts.headers, &placed, credential.as_ref(), &way);
    let decoder = match decode::coding(&parts.headers) {
        Coding::Identity => None,
        Coding::Known(decoder) => Some(*decoder),
        Coding::Unknown => return Err((invalid(&placed, "its content coding is unknown"), trace)),
    };
    if matches!(parts.status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        // Only on the legacy transport does the response come by another way.
        if method == Method::POST && !placed.is_legacy_message() && !asked.ids().is_empty() {
            return Err((invalid(&placed, "it takes the request and gives no response"), trace));
        }
        head.headers_mut().remove(header::CONTENT_TYPE);
        trace.end(None);
        return Ok(head.map(|()| Empty::new().map_err(|never| match never {}).boxed_unsync()));
    }
    let media = media_type(&parts.headers);
    // Who resumes a stream, or listens, may get answers to anything.
    let listening = method != Method::POST || asked.method().as_deref() == Some("subscriptions/listen");
    let reviewer = Reviewer::new(&placed, (!listening).then_some(&asked), asked.is_modern(), way.recorder);
    let events = (media == b"text/event-stream").then(|| {
        head.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        trace.streaming();
        events_of(&method, &asked, &placed, &way)
    });
    let (events, reviewer) = match (events, reviewer) {
        (Some(events), Some(reviewer)) => {
            let announcer = listening.then(|| Announcer::new(&reviewer, &asked));
            (Some(events.reviewed(reviewer).announced(announcer)), None)
        }
        other => other,
    };
    let scrub = credential.map(|credential| Scrub {
        scrubber: Scrubber::new(credential.forms),
        grant: credential.token.grant().clone(),
        placed: placed.clone(),
        recorder: way.recorder.clone(),
        recorded: false,
    });
    let server = placed.server().name.to_string();
    let whole = events.is_none();
    let document = method == Method::POST && media == b"application/json";
    let awaited = document && parts.status.is_success() && !asked.ids().is_empty();
    let relay = Relay::new(body, decoder, scrub, events, server.clone(), awaited, trace);
    if let Some(reviewer) = reviewer.filter(|_| whole) {
        // In a box: every other answer would have room for it in its future.
        return Box::pin(review_whole(relay, &reviewer, &media, head, server, way.allowance)).await;
    }
    if whole {
        return match hold_back(relay, way.allowance).await {
            Held::Whole(bytes) => Ok(head.map(|()| bytes.boxed_unsync())),
            Held::Part(relay) => Ok(head.map(|()| relay.boxed_unsync())),
            Held::Cut(failure, trace) => Err((PipelineError::incomplete(failure, server), *trace)),
        };
    }
    Ok(head.map(|()| relay.boxed_unsync()))
}

/// Is this an answer that may travel?
fn judge(
    parts: &Parts,
    placed: &Placed,
    credential: Option<&Credential>,
    recorder: &Recorder,
) -> Result<(), PipelineError> {
    let server = placed.server();
    if let (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(credential)) = (parts.status, credential) {
        let grant = credential.token.grant().clone();
        recorder.audit(
            &placed.run().id,
            AuditEvent::CredentialRejected {
                grant: grant.clone(),
                host: credential.token.host().to_owned(),
                server: server.name.clone(),
                status: parts.status.as_u16(),
            },
        );
        return Err(PipelineError::Rejected {
            server: server.name.to_string(),
            grant,
            status: parts.status.as_u16(),
        });
    }
    if let (true, Some(location)) = (parts.status.is_redirection(), parts.headers.get(header::LOCATION)) {
        let base = url::Url::parse(server.upstream.as_str());
        let target = base.ok().and_then(|base| base.join(location.to_str().ok()?).ok());
        let target =
            target.map_or_else(|| "an unreadable place".to_owned(), |url| url.origin().ascii_serialization());
        // This goes to the agent and into the records: not with the credential in the host's name.
        let echoed = |c: &Credential| c.forms.clean(target.as_bytes()).is_some();
        let target = match credential.filter(|c| echoed(c)) {
            Some(credential) => {
                relay::reflected(recorder, placed, credential.token.grant(), "header");
                "another place".to_owned()
            }
            None => target,
        };
        return Err(PipelineError::Redirect { server: server.name.to_string(), target });
    }
    let length: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if length > limits::HEADER_LIST as usize {
        return Err(invalid(placed, "its headers are too long"));
    }
    Ok(())
}

/// The headers for the agent, none of which holds the credential.
fn head_of(
    received: &HeaderMap,
    placed: &Placed,
    credential: Option<&Credential>,
    way: &Way<'_>,
) -> HeaderMap {
    let mut kept = headers::to_agent(received);
    if let Some(credential) = credential {
        let named: Vec<_> =
            kept.keys().filter(|name| credential.forms.clean(name.as_ref()).is_some()).cloned().collect();
        let mut found = !named.is_empty();
        for name in named {
            kept.remove(name);
        }
        for value in kept.values_mut() {
            if let Some(clean) = credential.forms.clean(value.as_bytes()) {
                *value = HeaderValue::from_bytes(&clean).unwrap_or_else(|_| HeaderValue::from_static(""));
                found = true;
            }
        }
        if found {
            relay::reflected(way.recorder, placed, credential.token.grant(), "header");
        }
    }
    way.sessions.seal(&placed.run().id, &placed.server().name, &mut kept);
    kept
}

/// How an event stream is followed: for its responses, or for its endpoint.
fn events_of(method: &Method, asked: &Asked, placed: &Placed, way: &Way<'_>) -> Events {
    if *method == Method::GET {
        let endpoint = Endpoint::new(placed.clone(), way.handles.clone());
        return Events::listening(Some(endpoint), way.allowance);
    }
    // Never ends by itself, and is opened again when it does (R24).
    if asked.method().as_deref() == Some("subscriptions/listen") {
        return Events::listening(None, way.allowance);
    }
    Events::answering(Watch::new(asked.clone()), way.allowance)
}

/// Judges an answer that is no stream: it is held back whole.
async fn review_whole<U>(
    mut relay: Relay<U>,
    reviewer: &Reviewer,
    media: &[u8],
    mut head: Response<()>,
    server: String,
    allowance: &Allowance,
) -> Result<Response<Body>, (PipelineError, Trace)>
where
    U: HttpBody<Data = Bytes> + Unpin + Send + 'static,
{
    let is_json = media == b"application/json";
    if !is_json && !reviewer.judges_results() {
        return Ok(head.map(|()| relay.boxed_unsync()));
    }
    relay.hold();
    let mut held = Hold::new(allowance);
    let mut room = true;
    while let Some(frame) = relay.frame().await {
        match frame {
            Ok(frame) => room = held.push(frame.into_data().unwrap_or_default(), relay.is_end_stream()),
            Err(Incomplete(failure)) => {
                return Err((PipelineError::incomplete(failure, server), relay.into_trace()));
            }
        }
        if held.len() > ANSWER_MAX || !room {
            break;
        }
    }
    let too_long = held.len() > ANSWER_MAX || !room;
    if too_long && !reviewer.judges_results() {
        // A list that cannot be held: the calls are judged all the same.
        relay.give_back(held.into_pieces());
        return Ok(head.map(|()| relay.boxed_unsync()));
    }
    let reviewed = |whole: &Bytes| match (whole.len(), is_json) {
        // Not held whole.
        _ if too_long => Reviewed::Withheld,
        (0, _) => Reviewed::AsItIs,
        (_, true) => reviewer.review(whole),
        // Nothing that can be judged.
        (_, false) => Reviewed::Withheld,
    };
    let (whole, charge) = held.into_whole();
    let reviewed = reviewed(&whole);
    let bytes = match reviewed {
        Reviewed::AsItIs => whole,
        Reviewed::Changed(bytes) => bytes.into(),
        Reviewed::Withheld | Reviewed::Dropped => {
            head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            reviewer.instead().into()
        }
    };
    Ok(head.map(|()| Kept::new(bytes, charge).boxed_unsync()))
}

enum Held<U> {
    Whole(Kept),
    Part(Box<Relay<U>>),
    Cut(Failure, Box<Trace>),
}

/// Takes a small answer whole.
async fn hold_back<U>(mut relay: Relay<U>, allowance: &Allowance) -> Held<U>
where
    U: HttpBody<Data = Bytes> + Unpin,
{
    relay.hold();
    let deadline = tokio::time::Instant::now() + HOLD_FOR;
    let mut held = Hold::new(allowance);
    let mut room = true;
    while held.len() <= HOLD && room {
        match tokio::time::timeout_at(deadline, relay.frame()).await {
            Ok(Some(Ok(frame))) => {
                room = held.push(frame.into_data().unwrap_or_default(), relay.is_end_stream())
            }
            Ok(Some(Err(Incomplete(failure)))) => return Held::Cut(failure, Box::new(relay.into_trace())),
            Ok(None) => {
                let (whole, charge) = held.into_whole();
                return Held::Whole(Kept::new(whole, charge));
            }
            Err(_) => break,
        }
    }
    relay.give_back(held.into_pieces());
    Held::Part(Box::new(relay))
}

fn media_type(headers: &HeaderMap) -> Vec<u8> {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
    value[..end].trim_ascii().to_ascii_lowercase()
}

fn invalid(placed: &Placed, what: &'static str) -> PipelineError {
    PipelineError::Invalid { server: placed.server().name.to_string(), what }
}
