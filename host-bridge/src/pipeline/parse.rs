//! Reads a request strictly, while it passes: what is judged is what is sent, byte for byte (R8, R9).
//!
//! ```text
//! body ──► hold back up to HOLD ──► over and good ──► sent whole
//!                 │                └► longer ──► sent as it comes, read as it comes; a fault aborts the upstream
//!                 └► fault ──► 400, the upstream never heard of it
//! ```
//!
//! A body that a policy has to judge is held back whole, up to [`moat_shared::limits::JUDGED_BODY`].

pub(super) mod claims;
pub(super) mod envelope;
pub(super) mod json;
mod passing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use moat_shared::{limits, rpc::RawId};

pub(crate) use self::json::Fault;
use self::{
    claims::Claims,
    envelope::{Envelope, Message},
    json::{Reader, Rigour},
    passing::Passing,
};
use super::{
    error::PipelineError,
    hold::{Allowance, Charge, Hold},
    place::Placed,
};

/// How much of a body is held back before the upstream hears of the request.
const HOLD: usize = 64 * 1024;

/// A request body on its way to the upstream.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, PipelineError>;

/// A request that was read, or is being read while it is sent.
#[derive(Debug)]
pub(super) struct Parsed {
    placed: Placed,
    method: Method,
    headers: HeaderMap,
    body: RequestBody,
    asked: Asked,
    /// All of the body, where a policy judges it, or where the request may have to be sent again.
    whole: Option<Bytes>,
    /// For what is held of the body, here and on its way, the first time and again.
    charge: Arc<Charge>,
}

impl Parsed {
    pub(super) fn placed(&self) -> &Placed {
        &self.placed
    }

    /// The same request once more, if all of it is at hand and its server may ask for it.
    pub(super) fn again(&self) -> Option<Self> {
        super::renew::grant_of(self.placed.server())?;
        let whole = self.whole.clone()?;
        Some(Self {
            placed: self.placed.clone(),
            method: self.method.clone(),
            headers: self.headers.clone(),
            body: self.all_of(&whole),
            asked: self.asked.clone(),
            whole: None,
            charge: Arc::clone(&self.charge),
        })
    }
    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
    /// The whole body, where there is one and the server has a policy.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        self.whole.as_ref().filter(|body| !body.is_empty())
    }
    /// With another body, which was made of the judged one.
    pub(super) fn with_body(self, body: Vec<u8>) -> Self {
        // It is also what is sent again.
        let whole = Bytes::from(body);
        Self { body: self.all_of(&whole), whole: Some(whole), ..self }
    }

    /// A body that was judged already.
    fn all_of(&self, whole: &Bytes) -> RequestBody {
        let charge = Arc::clone(&self.charge);
        Passing::<RequestBody>::new(pieces_of(whole), charge, None, self.asked.clone()).boxed_unsync()
    }

    /// Apart: where it goes, with what method and headers, and what it says.
    pub(super) fn into_parts(self) -> (Placed, Method, HeaderMap, RequestBody, Asked) {
        (self.placed, self.method, self.headers, self.body, self.asked)
    }
}

/// What the request asks; grows while the body passes.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked(Arc<Mutex<Judge>>);

impl Asked {
    fn judge(&self) -> MutexGuard<'_, Judge> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id to answer to: that of the one request. A batch has none.
    pub(super) fn id(&self) -> Option<RawId> {
        match self.judge().envelope.messages() {
            [message] if !message.response => message.id.clone(),
            _ => None,
        }
    }

    /// It speaks a revision that repeats arguments in headers.
    pub(super) fn mark_modern(&self) {
        self.judge().modern = true;
    }
    pub(super) fn is_modern(&self) -> bool {
        self.judge().modern
    }

    /// It listens, and wants to hear of changes of these lists.
    pub(super) fn mark_listening(&self, lists: [bool; 3]) {
        self.judge().listens_for = lists;
    }
    pub(super) fn listens_for(&self) -> [bool; 3] {
        self.judge().listens_for
    }

    /// What the one request calls, for the trace.
    pub(super) fn operation(&self) -> Option<String> {
        match self.judge().envelope.messages() {
            [message] => message.name.clone().or_else(|| message.uri.clone()),
            _ => None,
        }
    }

