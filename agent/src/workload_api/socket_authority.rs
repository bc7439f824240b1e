//! Takes clients that write the path of the socket where HTTP/2 wants the name of a host.
//!
//! On a unix socket, the gRPC libraries of C, C++, Python, Ruby and Java send the path as `:authority`, plain or
//! percent-encoded. That is not an authority (RFC 9113 §8.3.1), and h2, under tonic, resets the stream; py-spiffe could
//! not talk to us. The name means nothing on this socket, so what cannot stand in an authority is replaced by `-` on
//! its way to h2. See `docs/decisions/006-the-authority-of-a-socket.md`.
//!
//! Invariant: every byte is replaced by one byte and only inside that one value, so lengths, frames and the HPACK table
//! (RFC 7541) of both sides stay as they were. What this does not understand it passes on as it is; h2 judges it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// What a client sends before its first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// Length, type, flags and stream of a frame (RFC 9113 §4.1).
const FRAME_HEAD: usize = 9;

/// The largest frame that may be sent to us: h2 announces no other than the default.
const MAX_FRAME: usize = 16_384;

const HEADERS: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// The reading side of a connection, mended.
#[derive(Debug, Default)]
pub(super) struct SocketAuthority {
    /// What was read and not handed on.
    held: Vec<u8>,
    /// How much of `held` may be handed on.
    mended: usize,
    /// How much of what comes next belongs to the preface or to a frame that is passed on as it is.
    pass: usize,
    begun: bool,
}

impl SocketAuthority {
    /// Reads from `inner` what h2 is to see.
    pub(super) fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        inner: &mut T,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.mended == 0 {
            let mut chunk = [0; 4096];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut *inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The client has gone in the middle of a frame; h2 is to see as much as there was.
                self.mended = self.held.len();
                break;
            }
            self.held.extend_from_slice(read.filled());
            self.mend();
        }
        let length = self.mended.min(buffer.remaining());
        if let Some(bytes) = self.held.get(..length) {
            buffer.put_slice(bytes);
        }
        self.held.drain(..length);
        self.mended -= length;
        Poll::Ready(Ok(()))
    }

    /// Goes on from the first byte that may not be handed on yet.
    fn mend(&mut self) {
        if !self.begun {
            self.begun = true;
            self.pass = PREFACE;
        }
        loop {
            let waiting = self.held.len() - self.mended;
            let passed = self.pass.min(waiting);
            self.mended += passed;
            self.pass -= passed;
            let Some(&[a, b, c, kind, flags, ..]) =
                self.held.get(self.mended..).filter(|rest| rest.len() >= FRAME_HEAD)
            else {
                return;
            };
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let whole = FRAME_HEAD + length;
            if kind != HEADERS || length > MAX_FRAME {
                self.pass = whole;
                continue;
            }
            let begin = self.mended + FRAME_HEAD;
            let Some(payload) = self.held.get_mut(begin..begin + length) else { return };
            mend_headers(payload, flags);
            self.mended += whole;
        }
    }
}

/// Mends the field block of a HEADERS frame (RFC 9113 §6.2).
fn mend_headers(payload: &mut [u8], flags: u8) {
    let padded = flags & PADDED != 0;
    let padding = if padded { payload.first().copied().map_or(0, usize::from) } else { 0 };
    let begin = usize::from(padded) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let end = payload.len().saturating_sub(padding);
    if let Some(block) = payload.get_mut(begin..end) {
        let _ = mend_block(block);
    }
}

/// Walks a field block and mends the values of `:authority`. `None` where it ends in the middle of a field.
fn mend_block(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        let (prefix, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (name, after) = integer(block, at, prefix)?;
        at = after;
        if !literal {
            continue;
        }
        let mut is_authority = name == AUTHORITY;
        if name == 0 {
            let (text, plain, after) = string(block, at)?;
            is_authority = plain && block.get(text)? == b":authority";
            at = after;
        }
        let (value, plain, after) = string(block, at)?;
        at = after;
        let value = block.get_mut(value)?;
        if is_authority && plain && value.iter().any(|byte| matches!(byte, b'/' | b'%')) {
            let kept = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
            value.iter_mut().filter(|byte| !kept(byte)).for_each(|byte| *byte = b'-');
        }
    }
    Some(())
}

