//! From a stream of bytes to a tunnel that stands: TLS, HTTP/2, hello (T10).

use std::{error::Error, future::Future, io, pin::Pin, sync::Arc};

use bytes::Bytes;
use h2::client::Connection;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use moat_shared::{
    hello::{self, Hello},
    hint::Hint,
    limits,
    rt::{
        self,
        exec::Owned,
        gulp::Gulp,
        h2::pulse::{Heard, Pulse},
        stream::Stream,
    },
    tls, wire,
    wire::ErrorKind,
};
use rustls::ClientConfig;
use tokio::sync::{Notify, oneshot};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    exchange::Sender,
    link::Refusal,
    transport::{DialError, Transport},
};
use crate::chain::causes;

/// Larger answers to a hello are none.
const ANSWER: usize = 64 * 1024;

/// Both sides have said who they are.
pub(super) type Secured = TlsStream<Gulp<Stream>>;

/// Ends when the tunnel takes no more requests, and says why.
pub(crate) type Standing = Pin<Box<dyn Future<Output = Result<(), Broken>> + Send>>;

/// Why a tunnel broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Http2(#[from] h2::Error),
    #[error("the bridge does not answer pings any more")]
    Silent,
}

/// A tunnel after its hello.
pub(crate) struct Greeted {
    pub(crate) sender: Sender,
    pub(crate) standing: Standing,
    pub(crate) bridge: Hello,
    pub(crate) protocol: u32,
}

/// Why an attempt gave no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    /// Nobody there; may mend itself.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Broke on the way; may mend itself.
    #[error("the connection to the bridge broke during the handshake")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// One side wants nothing to do with the other.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl Hint for GreetError {
    fn hint(&self) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            Self::Dial(error) => error.hint(),
            Self::Broken(_) | Self::Refused(_) => None,
        }
    }
}

/// Opens a tunnel. The caller sets the deadline.
pub(crate) async fn greet(
    transport: &Transport,
    tls: &Arc<ClientConfig>,
    tasks: &Owned,
) -> Result<Greeted, GreetError> {
    let stream = match transport {
        Transport::Dials(to) => {
            secure(to.dial().await?, tls).await.map_err(|error| sort(transport, Box::new(error)))?
        }
        Transport::Listens(at) => at.authenticated(tls).await,
    };
    let pulse = if transport.is_vsock() { Pulse::GUEST } else { Pulse::USUAL };
    let (sender, mut standing) =
        start(stream, pulse, tasks).await.map_err(|error| sort(transport, Box::new(error)))?;
    let answer = tokio::select! {
        answer = say_hello(&sender) => answer.map_err(|error| sort(transport, error))?,
        ended = &mut standing => {
            let error: Box<dyn Error + Send + Sync> = match ended {
                Ok(()) => "the bridge closed it".into(),
                Err(error) => Box::new(error),
            };
            return Err(sort(transport, error));
        }
    };
    let (bridge, protocol) = judge(answer.0, &answer.1).map_err(|refusal| match refusal.kind {
        // Another tunnel of this run is still there: that mends itself.
        ErrorKind::TunnelDown => GreetError::Broken(refusal.message.into()),
        _ => GreetError::Refused(refusal),
    })?;
    Ok(Greeted { sender, standing, bridge, protocol })
}

/// HTTP/2 on it. The connection is a task's, so that streams of a tunnel that takes no more requests finish in peace;
/// it ends with the last of them and of the senders.
async fn start(stream: Secured, pulse: Pulse, tasks: &Owned) -> Result<(Sender, Standing), h2::Error> {
    let (streams, mut connection) = rt::h2::sidecar().handshake(stream).await?;
    let (heard, closing) = (Heard::default(), Arc::new(Notify::new()));
    let sender = Sender::new(streams, heard.clone(), Arc::clone(&closing));
    let pings = connection.ping_pong();
    let (tell, ended) = oneshot::channel();
    tasks.spawn(Box::pin(async move {
        let ended = drive(connection, pings.map(|pings| pulse.stops(pings, heard))).await;
        // Nobody may be left who wants to know.
        drop(tell.send(ended));
    }));
    let standing = async move {
        tokio::select! {
            biased;
            ended = ended => ended.unwrap_or(Ok(())),
            () = closing.notified() => Ok(()),
        }
    };
    Ok((sender, Box::pin(standing)))
}

/// TLS on a carrier, whoever dialled. The caller sets the deadline.
pub(super) async fn secure(carrier: Stream, tls: &Arc<ClientConfig>) -> io::Result<Secured> {
    let carrier = Gulp::new(carrier, limits::TUNNEL_READ);
    TlsConnector::from(Arc::clone(tls)).connect(tls::bridge_name(), carrier).await
}

