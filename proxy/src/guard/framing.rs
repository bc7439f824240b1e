//! A strict reader of HTTP/1 requests between the socket and hyper.
//!
//! hyper accepts what other readers understand differently, and shows its service only what it made of it. So the
//! bytes are checked before hyper sees them. A head that is refused is replaced by the [`marker`] request, to which
//! the service gives the answer, and nothing after it is read. A body that breaks off its grammar ends in an error.
//! Requests behind one that asks for an upgrade are held back until the answer says whether they are requests.
//!
//! Invariant: hyper is given whole, well-formed heads, and bodies that end where every reader finds the end.

mod answers;
pub(crate) mod chunked;
pub(crate) mod head;
mod requests;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use answers::{Answered, Answers};
pub(crate) use head::length;
use requests::{Requests, Stop};

use super::marker;
use super::reasons::Malformed;

/// How much a request head may hold.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes, from the request line to the empty line.
    pub bytes: usize,
    /// Header lines, at most 256.
    pub headers: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { bytes: 64 * 1024, headers: 100 }
    }
}

/// The server's side of an HTTP/1 connection, of which only well-formed requests can be read.
///
/// Bodies, and heads that arrive in one piece, go straight into the reader's buffer.
#[derive(Debug)]
pub struct Framed<T> {
    io: T,
    requests: Requests,
    answers: Answers,
    /// Received and not passed on yet. The first `cleared` bytes may be passed on.
    held: BytesMut,
    cleared: usize,
    /// Whether the held bytes that are not cleared have still to be looked at.
    unseen: bool,
    state: State,
    /// How long a head may take that has begun, and who is told that one was late.
    within: Option<(Duration, Arc<AtomicBool>)>,
    /// When the head that has begun is late.
    late: Option<Pin<Box<Sleep>>>,
    /// Who waits for an answer to be written. hyper reads and writes in one task, but need not.
    reader: Option<Waker>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Requests are read.
    Open,
    /// Another protocol has taken over.
    Through,
    /// A head was refused; nothing more is read. hyper closes after its answer, so the end must not be reported:
    /// hyper would take it for a client that went away, and not answer.
    Refused,
    /// A body was refused.
    Failed(Malformed),
    /// The peer sends no more.
    Ended,
}

impl<T> Framed<T> {
    /// Reads requests from `io`.
    pub fn new(io: T, limits: HeadLimits) -> Self {
        Self {
            io,
            requests: Requests::new(limits),
            answers: Answers::default(),
            held: BytesMut::new(),
            cleared: 0,
            unseen: false,
            state: State::Open,
            within: None,
            late: None,
            reader: None,
        }
    }

    /// Reads requests from `io`, of which the first bytes were read already.
    pub fn resumed(io: T, read: BytesMut, limits: HeadLimits) -> Self {
        let unseen = !read.is_empty();
        Self { held: read, unseen, ..Self::new(io, limits) }
    }

    /// Ends where a head does not end so soon after its first byte, and says so in `was_late`: hyper takes it for the end of
    /// a connection that waits for a request.
    pub(crate) fn heads_within(self, within: Duration, was_late: Arc<AtomicBool>) -> Self {
        Self { within: Some((within, was_late)), ..self }
    }

