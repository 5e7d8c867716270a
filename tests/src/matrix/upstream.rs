//! What a server can do wrong, and what comes of it.

use super::{Cell, Row};

const LOST: Cell = Cell::error(502, "upstream_lost", "lost");
const INVALID: Cell = Cell::error(502, "upstream_invalid", "invalid");
const REJECTED: Cell = Cell::error(502, "upstream_rejected_credential", "rejected_credential");
const REDIRECT: Cell = Cell::error(502, "redirect_refused", "redirect");
const TLS: Cell = Cell::error(502, "upstream_unreachable", "tls").unsent();
const TIMEOUT: Cell = Cell::error(504, "upstream_timeout", "timeout").within(13_000).unsent();
const WAITS: Cell = Cell::waits();
const WELL: Cell = Cell::answer();
const OK: Cell = Cell::status(200);
const CUT: Cell = Cell::cut("lost");
const EVENT: Cell = Cell::event("upstream_lost", "lost");

/// In good order: for comparison, and so that a row that never fails is seen to be one.
const IN_ORDER: [Cell; 6] = [WELL, WELL, WAITS, WAITS, Cell::status(202), OK];
/// A body breaks off.
const BREAKS: [Cell; 6] = [LOST, EVENT, CUT, CUT, LOST, LOST];
/// The same, when the response was there already.
const BREAKS_AFTER: [Cell; 6] = [LOST, CUT, CUT, CUT, LOST, LOST];
/// A body that is whole when the connection ends.
const WHOLE: [Cell; 6] = [WELL, WELL, OK, OK, OK, OK];

/// The faults of a server that can be reached, with a credential, over TLS.
pub const SERVER: &[Row] = &[
    Row::each("well", "nothing", IN_ORDER),
    Row::all("reset", "the connection is reset before the head", LOST),
    Row::all("close", "the connection is closed before the head", LOST),
    Row::all("half-head", "the connection ends inside the head", LOST),
    Row::all("not-http", "an answer that is no HTTP", INVALID),
    Row::all("two-lengths", "two lengths that differ", INVALID),
    Row::all("headers-100k", "100 KB of headers", INVALID),
    Row::all("headers-1m", "1 MiB of headers", INVALID),
    Row::each("early-hints", "103 before the answer", IN_ORDER),
    Row::all("redirect-here", "307 to the same origin", REDIRECT),
    Row::all("redirect-away", "302 to another origin", REDIRECT),
    Row::all("status-401", "401", REJECTED),
    Row::all("status-401-empty", "401 without a body", REJECTED),
    Row::all("status-403", "403", REJECTED),
    Row::all("status-403-empty", "403 without a body", REJECTED),
    Row::all("status-400", "400", Cell::status(400)),
    Row::all("status-404", "404", Cell::status(404)),
    Row::all("status-404-empty", "404 without a body", Cell::status(404)),
    Row::all("status-405", "405", Cell::status(405)),
    Row::all("status-409", "409", Cell::status(409)),
    Row::all("status-409-empty", "409 without a body", Cell::status(409)),
    Row::all("status-429", "429", Cell::status(429)),
    Row::all("status-429-empty", "429 without a body", Cell::status(429)),
    Row::all("status-500", "500", Cell::status(500)),
    Row::all("status-500-empty", "500 without a body", Cell::status(500)),
    Row::all("status-503", "503", Cell::status(503)),
    Row::all("status-503-empty", "503 without a body", Cell::status(503)),
    Row::each("cut", "the body breaks off, between two events", BREAKS),
    Row::each("cut-reset", "the same, by a reset", BREAKS),
    Row::each("cut-inside", "the body breaks off inside an event", BREAKS),
    Row::each("half-chunk", "the body breaks off inside a chunk", BREAKS),
    Row::each("cut-resumable", "the body breaks off after an event with an id", BREAKS_AFTER),
    Row::each("short", "a body shorter than it says, with the response in it", BREAKS_AFTER),
    Row::each("no-goodbye", "a body of unknown length whose TLS ends without a goodbye", BREAKS_AFTER),
    Row::each("until-close", "a body of unknown length that ends properly", WHOLE),
    Row::each("no-response", "a proper end without the response", [LOST, EVENT, OK, OK, OK, OK]),
    Row::each(
        "accepted",
        "202",
        [INVALID, INVALID, Cell::status(202), INVALID, Cell::status(202), Cell::status(202)],
    ),
    Row::each(
        "no-content",
        "204",
        [INVALID, INVALID, Cell::status(204), INVALID, Cell::status(204), Cell::status(204)],
    ),
    Row::all("hang", "no answer at all", WAITS),
    Row::all("hang-stream", "nothing more after the start of the body", WAITS),
    Row::all("endless", "a body without end", WAITS),
    Row::all("endless-event", "one event without end", WAITS),
    Row::each("drip", "a byte at a time", [WELL, WELL, OK, OK, Cell::status(202), OK]),
    Row::each("gzip", "compressed, though nobody asked for it", WHOLE),
    Row::each("gzip-cut", "compressed, and the end is missing", BREAKS),
    Row::each(
        "gzip-broken",
        "said to be compressed, and is not",
        [
            INVALID,
            Cell::event("upstream_invalid", "invalid"),
            Cell::cut("invalid"),
            Cell::cut("invalid"),
            INVALID,
            INVALID,
        ],
    ),
    Row::all("brotli", "compressed in a way that cannot be searched for the credential", INVALID),
    Row::all("html", "a page for people", OK),
    Row::each("no-type", "no content type", WHOLE),
    Row::each("surplus", "a second answer after the first", WHOLE),
];

/// The same server, without a credential, over plain HTTP.
pub const OPEN: &[Row] = &[
    Row::all("open-401", "401 where moat injects nothing", Cell::status(401)),
    Row::all("open-403", "403 where moat injects nothing", Cell::status(403)),
];

/// No connection comes to be.
pub const CONNECTION: &[Row] = &[
    Row::all("refused", "nobody listens", Cell::error(502, "upstream_unreachable", "refused").unsent()),
    Row::all("full-queue", "the connection is never accepted", TIMEOUT),
    Row::all("tls-name", "a certificate for another name", TLS),
    Row::all("tls-stranger", "a certificate of an issuer that is not trusted", TLS),
    Row::all("tls-expired", "a certificate that has expired", TLS),
    Row::all("tls-plain", "no TLS at all", TLS),
    Row::all("tls-hangs-up", "the connection ends during the handshake", TLS),
    Row::all("tls-silent", "silence in the handshake", TIMEOUT),
];

/// In a network where no name can be resolved.
pub const NAMES: &[Row] =
    &[Row::all("dns", "the name does not resolve", Cell::error(502, "upstream_unreachable", "dns").unsent())];
