//! One request = one stream of the tunnel (T1), both ways at once.
//!
//! ```text
//! tunnel open? ──no──► wait, bounded, reading the body ahead ──► 503
//!      │ yes
//!      ▼
//!    send ──never left──► wait again
//!      ├──── broke ──► 502, never sent twice (T4); 400 when it was the agent's own body that broke
//!      ▼
//!   response ──► headers at once, body through a pump
//! ```

use std::time::Duration;

use http::{HeaderValue, Request, Response, Uri, Version, request::Parts};
use http_body::Body as _;
use hyper::body::Incoming;
use moat_shared::{id::ServerName, wire, wire::ErrorKind};
use tokio::time::Instant;

use super::{
    Context,
    answer::Answer,
    headers,
    local::Refused,
    lost::{Asked, EventStream, Loss},
    pump::Pump,
    queue::queue,
};
use crate::{
    body::Upload,
    uplink::{
        exchange::{self, Unanswered},
        link::{Opened, Unavailable},
    },
};

/// How long the head of a request waits for a small body, so that both go into the tunnel in one write.
const SOON: Duration = Duration::from_millis(2);

/// Sends a request into the tunnel and gives its response back.
pub(crate) async fn forward(
    context: &Context,
    server: ServerName,
    mut head: Parts,
    body: Incoming,
) -> Response<Answer> {
    let mut upload = Upload::new(body);
    let asked = Asked { method: head.method.clone(), server, noted: upload.noted() };
    let refuse = |refused: Refused| refused.answer(asked.noted.id().as_ref(), Some(&asked.server));
    headers::strip_request(&mut head.headers);
    // Of this hop: an answer that is not complete may say so in its trailers (T3).
    head.headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    let Some(uri) = tunnel_uri(&head.uri) else {
        return refuse(Refused::new(ErrorKind::Internal, "moat: the path cannot be sent through the tunnel"));
    };
    head.uri = uri;
    head.version = Version::HTTP_2;
    head.extensions.clear();
    if upload.read_small(SOON).await.is_err() {
        return refuse(Loss::of(&asked.noted).into());
    }
    match send(context, Request::from_parts(head, upload)).await {
        Ok(response) => stream_back(context, asked, response),
        Err(refused) => refuse(refused),
    }
}

/// The authority means nothing on the tunnel, but HTTP/2 wants one.
fn tunnel_uri(uri: &Uri) -> Option<Uri> {
    let path = uri.path_and_query()?.clone();
    Uri::builder().scheme("http").authority(wire::BRIDGE_DNS_NAME).path_and_query(path).build().ok()
}

async fn send(
    context: &Context,
    mut request: Request<Upload>,
) -> Result<Response<exchange::Incoming>, Refused> {
    let deadline = Instant::now() + context.timing.tunnel_wait;
    let noted = request.body().noted();
    let mut seen = None;
    loop {
        let Opened { generation, sender, .. } = wait(context, seen, deadline, request.body_mut()).await?;
        match sender.send(request).await {
            Ok(response) => return Ok(response),
            Err(Unanswered::Lost) => return Err(Loss::of(&noted).into()),
            // It may go into the next tunnel.
            Err(Unanswered::Unsent(unsent)) => request = *unsent,
        }
        seen = Some(generation);
    }
}

/// Waits for a tunnel and reads the body's start meanwhile: that shows the request's id, and whether the agent is still
/// there.
async fn wait(
    context: &Context,
    seen: Option<u64>,
    deadline: Instant,
    upload: &mut Upload,
) -> Result<Opened, Refused> {
    let opened = context.tunnel.opened(seen, deadline);
    tokio::pin!(opened);
    let outcome = tokio::select! {
        biased;
        outcome = &mut opened => outcome,
        read = upload.read_ahead() => match read {
            Ok(()) => opened.await,
            Err(_broken) => return Err(Loss::of(&upload.noted()).into()),
        },
    };
    if outcome.is_err() {
        upload.look_for_id(context.timing.refused_body).await;
    }
    outcome.map_err(|unavailable| match unavailable {
        Unavailable::Down(why) => Refused::new(
            ErrorKind::TunnelDown,
            format!("moat: this request was not sent, because the tunnel to the bridge is down: {why}"),
        ),
        Unavailable::Refused(refusal) => Refused::new(refusal.kind, refusal.message.clone()),
        Unavailable::Draining => Refused::new(
            ErrorKind::TunnelDown,
            "moat: this request was not sent, because the sandbox is shutting down",
        ),
    })
}

/// The response's head now, its body as it comes.
fn stream_back(context: &Context, asked: Asked, response: Response<exchange::Incoming>) -> Response<Answer> {
    let events = headers::is_writable_stream(&response).then(EventStream::default);
    let (mut head, body) = response.into_parts();
    head.version = Version::HTTP_11;
    head.extensions.clear();
    headers::strip_response(&mut head.headers);
    if body.is_end_stream() {
        return Response::from_parts(head, Answer::empty());
    }
    let (queue, reader) = queue();
    let answer = Answer::Streamed { reader, upload: asked.noted.clone() };
    let mut pump = Pump { body, queue, asked, events, timing: context.timing };
    if pump.take_first().is_continue() {
        context.tasks.spawn(Box::pin(pump.run()));
    }
    Response::from_parts(head, answer)
}
