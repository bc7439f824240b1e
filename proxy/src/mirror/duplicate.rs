//! A copy of a request as it is taken, from its head to its last byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use tokio::sync::OwnedSemaphorePermit;

use super::{Dropped, Mirror};
use crate::guard;
use crate::live::body::BodyError;
use crate::serve::Incoming;

/// A copy of a request, of which the body may still be on its way.
pub(super) struct Duplicate {
    mirror: Arc<Mirror>,
    pub(super) head: Request<()>,
    pub(super) worker: usize,
    pub(super) remote: SocketAddr,
    pub(super) data: Vec<u8>,
    pub(super) trailers: Option<HeaderMap>,
    /// The room that it takes.
    pub(super) kept: OwnedSemaphorePermit,
}

/// A request body that is copied while it passes.
pub(crate) struct Mirrored {
    body: Incoming,
    /// Until it is sent or given up.
    copy: Option<Duplicate>,
}

/// The body of a copy, as it goes out.
pub(crate) struct Content {
    data: Bytes,
    trailers: Option<HeaderMap>,
    /// The room that it takes, also where it goes on after its answer.
    _kept: OwnedSemaphorePermit,
}

impl Duplicate {
    /// Begins a copy with a head that goes on to another workload.
    pub(super) fn begin(
        mirror: &Arc<Mirror>,
        mut head: Request<()>,
        remote: SocketAddr,
        worker: usize,
    ) -> Result<Self, Dropped> {
        if mirror.places.available_permits() == 0 {
            return Err(Dropped::Requests);
        }
        guard::mirrored::tell_peer(head.headers_mut());
        let fields = head.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
        let target = head.uri().path().len() + head.uri().query().map_or(0, str::len);
        let kept = room(mirror, fields.sum::<usize>() + target)?;
        let (mirror, data, trailers) = (Arc::clone(mirror), Vec::new(), None);
        Ok(Self { mirror, head, worker, remote, data, trailers, kept })
    }

    /// Copies a part of the body.
    pub(super) fn take(&mut self, data: &[u8]) -> Result<(), Dropped> {
        let (len, has) = (self.data.len() + data.len(), self.data.capacity());
        if len > self.mirror.body_bytes {
            return Err(Dropped::Body);
        }
        if len > has {
            let wanted = len.max(2 * has).min(self.mirror.body_bytes);
            self.kept.merge(room(&self.mirror, wanted - has)?);
            self.data.reserve_exact(wanted - self.data.len());
        }
        // A copy of the bytes, for a piece of them may hold a buffer that is far larger.
        self.data.extend_from_slice(data);
        Ok(())
    }

    /// Copies the trailers.
    pub(super) fn take_trailers(&mut self, trailers: &HeaderMap) -> Result<(), Dropped> {
        let bytes = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD).sum();
        self.kept.merge(room(&self.mirror, bytes)?);
        self.trailers = Some(trailers.clone());
        Ok(())
    }

    /// Lets go of what has come of the body, which comes anew.
    pub(super) fn restart(&mut self) {
        self.data.clear();
    }

    /// Sends it, if not too many are under way.
    pub(super) fn send(self) {
        let mirror = Arc::clone(&self.mirror);
        let Ok(place) = Arc::clone(&mirror.places).try_acquire_owned() else {
            return mirror.leave_out(Dropped::Requests);
        };
        let lifecycle = mirror.lifecycle.clone();
        drop(lifecycle.spawn(async move {
            mirror.carry(self).await;
            drop(place);
        }));
    }

    /// Counts it as one that is not sent.
    pub(super) fn give_up(self, why: Dropped) {
        self.mirror.leave_out(why);
    }
}

fn room(mirror: &Mirror, bytes: usize) -> Result<OwnedSemaphorePermit, Dropped> {
    let bytes = u32::try_from(bytes).map_err(|_| Dropped::Memory)?;
    Arc::clone(&mirror.room).try_acquire_many_owned(bytes).map_err(|_| Dropped::Memory)
}

impl Mirrored {
    /// A body that goes into `copy` as well.
    pub(super) fn new(body: Incoming, copy: Duplicate) -> Self {
        Self { body, copy: Some(copy) }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let taken = self.copy.as_mut().map(|copy| match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => copy.take(data),
                    (None, Some(trailers)) => copy.take_trailers(trailers),
                    (None, None) => Ok(()),
                });
                if let Some(Err(why)) = taken {
                    self.give_up(why);
                }
                // Who has read trailers does not ask for more.
                if frame.is_trailers() || self.body.is_end_stream() {
                    self.send();
                }
            }
            Some(Err(_)) => self.give_up(Dropped::Incomplete),
            None => self.send(),
        }
        Poll::Ready(frame)
    }

    /// Whether nothing more comes.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn send(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.send();
        }
    }

    fn give_up(&mut self, why: Dropped) {
        if let Some(copy) = self.copy.take() {
            copy.give_up(why);
        }
    }
}

impl Drop for Mirrored {
    fn drop(&mut self) {
        // Of one that has ended, who reads it need not ask for its end.
        if self.body.is_end_stream() { self.send() } else { self.give_up(Dropped::Incomplete) }
    }
}

impl Content {
    pub(super) fn new(data: Bytes, trailers: Option<HeaderMap>, kept: OwnedSemaphorePermit) -> Self {
        Self { data, trailers, _kept: kept }
    }

    pub(crate) fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.data.is_empty() {
            return self.trailers.take().map(Frame::trailers);
        }
        Some(Frame::data(std::mem::take(&mut self.data)))
    }

    /// Whether nothing more comes.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }
}

/// What a field of a head costs beside its bytes.
const FIELD: usize = 32;
