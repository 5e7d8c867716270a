//! Which headers pass, in both directions (R2): all but those of one hop, and those that are nobody else's business.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{self, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE},
};
use moat_shared::limits;

/// Headers of one hop (RFC 9110, section 7.6.1).
const HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What of a request stays here. `Expect` is answered by the relay (T8).
const REQUEST_ONLY: [HeaderName; 6] = [
    header::HOST,
    header::COOKIE,
    header::ORIGIN,
    header::FORWARDED,
    header::EXPECT,
    HeaderName::from_static("http2-settings"),
];

const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Takes out of a request what does not go into the tunnel. Values are not touched.
pub(crate) fn strip_request(headers: &mut HeaderMap) {
    strip_hop(headers);
    for name in REQUEST_ONLY {
        headers.remove(name);
    }
    let private =
        |name: &&HeaderName| name.as_str().starts_with("proxy-") || name.as_str().starts_with("x-forwarded-");
    let named: Vec<HeaderName> = headers.keys().filter(private).cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

/// Takes out of a response what is not the agent's, and says of an event stream that nobody may buffer it (R14).
pub(crate) fn strip_response(headers: &mut HeaderMap) {
    strip_hop(headers);
    if is_event_stream(headers) {
        let (name, value) = UNBUFFERED;
        headers.insert(name, value);
    }
}

fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = options(headers).filter_map(|name| name.parse().ok()).collect();
    for name in named.into_iter().chain(HOP) {
        headers.remove(name);
    }
}

/// Is this the last request on its connection (RFC 9112, section 9.6)?
pub(crate) fn ask_to_close(headers: &HeaderMap) -> bool {
    options(headers).any(|option| option.eq_ignore_ascii_case("close"))
}

/// What is listed in `Connection`.
fn options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// May comments and an error event be written into this response? Only into an uncompressed event stream.
pub(crate) fn is_writable_stream<B>(response: &Response<B>) -> bool {
    let identity = response
        .headers()
        .get_all(CONTENT_ENCODING)
        .iter()
        .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    response.status() == StatusCode::OK && identity && is_event_stream(response.headers())
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    essence
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// The size of a head as HTTP/2 counts it, over the bound of the tunnel?
pub(crate) fn are_too_large(target: &str, headers: &HeaderMap) -> bool {
    const OVERHEAD: usize = 32;
    let listed = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD);
    // What the tunnel adds: method, scheme, authority and path.
    let added = target.len() + 256;
    headers.len() > limits::HEADER_COUNT || listed.sum::<usize>() + added > limits::HEADER_LIST as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn what_passes() {
        let kept = [
            ("accept", "*/*"),
            ("authorization", "moat-stub-oauth:notion"),
            ("last-event-id", "7"),
            ("mcp-method", "TOOLS/LIST"),
            ("mcp-param-x", "=?base64?w6k=?="),
            ("x-unknown", "1"),
        ];
        let dropped = [
            ("connection", "close, X-Private"),
            ("cookie", "a=b"),
            ("expect", "100-continue"),
            ("forwarded", "for=1"),
            ("host", "127.0.0.1:1"),
            ("keep-alive", "1"),
            ("origin", "http://localhost"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "x"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-forwarded-for", "1"),
            ("x-private", "1"),
        ];
        let mut all = headers(&[&kept[..], &dropped[..]].concat());
        strip_request(&mut all);
        assert_eq!(all, headers(&kept));
    }

    #[test_case(200, &[("content-type", "text/event-stream")] => true; "event stream")]
    #[test_case(200, &[("content-type", "Text/Event-Stream; charset=utf-8")] => true; "with a parameter")]
    #[test_case(200, &[("content-type", "text/event-stream"), ("content-encoding", "identity")] => true; "identity")]
    #[test_case(200, &[("content-type", "text/event-stream"), ("content-encoding", "gzip")] => false; "compressed")]
    #[test_case(404, &[("content-type", "text/event-stream")] => false; "an error")]
    #[test_case(200, &[("content-type", "application/json")] => false; "json")]
    #[test_case(200, &[] => false; "nothing said")]
    fn writable(status: u16, list: &[(&'static str, &'static str)]) -> bool {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        *response.headers_mut() = headers(list);
        is_writable_stream(&response)
    }

    #[test]
    fn event_streams_are_not_buffered() {
        let mut stream = headers(&[("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]);
        strip_response(&mut stream);
        assert_eq!(stream, headers(&[("content-type", "text/event-stream"), ("x-accel-buffering", "no")]));
    }
}
