//! Every bound on what the other side may make us do, each with its reason.

use std::time::Duration;

/// A request body that the bridge must read whole to judge it. Larger ones get 413, never half a judgement.
pub const JUDGED_BODY: usize = 4 << 20;
/// A body that streams through unjudged; mcp-relay R8 asks for no limit below 64 MiB.
pub const STREAMED_BODY: u64 = 1 << 30;
/// Headers of one message, both directions. `Mcp-Param-*` values and resource URIs are long (T6).
pub const HEADER_LIST: u32 = 64 * 1024;
/// Number of header lines of one message.
pub const HEADER_COUNT: usize = 256;
/// How deep JSON may nest in an agent's file.
pub const JSON_DEPTH: usize = 128;
/// How deep the JSON of a request may nest. Every reader goes as deep (serde_json stops at 127).
pub const RPC_DEPTH: usize = 64;
/// Streams that one run may have open: each agent keeps one per server, and calls on top (T1). An idle one costs a few
/// kilobytes; thousands are legal.
pub const STREAMS_PER_RUN: u32 = 16_384;
/// How long an agent may take to send its request's head (slow headers).
pub const REQUEST_HEAD: Duration = Duration::from_secs(10);
/// How long an agent's connection may be idle between requests. Pools keep theirs for up to 90 s or so and must be the
/// ones to close, since a POST that meets our close is lost.
pub const AGENT_IDLE: Duration = Duration::from_secs(5 * 60);
/// TLS, HTTP/2 preface and hello of a new tunnel together.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a tunnel waits for the end of the one before, which may have been lost without a word on this side. A run has
/// one at a time.
pub const SEAT: Duration = Duration::from_secs(2);
/// How long a request waits for a tunnel that is down (T4).
pub const TUNNEL_WAIT: Duration = Duration::from_secs(15);
/// How long PID 1 waits for the relay's first tunnel before it gives up and starts nothing.
pub const FIRST_TUNNEL: Duration = Duration::from_secs(20);
/// The same where another carrier is tried afterwards: longer than [`HANDSHAKE`], after which the relay says what is wrong.
pub const FIRST_TUNNEL_OF_SEVERAL: Duration = Duration::from_secs(15);
/// Silence on an open event stream after which the relay sends a comment (R20).
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Bytes of one stream that the relay holds for a reader that does not read. What its window lets through then comes on top:
/// as much again.
pub const STALLED_READER: usize = 256 * 1024;
/// What may be read at once from a tunnel's socket, and held: frames of many streams.
pub const TUNNEL_READ: usize = 64 * 1024;
/// HTTP/2 pings on the tunnel: every so often ...
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// ... and dead when unanswered for so long.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A vsock device may drop its host's end without telling the guest (seen of vhost-device-vsock when the host's program is
/// killed; why it does is not known): there the guest asks more often, and is less patient.
pub const GUEST_PING_INTERVAL: Duration = Duration::from_secs(2);
/// See above.
pub const GUEST_PING_TIMEOUT: Duration = Duration::from_secs(8);
/// TCP and TLS to an upstream (R19).
pub const UPSTREAM_CONNECT: Duration = Duration::from_secs(10);
/// The first byte of an upstream's answer; calls legally take minutes (R19).
pub const UPSTREAM_FIRST_BYTE: Duration = Duration::from_secs(15 * 60);
/// How long a drain waits for streams in flight.
pub const DRAIN: Duration = Duration::from_secs(5);
/// The bridge leaves when it had no run for so long.
pub const BRIDGE_IDLE: Duration = Duration::from_secs(5 * 60);
/// The bytes of a plan; a plan is a few kilobytes.
pub const PLAN: usize = 1 << 20;
/// How much of the legacy stream may pass before its `endpoint` event (mcp-relay section 4).
pub const LEGACY_PREAMBLE: usize = 64 * 1024;