    /// The requests, with what they ask for.
    pub(super) fn requests(&self) -> Vec<Message> {
        let judge = self.judge();
        judge.envelope.messages().iter().filter(|m| m.method.is_some() && m.id.is_some()).cloned().collect()
    }

    /// The ids of all requests, each of which waits for a response.
    pub(super) fn ids(&self) -> Vec<RawId> {
        let judge = self.judge();
        let requests = judge.envelope.messages().iter().filter(|m| m.method.is_some());
        requests.filter_map(|message| message.id.clone()).collect()
    }

    /// The method, for the trace: the first one's.
    pub(super) fn method(&self) -> Option<String> {
        self.judge().envelope.messages().iter().find_map(|message| message.method.clone())
    }

    /// What a whole body asks.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of(body: &str) -> Self {
        let asked = Self::default();
        asked.judge().take(body.as_bytes()).expect("a body in order");
        asked
    }

    /// Why the body was refused while it passed.
    pub(super) fn fault(&self) -> Option<PipelineError> {
        self.judge().fault.clone()
    }
}

/// Reads the body while it passes.
#[derive(Debug)]
struct Judge {
    reader: Reader,
    envelope: Envelope,
    claims: Claims,
    taken: u64,
    fault: Option<PipelineError>,
    modern: bool,
    listens_for: [bool; 3],
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            reader: Reader::new(Rigour::Strict),
            envelope: Envelope::default(),
            claims: Claims::default(),
            taken: 0,
            fault: None,
            modern: false,
            listens_for: [false; 3],
        }
    }
}

impl Judge {
    /// The next bytes may pass, or nothing more may.
    fn take(&mut self, bytes: &[u8]) -> Result<(), PipelineError> {
        let was_done = self.reader.is_done();
        self.taken += bytes.len() as u64;
        let read = if self.taken > limits::STREAMED_BODY {
            Err(PipelineError::Body(Fault::TooLong))
        } else {
            self.reader.push(bytes, &mut self.envelope).map_err(PipelineError::Body)
        };
        // As soon as all is said, and before its last byte passes.
        let checked = read.and_then(|()| {
            if !was_done && self.reader.is_done() { self.claims.check(&self.envelope) } else { Ok(()) }
        });
        self.keep(checked)
    }

    fn finish(&mut self) -> Result<(), PipelineError> {
        let finished = self.reader.finish(&mut self.envelope).map_err(PipelineError::Body);
        self.keep(finished)
    }

    fn keep(&mut self, result: Result<(), PipelineError>) -> Result<(), PipelineError> {
        if let Err(error) = &result {
            self.fault.get_or_insert_with(|| error.clone());
        }
        result
    }
}

/// Reads a request as far as must be known before anything is sent. `asked` outlives a refusal: it knows the id.
pub(super) async fn parse<B>(
    placed: Placed,
    request: Request<B>,
    asked: &Asked,
    allowance: &Allowance,
) -> Result<Parsed, PipelineError>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
{
    let (head, mut body) = request.into_parts();
    let asked = asked.clone();
    asked.judge().claims = Claims::of(&head.headers)?;
    let judged = head.method == Method::POST;
    let mut held = Hold::new(allowance);
    let mut over = body.is_end_stream();
    // What is judged is held back whole; longer is refused, never judged in half.
    let policed = placed.server().policy.is_some();
    let hold = if policed { limits::JUDGED_BODY } else { HOLD };
    let mut room = true;
    while !over && room && held.len() < hold {
        let Some(frame) = body.frame().await else {
            over = true;
            break;
        };
        // Trailers are dropped (T8).
        let Ok(data) = frame.map_err(|_| PipelineError::RequestLost)?.into_data() else { continue };
        if data.is_empty() {
            continue;
        }
        if held.len() == 0 {
            may_have_body(judged, &head.headers)?;
        }
        asked.judge().take(&data)?;
        over = body.is_end_stream();
        room = held.push(data, over);
    }
    // Nothing at all is no message either.
    if over && (held.len() > 0 || judged) {
        asked.judge().finish()?;
    }
    if policed && !room {
        return Err(PipelineError::TooMuchHeld);
    }
    if policed && (!over || held.len() > limits::JUDGED_BODY) {
        return Err(PipelineError::Body(Fault::TooLong));
    }
    let again = over && super::renew::grant_of(placed.server()).is_some();
    let (whole, pieces, charge) = if policed || again {
        let (whole, charge) = held.into_whole();
        let pieces = pieces_of(&whole);
        (Some(whole), pieces, charge)
    } else {
        let (pieces, charge) = held.into_pieces();
        (None, pieces, charge)
    };
    let charge = Arc::new(charge);
    let body = Passing::new(pieces, Arc::clone(&charge), (!over).then_some(body), asked.clone());
    Ok(Parsed {
        placed,
        method: head.method,
        headers: head.headers,
        body: body.boxed_unsync(),
        asked,
        whole,
        charge,
    })
}