/// Until it ends, or is dead.
async fn drive(
    connection: Connection<Secured>,
    dead: Option<impl Future<Output = ()>>,
) -> Result<(), Broken> {
    let dead = async {
        match dead {
            Some(dead) => dead.await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        ended = connection => Ok(ended?),
        () = dead => Err(Broken::Silent),
    }
}

async fn say_hello(sender: &Sender) -> Result<(StatusCode, Bytes), Box<dyn Error + Send + Sync>> {
    let hello = serde_json::to_vec(&Hello::ours())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(
            Uri::builder()
                .scheme("http")
                .authority(wire::BRIDGE_DNS_NAME)
                .path_and_query(wire::HELLO_PATH)
                .build()?,
        )
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(hello)))?;
    let (head, body) = sender.ask(request).await?.into_parts();
    let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
    Ok((head.status, body))
}

/// What the bridge's answer means.
fn judge(status: StatusCode, body: &[u8]) -> Result<(Hello, u32), Refusal> {
    if status == StatusCode::OK
        && let Ok(bridge) = serde_json::from_slice::<Hello>(body)
    {
        return match hello::negotiate(&Hello::ours(), &bridge) {
            Ok(protocol) => Ok((bridge, protocol)),
            Err(error) => {
                Err(Refusal { kind: ErrorKind::VersionMismatch, message: format!("moat: {error}") })
            }
        };
    }
    Err(serde_json::from_slice::<Answered>(body).map_or_else(
        |_| Refusal {
            kind: ErrorKind::VersionMismatch,
            message: format!(
                "moat: the bridge answered the hello of this sidecar ({}) with HTTP status {} and nothing that this \
                 sidecar understands: rebuild the image or let moat put its own sidecar in",
                hello::BUILD,
                status.as_u16()
            ),
        },
        |answered| Refusal { kind: answered.error.data.kind, message: answered.error.message },
    ))
}

/// The bridge's own error, as far as it matters here.
#[derive(serde::Deserialize)]
struct Answered {
    error: AnsweredError,
}
#[derive(serde::Deserialize)]
struct AnsweredError {
    message: String,
    data: AnsweredData,
}
#[derive(serde::Deserialize)]
struct AnsweredData {
    kind: ErrorKind,
}

/// Tells a refused certificate, which no further attempt mends, from a broken connection.
fn sort(transport: &Transport, error: Box<dyn Error + Send + Sync>) -> GreetError {
    let refused = |message| GreetError::Refused(Refusal { kind: ErrorKind::TunnelDown, message });
    if let Some(alert) = alert(error.as_ref()) {
        return refused(format!(
            "moat: the bridge at {transport} refused this run's certificate ({alert}): the run may have ended, or \
             belong to another installation of moat; start a new run"
        ));
    }
    match tls_error(error.as_ref()) {
        Some(error @ rustls::Error::InvalidCertificate(_)) => refused(format!(
            "moat: what answers at {transport} is not the bridge that started this run ({error}): start a new run"
        )),
        _ => GreetError::Broken(error),
    }
}

/// The TLS alert that the bridge sent, if one ended the connection. A server's verdict on the client's certificate comes
/// after the handshake, through HTTP/2, which keeps of an error below it only the words.
fn alert(error: &(dyn Error + 'static)) -> Option<String> {
    const ALERT: &str = "received fatal alert: ";
    causes(error).find_map(|error| {
        let text = error.to_string();
        text.find(ALERT).map(|at| text[at + ALERT.len()..].to_owned())
    })
}

/// TLS errors travel inside I/O errors.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|error| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(200, r#"{"protocol":1,"oldest":1,"build":"9"}"# => None; "welcome")]
    #[test_case(200, r#"{"protocol":9,"oldest":8,"build":"9"}"# => Some(ErrorKind::VersionMismatch); "found out here")]
    #[test_case(503, r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"moat: old","data":{"source":"moat","kind":"version_mismatch"}}}"# => Some(ErrorKind::VersionMismatch); "found out there")]
    #[test_case(503, r#"{"error":{"message":"moat: gone","data":{"kind":"run_ended"}}}"# => Some(ErrorKind::RunEnded); "no such run")]
    #[test_case(404, "<html>" => Some(ErrorKind::VersionMismatch); "something else")]
    fn answers(status: u16, body: &str) -> Option<ErrorKind> {
        let refusal = judge(StatusCode::from_u16(status).unwrap(), body.as_bytes()).err()?;
        assert!(refusal.message.starts_with("moat: "), "{}", refusal.message);
        Some(refusal.kind)
    }
}
