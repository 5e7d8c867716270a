//! A client of the tunnel that writes its HTTP/2 frames by hand (RFC 9113, section 4.1): what no honest one would send.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moat_shared::{hello::Hello, wire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::UnixStream,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use crate::support::{House, Run, eventually, secured};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// `SETTINGS_INITIAL_WINDOW_SIZE`.
const INITIAL_WINDOW: u16 = 4;

type Writer = Arc<tokio::sync::Mutex<WriteHalf<TlsStream<UnixStream>>>>;

/// The connection. Frames from the bridge are read and noted by a task, which answers its pings, unless it is told to stop
/// reading.
pub(crate) struct Raw {
    to: Writer,
    seen: Arc<Mutex<Seen>>,
    reading: watch::Sender<bool>,
    next: u32,
    _reader: JoinSet<()>,
}

/// What came from the bridge.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The first byte of each response's head; HPACK has one for each common status.
    pub(crate) heads: BTreeMap<u32, u8>,
    pub(crate) bodies: BTreeMap<u32, Vec<u8>>,
    pub(crate) ended: BTreeSet<u32>,
    pub(crate) reset: BTreeSet<u32>,
    /// The code of the last GOAWAY.
    pub(crate) goaway: Option<u32>,
    pub(crate) closed: bool,
}

/// HPACK (RFC 7541): the indexed field `:status: 200`.
pub(crate) const STATUS_200: u8 = 0x88;

impl Raw {
    /// A tunnel on which each stream may receive `window` bytes, before its hello.
    pub(crate) async fn connect(house: &House, run: &Run, window: u32) -> io::Result<Self> {
        let (from, mut to) = tokio::io::split(secured(house, run).await?);
        to.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let to: Writer = Arc::new(tokio::sync::Mutex::new(to));
        let (reading, told) = watch::channel(true);
        let seen = Arc::<Mutex<Seen>>::default();
        let mut reader = JoinSet::new();
        reader.spawn(read(from, Arc::clone(&to), Arc::clone(&seen), told));
        let mut this = Self { to, seen, reading, next: 1, _reader: reader };
        let mut settings = INITIAL_WINDOW.to_be_bytes().to_vec();
        settings.extend(window.to_be_bytes());
        this.frame(SETTINGS, 0, 0, &settings).await?;
        // The connection's own is never what holds anything back.
        this.frame(WINDOW_UPDATE, 0, 0, &((1u32 << 31) - 1 - 65_535).to_be_bytes()).await?;
        Ok(this)
    }

    /// The same, after its hello.
    pub(crate) async fn open(house: &House, run: &Run, window: u32) -> Self {
        let mut this = Self::connect(house, run, window).await.unwrap();
        let hello = this.hello().await.unwrap();
        this.until("the hello is answered", |seen| seen.heads.contains_key(&hello)).await;
        assert_eq!(this.seen().heads[&hello], STATUS_200);
        // The bridge's windows are as it said only from here on.
        this.send(&settings_ack()).await.unwrap();
        this
    }

    pub(crate) async fn hello(&mut self) -> io::Result<u32> {
        let stream = self.stream();
        let head = head(b"\x83", wire::HELLO_PATH, &[]);
        self.frame(HEADERS, END_HEADERS, stream, &head).await?;
        let body = serde_json::to_vec(&Hello::ours()).map_err(io::Error::from)?;
        self.frame(DATA, END_STREAM, stream, &body).await?;
        Ok(stream)
    }

    /// The next stream's number.
    pub(crate) fn stream(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    /// GETs a path with these headers.
    pub(crate) async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> io::Result<u32> {
        let stream = self.stream();
        let head = head(b"\x82", path, headers);
        self.frame(HEADERS, END_HEADERS | END_STREAM, stream, &head).await?;
        Ok(stream)
    }

    pub(crate) async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.send(&frame(kind, flags, stream, payload)).await
    }

    /// Sends bytes. A bridge that takes nothing for a while holds the sender back, and is not waited for.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sending = async {
            let mut to = self.to.lock().await;
            to.write_all(bytes).await?;
            to.flush().await
        };
        timeout(Duration::from_secs(3), sending).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    pub(crate) fn stop_reading(&self) {
        self.reading.send_replace(false);
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Seen) -> bool) {
        eventually(what, || condition(&self.seen())).await;
    }

    /// Is the tunnel as good as new?
    pub(crate) async fn answers(&mut self, path: &str) {
        let stream = self.get(path, &[]).await.unwrap();
        self.until("an answer", |seen| seen.heads.contains_key(&stream) || seen.closed).await;
        let seen = self.seen();
        assert_eq!(seen.heads.get(&stream), Some(&STATUS_200), "{:?} {}", seen.goaway, seen.closed);
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A request's head in HPACK, nothing indexed: method, scheme, authority, path, headers.
pub(crate) fn head(method: &[u8], path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = [method, b"\x86\x01"].concat();
    text(&mut bytes, wire::BRIDGE_DNS_NAME);
    bytes.push(0x04);
    text(&mut bytes, path);
    for (name, value) in headers {
        bytes.push(0x00);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes
}

/// A string literal of HPACK without Huffman coding.
pub(crate) fn text(bytes: &mut Vec<u8>, text: &str) {
    let length = text.len();
    match u8::try_from(length).ok().filter(|length| *length < 127) {
        Some(short) => bytes.push(short),
        None => {
            bytes.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                bytes.push(0x80 | u8::try_from(rest % 128).unwrap());
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
    }
    bytes.extend(text.as_bytes());
}

async fn read(
    mut from: ReadHalf<TlsStream<UnixStream>>,
    to: Writer,
    seen: Arc<Mutex<Seen>>,
    mut reading: watch::Receiver<bool>,
) {
    let note = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if reading.wait_for(|reading| *reading).await.is_err() {
            return;
        }
        let mut head = [0; 9];
        if from.read_exact(&mut head).await.is_err() {
            break;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if from.read_exact(&mut payload).await.is_err() {
            break;
        }
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if kind == PING && flags & ACK == 0 {
            // One that cannot be answered any more is of a connection that is over, which the next read tells.
            let mut to = to.lock().await;
            let _told = to.write_all(&frame(PING, ACK, 0, &payload)).await.and(to.flush().await).is_ok();
            continue;
        }
        let mut seen = note();
        match kind {
            // A table's size comes first where it changes.
            HEADERS => {
                let status = payload.iter().copied().find(|byte| byte & 0xe0 != 0x20).unwrap_or_default();
                seen.heads.insert(stream, status);
            }
            DATA => seen.bodies.entry(stream).or_default().extend(payload),
            RST_STREAM => {
                seen.reset.insert(stream);
            }
            GOAWAY => seen.goaway = payload[4..8].try_into().ok().map(u32::from_be_bytes),
            _ => {}
        }
        if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            seen.ended.insert(stream);
        }
    }
    note().closed = true;
}

/// The acknowledgement of the bridge's own settings.
pub(crate) fn settings_ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}
