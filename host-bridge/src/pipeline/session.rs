//! Session ids, bound to the run and server that they were given to (R15).
//!
//! The agent gets `<id>.<tag>`; the tag is a keyed hash over run, server and id. Nothing is stored, so the binding
//! survives a restart of the bridge as long as the key does.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue};
use moat_shared::{
    id::{RunId, ServerName},
    secret::Secret,
};
use ring::hmac;

use super::error::PipelineError;

/// The header.
pub(super) const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION: &str = "mcp-protocol-version";
/// From this revision on there are no sessions, and servers ignore the header.
const STATELESS: &str = "2026-07-28";
/// Bytes of the tag: nobody guesses 128 bits online.
const TAG: usize = 16;

/// Makes and checks tags.
#[derive(Clone)]
pub(super) struct Sessions(hmac::Key);

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    pub(super) fn new(key: &Secret<[u8; 32]>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.expose()))
    }

    /// Of a response: the upstream's id gets its tag.
    pub(super) fn seal(&self, run: &RunId, server: &ServerName, headers: &mut HeaderMap) {
        let Some(id) = headers.remove(SESSION) else { return };
        let mut sealed = id.as_bytes().to_vec();
        sealed.push(b'.');
        sealed.extend_from_slice(URL_SAFE_NO_PAD.encode(self.tag(run, server, id.as_bytes())).as_bytes());
        if let Ok(value) = HeaderValue::from_bytes(&sealed) {
            headers.insert(SESSION, value);
        }
    }

    /// Of a request: the tag is checked and taken off. A foreign id is an unknown session; where there are no sessions
    /// it is dropped.
    pub(super) fn open(
        &self,
        run: &RunId,
        server: &ServerName,
        headers: &mut HeaderMap,
    ) -> Result<(), PipelineError> {
        let mut given = headers.get_all(SESSION).iter();
        let Some(value) = given.next().cloned() else { return Ok(()) };
        if given.next().is_some() {
            return Err(PipelineError::HeaderTwice("Mcp-Session-Id"));
        }
        headers.remove(SESSION);
        if let Some(id) = self.opened(run, server, value.as_bytes()) {
            headers.insert(SESSION, id);
            return Ok(());
        }
        let version = headers.get(VERSION).and_then(|version| version.to_str().ok()).unwrap_or_default();
        if version >= STATELESS { Ok(()) } else { Err(PipelineError::ForeignSession) }
    }

    fn opened(&self, run: &RunId, server: &ServerName, sealed: &[u8]) -> Option<HeaderValue> {
        let dot = sealed.iter().rposition(|byte| *byte == b'.')?;
        let tag = URL_SAFE_NO_PAD.decode(&sealed[dot + 1..]).ok()?;
        let expected = self.tag(run, server, &sealed[..dot]);
        same(&tag, &expected).then(|| HeaderValue::from_bytes(&sealed[..dot]).ok())?
    }

    fn tag(&self, run: &RunId, server: &ServerName, id: &[u8]) -> [u8; TAG] {
        let mut context = hmac::Context::with_key(&self.0);
        // Neither of the first two can hold a zero.
        for part in [b"session".as_slice(), run.as_str().as_bytes(), server.as_str().as_bytes()] {
            context.update(part);
            context.update(&[0]);
        }
        context.update(id);
        let mut tag = [0; TAG];
        tag.copy_from_slice(&context.sign().as_ref()[..TAG]);
        tag
    }
}

/// Compared in a time that tells nothing of where they differ.
fn same(given: &[u8], tag: &[u8; TAG]) -> bool {
    let differ = |all: u8, (a, b): (&u8, &u8)| std::hint::black_box(all | (a ^ b));
    given.len() == TAG && given.iter().zip(tag).fold(0, differ) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn map(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(SESSION, value.parse().unwrap())])
    }

    fn sealed_for(run: &str, server: &str) -> String {
        let mut headers = map("abc.def");
        Sessions::new(&Secret::new([7; 32])).seal(
            &run.parse().unwrap(),
            &server.parse().unwrap(),
            &mut headers,
        );
        headers[SESSION].to_str().unwrap().to_owned()
    }

    fn open(value: &str, key: u8) -> Result<String, PipelineError> {
        let mut headers = map(value);
        let (run, server) = ("run_000000000001".parse().unwrap(), "a".parse().unwrap());
        Sessions::new(&Secret::new([key; 32])).open(&run, &server, &mut headers)?;
        Ok(headers[SESSION].to_str().unwrap().to_owned())
    }

    #[test]
    fn r15_comes_back_as_it_was_also_with_a_new_bridge() {
        assert_eq!(open(&sealed_for("run_000000000001", "a"), 7), Ok("abc.def".to_owned()));
    }

    #[test_case(&sealed_for("run_000000000002", "a"), 7; "of another run")]
    #[test_case(&sealed_for("run_000000000001", "b"), 7; "of another server")]
    #[test_case(&sealed_for("run_000000000001", "a"), 8; "under another key")]
    #[test_case("abc.def", 7; "as the upstream gave it")]
    #[test_case("abc", 7; "no tag")]
    #[test_case("abc.", 7; "empty tag")]
    #[test_case(&sealed_for("run_000000000001", "a").replace("abc", "abd"), 7; "changed")]
    fn r15_foreign(value: &str, key: u8) {
        assert_eq!(open(value, key), Err(PipelineError::ForeignSession));
    }

    #[test]
    fn where_there_are_no_sessions_a_foreign_id_is_dropped() {
        let mut headers = map("abc");
        headers.insert(VERSION, HeaderValue::from_static("2026-07-28"));
        let (run, server) = ("run_000000000001".parse().unwrap(), "a".parse().unwrap());
        Sessions::new(&Secret::new([7; 32])).open(&run, &server, &mut headers).unwrap();
        assert!(!headers.contains_key(SESSION));
    }

    #[test]
    fn r15_twice_is_refused() {
        let mut headers = map("a");
        headers.append(SESSION, HeaderValue::from_static("b"));
        let (run, server) = ("run_000000000001".parse().unwrap(), "a".parse().unwrap());
        let error = Sessions::new(&Secret::new([7; 32])).open(&run, &server, &mut headers);
        assert_eq!(error, Err(PipelineError::HeaderTwice("Mcp-Session-Id")));
    }
}
