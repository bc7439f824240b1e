//! HTTP/2 frame by frame and by hand (RFC 9113), for clients that keep no rule which the test does not want kept.
//!
//! Header blocks are literals without Huffman coding (RFC 7541, section 6.2), so that what is on the wire is what the
//! test wrote. It is no client library: nothing here looks after windows or states.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;

/// Bytes both ways, of whatever kind.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, plain or not.
pub type Stream = Box<dyn Io>;

/// A frame that was received.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether it is the head of a response 200 (entry 8 of the static table, which every encoder uses for it).
    pub fn is_ok(&self) -> bool {
        self.kind == HEADERS && self.payload.first() == Some(&0x88)
    }

    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// One end of a connection.
pub struct Peer {
    pub reader: ReadHalf<Stream>,
    pub writer: WriteHalf<Stream>,
    /// The identifier of the next stream.
    pub next: u32,
}

impl Peer {
    /// Begins: the preface, and SETTINGS with these values.
    pub async fn begin(io: Stream, values: &[(u16, u32)]) -> io::Result<Self> {
        let (reader, writer) = tokio::io::split(io);
        let mut peer = Self { reader, writer, next: 1 };
        peer.send(&[PREFACE, &settings(values)].concat()).await?;
        Ok(peer)
    }

    /// Begins as a server: reads the preface, and sends SETTINGS.
    pub async fn accept(io: Stream) -> io::Result<Self> {
        let (reader, writer) = tokio::io::split(io);
        let mut peer = Self { reader, writer, next: 2 };
        let mut preface = [0; PREFACE.len()];
        peer.reader.read_exact(&mut preface).await?;
        if preface != PREFACE {
            return Err(io::Error::other("no preface"));
        }
        peer.send(&settings(&[])).await?;
        Ok(peer)
    }

    /// Writes; a peer that takes nothing for a while is an error of the kind `TimedOut`.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        };
        timeout(STUCK, sent).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// A stream identifier that was not used yet.
    pub fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// The next frame.
    pub async fn read(&mut self) -> io::Result<Frame> {
        let mut header = [0; 9];
        self.reader.read_exact(&mut header).await?;
        let [a, b, c, kind, flags, stream @ .., d] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.reader.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([stream[0], stream[1], stream[2], d]);
        Ok(Frame { kind, flags, stream, payload })
    }

    /// Reads to the first frame for which `wanted` holds; SETTINGS are acknowledged on the way.
    pub async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> io::Result<Frame> {
        loop {
            let frame = self.read().await?;
            if wanted(&frame) {
                return Ok(frame);
            }
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                self.send(&self::frame(SETTINGS, ACK, 0, &[])).await?;
            }
        }
    }

    /// Returns once all that was sent before has been taken in: a PING comes back (RFC 9113, section 6.7).
    pub async fn settle(&mut self) -> io::Result<()> {
        self.send(&frame(PING, 0, 0, b"settled?")).await?;
        let back = self.until(|frame| frame.kind == PING && frame.flags & ACK != 0);
        timeout(STUCK, back).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(())
    }

    /// One request without a body, and whether it was answered 200 with `body`.
    pub async fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let stream = self.stream();
        self.send(&headers(stream, END_STREAM, &request("GET", path))).await?;
        let head = self.until(|frame| frame.stream == stream).await?;
        if !head.is_ok() {
            return Err(io::Error::other(format!("not 200: {head:?}")));
        }
        let mut body = Vec::new();
        let mut ended = head.ends_stream();
        while !ended {
            let frame = self.until(|frame| frame.stream == stream).await?;
            ended = frame.ends_stream();
            match frame.kind {
                DATA => {
                    if !frame.payload.is_empty() {
                        let more = u32::try_from(frame.payload.len()).unwrap();
                        self.send(&[window_update(0, more), window_update(stream, more)].concat()).await?;
                    }
                    body.extend(frame.payload);
                }
                HEADERS => {}
                _ => return Err(io::Error::other(format!("reset: {frame:?}"))),
            }
        }
        Ok(body)
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS that hold the whole block.
pub fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block)
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// The header block of a request.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "http"), (":authority", "app.test"), (":path", path)];
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// A field that is not put into the dynamic table (RFC 7541, section 6.2.2).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

/// A field that is put into the dynamic table, where it is entry 62 at first (section 6.2.1).
pub fn kept(name: &str, value: &str) -> Vec<u8> {
    [vec![0x40], text(name), text(value)].concat()
}

/// A reference to entry 62 in one byte (section 6.1).
pub const AGAIN: u8 = 0x80 | 62;

/// A string with its length as an integer of seven bits and more (section 5.1).
fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.len();
    if rest < 127 {
        out.push(u8::try_from(rest).unwrap());
    } else {
        out.push(127);
        rest -= 127;
        while rest >= 128 {
            out.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        out.push(u8::try_from(rest).unwrap());
    }
    out.extend(text.as_bytes());
    out
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

const CANCEL: u32 = 8;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW: u16 = 4;

/// How long a peer may take nothing of what is written.
const STUCK: Duration = Duration::from_secs(2);