    /// Whether the head that has begun is late; sees to it that the task is woken when it is.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        // hyper reads ahead while it answers; the request that is under way has limits of its own.
        let Some((within, was_late)) = self.within.as_ref().filter(|_| self.answers.are_all_written()) else {
            self.late = None;
            return false;
        };
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(*within))).as_mut().poll(cx).is_ready();
        was_late.fetch_or(late, Ordering::Relaxed);
        late
    }

    fn deliver(&mut self, out: &mut ReadBuf<'_>) {
        let len = self.cleared.min(out.remaining()).min(self.held.len());
        let (bytes, _) = self.held.split_at(len);
        out.put_slice(bytes);
        self.held.advance(len);
        self.cleared -= len;
        if self.held.is_empty() && self.held.capacity() > KEPT {
            self.held = BytesMut::new();
        }
    }

    /// Looks at what is held.
    fn clear_held(&mut self) {
        let (cleared, stop) = self.requests.clear(&self.held, &mut self.answers);
        self.cleared = cleared;
        self.stop(&stop);
    }

    fn stop(&mut self, stop: &Stop) {
        self.unseen = *stop == Stop::Unanswered;
        match *stop {
            Stop::Empty | Stop::Incomplete | Stop::Unanswered => {}
            Stop::Head(malformed) => {
                self.held.truncate(self.cleared);
                let Some(marker) = marker::request(malformed) else {
                    self.state = State::Failed(malformed);
                    return;
                };
                self.held.extend_from_slice(&marker);
                self.cleared = self.held.len();
                self.answers.expect(false, false);
                self.state = State::Refused;
            }
            Stop::Body(malformed) => {
                self.held.truncate(self.cleared);
                self.state = State::Failed(malformed);
            }
        }
    }

    fn observe(&mut self, written: &[u8]) {
        if matches!(self.state, State::Through) {
            return;
        }
        match self.answers.observe(written) {
            None => return,
            Some(Answered::Awaited) => {}
            Some(Answered::Switched) => self.state = State::Through,
            Some(Answered::Unasked) => self.state = State::Ended,
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl<T: AsyncRead + Unpin> Framed<T> {
    /// Reads more into what is held; whether there was more.
    fn poll_hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut piece = [const { MaybeUninit::uninit() }; PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut piece))?;
        self.held.extend_from_slice(piece.filled());
        self.unseen = true;
        Poll::Ready(Ok(!piece.filled().is_empty()))
    }

    /// Reads into `out` what may be passed on at once, and holds the rest.
    fn poll_straight(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
        let (_, bytes) = out.filled().split_at(before);
        if bytes.is_empty() {
            return Poll::Ready(Ok(false));
        }
        let (cleared, stop) = self.requests.clear(bytes, &mut self.answers);
        let (_, rest) = bytes.split_at(cleared);
        if matches!(stop, Stop::Incomplete | Stop::Unanswered) {
            self.held.extend_from_slice(rest);
        }
        out.set_filled(before + cleared);
        self.stop(&stop);
        Poll::Ready(Ok(true))
    }

    /// Waits until answers are written. What comes in meanwhile is held, up to a bound, so that a client that goes
    /// away while its upgrade is decided on is noticed.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.reader = Some(cx.waker().clone());
        while self.answers.decide_on_upgrade() && self.held.len() < READ_AHEAD {
            if !ready!(self.poll_hold(cx))? {
                return Poll::Ready(Ok(false));
            }
        }
        Poll::Pending
    }

    /// Takes what has arrived of a refused request off the socket: closing it with bytes unread would reset the
    /// connection, and the client might never see the answer.
    fn discard(&mut self, cx: &mut Context<'_>) {
        for _ in 0..DISCARDED / PIECE {
            let mut piece = [const { MaybeUninit::uninit() }; PIECE];
            let mut piece = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut self.io).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {}
                _ => return,
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Framed<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        while out.filled().len() == before && out.remaining() > 0 {
            if this.cleared > 0 {
                this.late = None;
                this.deliver(out);
                continue;
            }
            match this.state {
                State::Open => {}
                State::Through if this.held.is_empty() => return Pin::new(&mut this.io).poll_read(cx, out),
                State::Through => {
                    this.cleared = this.held.len();
                    continue;
                }
                State::Refused => return Poll::Pending,
                State::Failed(malformed) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, malformed)));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            let more = if this.answers.are_awaited() {
                ready!(this.poll_answers(cx))?
            } else if this.held.is_empty() {
                ready!(this.poll_straight(cx, out))?
            } else {
                if !this.unseen && this.is_late(cx) {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                let more = this.unseen || ready!(this.poll_hold(cx))?;
                this.clear_held();
                more
            };
            if !more {
                this.held.clear();
                this.cleared = 0;
                this.state = State::Ended;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Framed<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let len = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.observe(bytes.get(..len).unwrap_or(bytes));
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let len = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, slices))?;
        let mut left = len;
        for slice in slices {
            let (written, _) = slice.split_at(left.min(slice.len()));
            this.observe(written);
            left -= written.len();
        }
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.state, State::Refused | State::Failed(_)) {
            this.discard(cx);
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// Most heads fit.
const PIECE: usize = 4 * 1024;

/// A larger buffer is given back once it is empty.
const KEPT: usize = 16 * 1024;

/// What is held at most while an upgrade is decided on.
const READ_AHEAD: usize = 64 * 1024;

/// What is taken off the socket at most after a refusal.
const DISCARDED: usize = 256 * 1024;