/// Empty frames are none.
fn pieces_of(whole: &Bytes) -> Vec<Bytes> {
    if whole.is_empty() { Vec::new() } else { vec![whole.clone()] }
}

/// The id of a request that will not be sent, if it comes at once. For answers only.
pub(super) async fn peek<B>(mut body: B, asked: &Asked)
where
    B: HttpBody<Data = Bytes> + Send + Unpin,
{
    let mut length = 0;
    while length < HOLD && !body.is_end_stream() {
        let Some(Ok(frame)) = body.frame().await else { return };
        let Ok(data) = frame.into_data() else { return };
        length += data.len();
        if asked.judge().take(&data).is_err() {
            return;
        }
    }
}

/// Only JSON in UTF-8, as it is, can be judged; and only a POST has a body.
fn may_have_body(judged: bool, headers: &HeaderMap) -> Result<(), PipelineError> {
    let refused = Err(PipelineError::Body(Fault::MediaType));
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(media_type), None) = (types.next(), types.next()) else { return refused };
    let text = media_type.to_str().unwrap_or_default().to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let json = parts.next() == Some("application/json");
    let utf8 = parts.all(|parameter| {
        parameter.strip_prefix("charset=").is_none_or(|charset| charset.trim_matches('"') == "utf-8")
    });
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let plain = encodings.into_iter().all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if judged && json && utf8 && plain { Ok(()) } else { refused }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pipeline::{place::place, testing},
        upstream::legacy::Handles,
    };
    use http_body_util::Full;
    use test_case::test_case;

    /// Also of a redacted body, and whatever of it has been sent: an upstream that takes nothing frees nothing.
    #[tokio::test]
    async fn what_is_held_counts_until_its_last_copy_is_gone() {
        const CALL: &str =
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"b","arguments":{}}}"#;
        let bound =
            testing::rules("mode: enforce\nrules: [{name: r, action: deny, match: {operation: a}}]\n");
        let run = testing::with_policy("https://h/mcp", &bound);
        let placed = place(&run, &Method::POST, &"/mcp/x".parse().unwrap(), &Handles::default()).unwrap();
        let allowance = Allowance::default();
        let request = Request::post("/mcp/x").header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(CALL))).unwrap();
        let parsed = parse(placed, request, &Asked::default(), &allowance).await.unwrap();
        assert_eq!(allowance.held(), CALL.len());
        let redacted = parsed.with_body(CALL.replace('b', "c").into_bytes());
        assert_eq!(allowance.held(), CALL.len(), "another body takes the place of the first");
        let (_, _, _, body, _) = redacted.into_parts();
        assert_eq!(allowance.held(), CALL.len(), "until it is sent");
        drop(body);
        assert_eq!(allowance.held(), 0);
    }

    #[test_case(&[("content-type", "application/json")] => true)]
    #[test_case(&[("content-type", "Application/JSON; charset=UTF-8")] => true; "with charset")]
    #[test_case(&[] => false; "none")]
    #[test_case(&[("content-type", "text/plain")] => false; "text")]
    #[test_case(&[("content-type", "application/jsonp")] => false; "longer")]
    #[test_case(&[("content-type", "application/json; charset=utf-16")] => false; "another charset")]
    #[test_case(&[("content-type", "application/json"), ("content-type", "application/json")] => false; "twice")]
    #[test_case(&[("content-type", "application/json"), ("content-encoding", "gzip")] => false; "encoded")]
    fn bodies(headers: &[(&'static str, &'static str)]) -> bool {
        let map = headers
            .iter()
            .map(|(n, v)| (http::HeaderName::from_static(n), http::HeaderValue::from_static(v)))
            .collect();
        may_have_body(true, &map).is_ok()
    }
}
