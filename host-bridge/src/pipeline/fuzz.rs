//! What must hold of the pipeline's readers whatever bytes they get. Driven by [`crate::fuzz`].

use bytes::Bytes;

use super::{
    back::fuzz::Stream,
    confine,
    parse::{
        envelope::{Envelope, Message},
        json::{Fault, Reader, Rigour},
    },
};
use crate::server::Upstream;

/// A request's body reads the same in any chunks; what passes, serde_json reads too, and reads the same names in it.
pub(crate) fn request(data: &[u8]) {
    let Some((&size, body)) = data.split_first() else { return };
    let whole = read(body, body.len());
    let parts = read(body, usize::from(size % 16) + 1);
    match (&whole, &parts) {
        (Ok(whole), Ok(parts)) => assert_eq!(whole.messages(), parts.messages()),
        (Err(_), Err(_)) => return,
        _ => panic!("chunks make a difference: {:?} {:?}", whole.err(), parts.err()),
    }
    let Ok(envelope) = whole else { return };
    let value: serde_json::Value = serde_json::from_slice(body).expect("stricter than serde_json");
    let values = value.as_array().map_or_else(|| std::slice::from_ref(&value), Vec::as_slice);
    assert_eq!(envelope.messages().len(), values.len());
    for (message, value) in envelope.messages().iter().zip(values) {
        says_the_same(message, value);
    }
}

fn read(body: &[u8], chunk: usize) -> Result<Envelope, Fault> {
    let (mut envelope, mut reader) = (Envelope::default(), Reader::new(Rigour::Strict));
    for bytes in body.chunks(chunk.max(1)) {
        reader.push(bytes, &mut envelope)?;
    }
    reader.finish(&mut envelope).map(|()| envelope)
}

fn says_the_same(message: &Message, value: &serde_json::Value) {
    assert_eq!(message.method.as_deref(), value["method"].as_str());
    let id = message.id.as_ref().map(|id| serde_json::from_str(id.as_str()).expect("a token"));
    assert_eq!(id.unwrap_or(serde_json::Value::Null), value["id"]);
    let params = &value["params"];
    assert_eq!(message.name.as_deref(), params["name"].as_str());
    assert_eq!(message.uri.as_deref(), params["uri"].as_str());
    assert_eq!(message.task.as_deref(), params["taskId"].as_str());
    let version = &params["_meta"]["io.modelcontextprotocol/protocolVersion"];
    assert_eq!(message.version.as_deref(), version.as_str());
    assert_eq!(message.response, value.get("result").is_some() || value.get("error").is_some());
}

/// An event stream passes byte for byte, in any chunks, and is understood the same.
pub(crate) fn answer(data: &[u8]) {
    let Some((&size, stream)) = data.split_first() else { return };
    let (whole, parts) = (Stream::of(stream, stream.len()), Stream::of(stream, usize::from(size % 16) + 1));
    assert_eq!(whole.passed, stream, "an event stream was changed");
    assert_eq!(parts.passed, stream, "an event stream was changed");
    assert_eq!((whole.outstanding, whole.resumable), (parts.outstanding, parts.resumable));
}

/// Whatever an agent adds to a path stays below the configured one, for whoever normalises it, and how often.
pub(crate) fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (rest, query) = text.split_once('?').map_or((text, None), |(rest, query)| (rest, Some(query)));
    for (configured, below) in [
        ("https://h.example/mcp?key=k", "/mcp"),
        ("https://h.example/", "/"),
        ("https://h.example/a/b/", "/a/b/"),
    ] {
        let upstream = Upstream::try_from(configured.to_owned()).expect("a URL");
        let Ok(target) = confine::join(&upstream, rest, query) else { continue };
        let is_below = |path: &str| {
            path == below
                || path.strip_prefix(below.trim_end_matches('/')).is_some_and(|r| r.starts_with('/'))
        };
        let mut path = target.path().to_owned();
        for _ in 0..3 {
            assert!(is_below(&path), "{path:?} is not below {below:?}");
            let url =
                url::Url::parse("https://h.example").and_then(|origin| origin.join(&path)).expect("a URL");
            assert_eq!(url.host_str(), Some("h.example"));
            assert!(is_below(url.path()), "{path:?} normalises to {:?}", url.path());
            path = percent_encoding::percent_decode_str(&path).decode_utf8_lossy().into_owned();
        }
        let keys = |name: &str| {
            url::form_urlencoded::parse(target.query().unwrap_or_default().as_bytes())
                .filter(|(n, _)| n == name)
                .count()
        };
        assert!(
            !configured.contains("key=") || keys("key") == 1,
            "the configured query can be replaced: {target}"
        );
    }
}

/// The bytes of `data` as chunks of a body.
pub(super) fn chunks(data: &[u8], size: usize) -> impl Iterator<Item = Bytes> {
    data.chunks(size.max(1)).map(Bytes::copy_from_slice)
}
