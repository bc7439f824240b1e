//! A request body of which the beginning is kept, so that the request can be sent again.
//!
//! What is kept are the pieces as they came, which costs no copy. With the first byte over the limit all of it is let go,
//! and from there on the body is had only once.
//!
//! Invariant: a body that broke off never ends, and a body is read by the newest attempt alone. The attempts before it get an error from then on, never an end:
//! nobody must take for whole what is not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::body::BodyError;
use crate::serve::Incoming;

/// A request body as one attempt reads it.
pub(super) enum Kept {
    /// There is none.
    None,
    Some(Reader),
}

/// The same body, for an attempt after this one.
pub(super) struct Again(Arc<Mutex<Source>>);

pub(super) struct Reader {
    source: Arc<Mutex<Source>>,
    attempt: u32,
    /// How many of the pieces that are kept it has read.
    read: usize,
}

struct Source {
    incoming: Incoming,
    /// What came so far; `None` once it was too much.
    pieces: Option<Vec<Piece>>,
    /// How much more may be kept.
    room: usize,
    /// The newest attempt.
    attempt: u32,
    /// It broke off: nobody gets an end of it any more.
    broken: bool,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

type Next = Option<Result<Frame<Bytes>, BodyError>>;

impl Kept {
    /// Of which `most` bytes are kept.
    pub(super) fn new(incoming: Incoming, most: usize) -> Self {
        if incoming.is_end_stream() {
            return Self::None;
        }
        let source = Source { incoming, pieces: Some(Vec::new()), room: most, attempt: 0, broken: false };
        Self::Some(Reader { source: Arc::new(Mutex::new(source)), attempt: 0, read: 0 })
    }

    pub(super) fn none() -> Self {
        Self::None
    }

    /// The same body for another attempt; `None` if there is none.
    pub(super) fn again(&self) -> Option<Again> {
        match self {
            Self::None => None,
            Self::Some(reader) => Some(Again(Arc::clone(&reader.source))),
        }
    }

    /// What comes next.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        match self {
            Self::None => Poll::Ready(None),
            Self::Some(reader) => reader.poll_frame(cx),
        }
    }

    /// Whether nothing more comes.
    pub(super) fn is_end_stream(&self) -> bool {
        let Self::Some(reader) = self else { return true };
        let source = lock(&reader.source);
        source.pieces.as_ref().is_none_or(|pieces| reader.read >= pieces.len()) && source.incoming.is_end_stream()
    }
}

impl Again {
    /// Whether all of it is at hand.
    pub(super) fn is_whole(&self) -> bool {
        lock(&self.0).pieces.is_some()
    }

    /// Lets go of what is kept, and keeps no more: there is no other attempt.
    pub(super) fn let_go(&self) {
        let pieces = lock(&self.0).pieces.take();
        drop(pieces);
    }

    /// Reads the body from its beginning. `None` if not all of it was kept.
    pub(super) fn begin(&self) -> Option<Kept> {
        let mut source = lock(&self.0);
        source.pieces.as_ref()?;
        source.attempt += 1;
        let attempt = source.attempt;
        drop(source);
        Some(Kept::Some(Reader { source: Arc::clone(&self.0), attempt, read: 0 }))
    }
}

impl Reader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut source = lock(&self.source);
        if source.attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::WentAgain)));
        }
        if let Some(piece) = source.pieces.as_ref().and_then(|pieces| pieces.get(self.read)) {
            self.read += 1;
            let frame = match piece.clone() {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            };
            return Poll::Ready(Some(Ok(frame)));
        }
        if source.broken {
            return Poll::Ready(Some(Err(BodyError::WentAgain)));
        }
        let frame = ready!(source.incoming.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                source.keep(frame);
                self.read += 1;
            }
            // Asked again, hyper's body says that it has ended.
            Some(Err(_)) => (source.broken, source.pieces) = (true, None),
            None => {}
        }
        Poll::Ready(frame)
    }
}

impl Source {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(pieces) = &mut self.pieces else { return };
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Piece::Data(data.clone()),
            (None, Some(trailers)) => Piece::Trailers(trailers.clone()),
            (None, None) => return,
        };
        // Empty pieces without end cost room as well.
        let size = match &piece {
            Piece::Data(data) => data.len() + PIECE,
            Piece::Trailers(_) => 0,
        };
        match self.room.checked_sub(size) {
            Some(room) => {
                self.room = room;
                pieces.push(piece);
            }
            None => self.pieces = None,
        }
    }
}

fn lock(source: &Mutex<Source>) -> MutexGuard<'_, Source> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a piece costs beside its bytes.
const PIECE: usize = 32;
