//! A request as a server received it, in whichever version of HTTP, and the way back to its caller.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as _, Frame};

use crate::guard::{self, Malformed, Refused};
use crate::listener::Listener;
use crate::live::body::{Body, BodyError};
use crate::mirror::{Content, Mirrored};
use crate::tunnel::Tunnel;

/// A request that somebody is to answer.
pub(crate) struct Call {
    /// Its head, as it was received.
    pub(crate) parts: Parts,
    /// Its body.
    pub(crate) body: Incoming,
    /// What can go back beside the response.
    pub(crate) back: Back,
}

/// Who answers the requests of a connection.
pub(crate) trait Answers: Send + Sync + 'static {
    /// Answers one.
    fn answer(self: Arc<Self>, call: Call) -> impl Future<Output = Response<Body>> + Send + 'static;
}

/// A request body on its way in.
pub(crate) enum Incoming {
    /// There is none, or none that is to be sent on.
    None,
    /// It is read by hyper.
    Http1(hyper::body::Incoming),
    /// It is read from a stream; `true` once its data has ended.
    Http2(RecvStream, bool),
    /// One of these, which is copied while it is read.
    Mirrored(Box<Mirrored>),
    /// It is that of a copy, and at hand.
    Copy(Box<Content>),
}

/// The way back to the caller, for what is no response.
#[derive(Default)]
pub(crate) struct Back {
    /// Takes interim responses, if the caller can be sent any.
    pub(crate) interim: Interim,
    /// Takes what the request turns its connection or stream into, if the caller asks for such a thing.
    pub(crate) switch: Option<Switch>,
}

/// Sends interim responses (RFC 9110, section 15.2) to a caller over HTTP/2. To others none can be sent: hyper's server
/// knows no way.
#[derive(Clone, Default)]
pub(crate) struct Interim {
    to: Option<Arc<Mutex<SendResponse<Bytes>>>>,
    clean: Option<fn(&mut HeaderMap)>,
}

/// A switch of protocols that a caller asks for.
pub(crate) struct Switch {
    /// Whether it is asked for by extended CONNECT (RFC 8441), which has no head of its own for it.
    pub(crate) extended: bool,
    left: Upgraded,
}

/// Where a request leaves what it was turned into, for who serves its caller.
#[derive(Clone, Default)]
pub(super) struct Upgraded(Arc<Mutex<Option<Tunnel>>>);

impl Call {
    /// Whether the request has one reading, as the guard has it, and no other than `listener` lets it have.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) fn check(&self, listener: &Listener) -> Result<(), Refused> {
        guard::check(&self.parts, listener.paths)?;
        guard::check_number(&self.parts, listener.limits.headers)?;
        // Of HTTP/1 the framing has seen to that. No body of it is sent on, and the next hop would wait for one.
        let extended = self.back.switch.as_ref().is_some_and(|switch| switch.extended);
        if extended && self.parts.headers.contains_key(CONTENT_LENGTH) {
            return Err(Malformed::UpgradeWithBody.into());
        }
        Ok(())
    }
}

impl Incoming {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::None => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Http2(stream, data_ended) => poll_stream(stream, data_ended, cx).map_err(BodyError::Stream),
            Self::Mirrored(body) => body.poll_frame(cx),
            Self::Copy(content) => Poll::Ready(content.next().map(Ok)),
        }
    }

    /// Whether nothing more comes.
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::None => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(stream, _) => stream.is_end_stream(),
            Self::Mirrored(body) => body.is_end_stream(),
            Self::Copy(content) => content.is_end_stream(),
        }
    }
}

/// What comes next over a stream. Who takes it has room for it, so that the caller may send as much again.
fn poll_stream(
    stream: &mut RecvStream,
    data_ended: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
    if !*data_ended {
        if let Some(data) = ready!(stream.poll_data(cx)) {
            let data = data?;
            // An error means that the stream has ended, which is what is said next.
            let _ = stream.flow_control().release_capacity(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        *data_ended = true;
    }
    let trailers: Option<HeaderMap> = ready!(stream.poll_trailers(cx))?;
    Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
}

impl Interim {
    pub(super) fn over(response: &Arc<Mutex<SendResponse<Bytes>>>) -> Self {
        Self { to: Some(Arc::clone(response)), clean: None }
    }

    /// Takes from their heads what `clean` says may not go back.
    pub(crate) fn cleaned(self, clean: fn(&mut HeaderMap)) -> Self {
        Self { clean: Some(clean), ..self }
    }

    /// Sends one, if that is possible: nothing depends on it, and the response follows.
    pub(crate) fn send(&self, status: StatusCode, headers: &HeaderMap) {
        let (Some(response), Some(clean)) = (&self.to, self.clean) else { return };
        let mut interim = Response::new(());
        *interim.status_mut() = status;
        *interim.headers_mut() = headers.clone();
        clean(interim.headers_mut());
        // It has no body; the caller would take the length for that of the response.
        interim.headers_mut().remove(CONTENT_LENGTH);
        let sent = response.lock().unwrap_or_else(PoisonError::into_inner).send_informational(interim);
        if let Err(error) = sent {
            tracing::debug!(%status, %error, "an interim response was not passed on");
        }
    }
}

impl Switch {
    pub(super) fn new(extended: bool, left: Upgraded) -> Self {
        Self { extended, left }
    }

    /// Leaves what the request was turned into; it goes on once the caller was told.
    pub(crate) fn leave(self, tunnel: Tunnel) {
        *self.left.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }
}

impl Upgraded {
    /// What the last request was turned into, if anything.
    pub(super) fn take(&self) -> Option<Tunnel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