/// A string literal at `at`: where it stands, whether it is plain and not Huffman-coded, and where the next thing is
/// (RFC 7541 §5.2).
fn string(block: &[u8], at: usize) -> Option<(std::ops::Range<usize>, bool, usize)> {
    let plain = block.get(at)? & 0x80 == 0;
    let (length, begin) = integer(block, at, 7)?;
    let end = begin.checked_add(length)?;
    (end <= block.len()).then_some((begin..end, plain, end))
}

/// An integer at `at` with a prefix of `bits`, and where the next thing is (RFC 7541 §5.1).
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let full = (1_usize << bits) - 1;
    let prefix = usize::from(*block.get(at)?) & full;
    if prefix < full {
        return Some((prefix, at + 1));
    }
    let mut value = full;
    for (index, shift) in (0_u32..4).map(|index| 7 * index).enumerate() {
        let byte = usize::from(*block.get(at + 1 + index)?);
        value = value.checked_add((byte & 0x7f) << shift)?;
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + index));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A HEADERS frame with `fields` as its block.
    fn headers(fields: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(fields.len()).unwrap(), HEADERS, 0x4, 0, 0, 0, 1];
        frame.extend_from_slice(fields);
        frame
    }

    /// `:authority: value`, indexed.
    fn authority(value: &[u8]) -> Vec<u8> {
        [&[0x41, u8::try_from(value.len()).unwrap()], value].concat()
    }

    async fn seen(sent: &[u8], step: usize) -> Vec<u8> {
        struct Reader<'a>(SocketAuthority, tokio::io::DuplexStream, std::marker::PhantomData<&'a ()>);
        impl AsyncRead for Reader<'_> {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let this = &mut *self;
                this.0.poll_read(&mut this.1, cx, buf)
            }
        }
        let (mut client, server) = tokio::io::duplex(64);
        let bytes = sent.to_vec();
        let writer = tokio::spawn(async move {
            for part in bytes.chunks(step) {
                tokio::io::AsyncWriteExt::write_all(&mut client, part).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut seen = Vec::new();
        let mut reader = Reader(SocketAuthority::default(), server, std::marker::PhantomData);
        tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut seen).await.unwrap();
        writer.await.unwrap();
        seen
    }

    #[tokio::test]
    async fn a_socket_path_becomes_a_name_and_nothing_else_changes() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100].as_slice();
        let method = [0x83].as_slice();
        let path = [&[0x04, 4][..], b"/a/b"].concat();
        for (value, mended) in [
            (b"run%2Fagent.sock".as_slice(), b"run-2Fagent.sock".as_slice()),
            (b"/run/agent.sock", b"-run-agent.sock"),
            (b"localhost:50051", b"localhost:50051"),
        ] {
            let frames = |value: &[u8]| {
                let first = headers(&[method, &authority(value), &path].concat());
                let data = [0, 0, 5, 0, 1, 0, 0, 0, 1, b'/', b'%', b'/', 0x41, 1];
                let by_name = [&[0x00, 10][..], b":authority", &[u8::try_from(value.len()).unwrap()], value].concat();
                [preface, settings, &first, &data, &headers(&by_name)].concat()
            };
            for step in [1, 7, 1000] {
                assert_eq!(seen(&frames(value), step).await, frames(mended), "{} by {step}", value.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_understood_is_passed_on() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        let cases = [
            headers(&[0x41, 0x7f]),
            headers(&[0x41, 0xff, 0xff, 0xff, 0xff, 0xff]),
            headers(&[0x41, 40, b'/']),
            vec![0xff, 0xff, 0xff, HEADERS, 0, 0, 0, 0, 1, b'/'],
            vec![0, 0],
        ];
        for case in cases {
            let sent = [preface, &case].concat();
            assert_eq!(seen(&sent, 3).await, sent);
        }
    }
}
