//! A request over a link, HTTP/1.1, and the body of its response.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::PollSender;

use super::received::{Received, Relayed};
use super::{Answered, Asking, Held, Unanswered, asked, refused};
use crate::buffer::{Buffer, ReadAhead};
use crate::http1::body::{Body, Found};
use crate::http1::response::{MOST_INTERIM, MOST_INTERIM_HTTP2, TOO_MANY_INTERIM};
use crate::http1::{convert, response};
use crate::live::Entry;
use crate::live::body::{BodyError, RequestBody, Rest};
use crate::pool::{Io, Link, Pool};
use crate::serve::Interim;
use crate::upstream::{Broken, UnderWay};

/// A connection that speaks another protocol now, with what was received of it already.
pub(crate) struct Switched {
    pub(crate) io: ReadAhead<Io>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) under_way: UnderWay,
}

/// A link in use for one request.
struct Talk {
    link: Link,
    /// What is to be written, and how much of it was.
    out: Buffer,
    written: usize,
    /// Whether anything was ever written.
    sent: bool,
    unflushed: bool,
    /// What is left of the request body.
    body: Option<RequestBody>,
    /// The body is held back until the next hop says that it wants it, or this is over.
    held_back: Option<Pin<Box<Sleep>>>,
    chunked: bool,
    /// How much of it is still to come, if its length was said.
    left: Option<u64>,
    /// Whether anything was heard of the next hop.
    heard: bool,
    /// How many interim responses there were.
    interim: u32,
    /// Whether one of them said that the body is wanted.
    consented: bool,
    /// Data of it that is being written; with `chunked` the end of the chunk follows.
    data: Bytes,
    /// Received and not used yet.
    input: Buffer,
}

/// The body of a response that comes over a link.
pub(crate) struct FromLink {
    /// Until the body has ended.
    talk: Option<Talk>,
    body: Body,
    pool: Arc<Pool>,
    _held: Held,
}

/// Sends a request and waits for the head of its response.
pub(super) async fn send(
    asking: &mut Asking<'_>,
    link: Link,
    request: Request<RequestBody>,
) -> Result<Answered, Unanswered> {
    let pool = Arc::clone(asking.pool());
    let waits = waits_for_consent(&request);
    let (parts, body) = request.into_parts();
    let asked = asked(&pool, &parts.method);
    let bodiless = body.is_end_stream();
    let left = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if bodiless && left.is_some_and(|left| left > 0) {
        // The next hop would take the next request for its body.
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the request has a length and no body");
        return Err(Unanswered { error, unsent: false, again: None });
    }
    let held_back = waits.then(|| Box::pin(sleep(CONSENT)));
    let mut out = Buffer::default();
    let chunked = convert::write_request(&parts, bodiless, || pool.authority(), &mut out);
    let spare = body.spare();
    let body = (!bodiless).then_some(body);
    let (data, input) = (Bytes::new(), Buffer::default());
    let mut talk = Talk {
        link,
        out,
        written: 0,
        sent: false,
        unflushed: false,
        body,
        held_back,
        chunked,
        left,
        heard: false,
        interim: 0,
        consented: false,
        data,
        input,
    };
    let held = Arc::clone(asking.held);
    let head = poll_fn(|cx| {
        let head = talk.poll_head(cx, &asked, asking.interim);
        if talk.has_uploaded() {
            held.awaits();
        }
        head
    });
    let (head, headers) = match head.await {
        Ok(head) => head,
        Err(error) => {
            let again = asking.broke(Broken::link(talk.sent, talk.link.used && !talk.heard), &spare);
            let again = again.map(|(body, why)| (Request::from_parts(parts, body), why));
            return Err(Unanswered { error, unsent: !talk.sent, again });
        }
    };
    if let Some((body, why)) = asking.answered(&head.verdict, &spare) {
        let again = Some((Request::from_parts(parts, body), why));
        if talk.has_uploaded() && head.body.skip(&mut talk.input) && talk.input.is_empty() {
            talk.link.patience = head.patience;
            pool.give_back(talk.link);
        }
        return Err(Unanswered { error: refused(head.status), unsent: false, again });
    }
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    talk.link.patience = head.patience;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let Talk { link, input, .. } = talk;
        let under_way = UnderWay::at(asking.held.endpoint());
        let switched = Switched { io: ReadAhead::resumed(link.io, input), entry: link.entry, under_way };
        return Ok(Answered::Switched(response, switched));
    }
    if talk.held_back.is_some() {
        // It was refused before it was sent, and is not asked for any more.
        (talk.body, talk.held_back) = (None, None);
        talk.link.patience = Duration::ZERO;
    }
    let uploaded = talk.has_uploaded();
    let mut body =
        FromLink { talk: Some(talk), body: head.body.into(), pool: Arc::clone(&pool), _held: Arc::clone(asking.held) };
    body.finish_if_ended();
    let body = if uploaded { Received::Link(Box::new(body)) } else { relayed(&pool, body, spare.rest()) };
    Ok(Answered::Response(response.map(|()| body)))
}

/// Whether the body is to be held back until the next hop wants it (RFC 9110, section 10.1.1). A caller over HTTP/2 does
/// that by itself, for it is told of interim responses.
pub(super) fn waits_for_consent(request: &Request<RequestBody>) -> bool {
    let expects =
        request.headers().get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    expects && request.version() == http::Version::HTTP_11 && !request.body().is_end_stream()
}

impl Talk {
    fn has_uploaded(&self) -> bool {
        self.body.is_none() && self.data.is_empty() && self.written >= self.out.bytes().len()
    }

    /// Sends the request until the head of the response is there.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        asked: &response::Asked,
        interim: &Interim,
    ) -> Poll<io::Result<(response::Head, http::HeaderMap)>> {
        let failed = match self.poll_up(cx) {
            Poll::Ready(Err(error)) => Some(error),
            _ => None,
        };
        loop {
            let read = response::read_headers(self.input.bytes(), asked);
            let read = read.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
            if let Some((head, headers)) = read {
                self.input.consume(head.len);
                if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok((head, headers)));
                }
                self.interim += 1;
                if self.interim > MOST_INTERIM {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, TOO_MANY_INTERIM)));
                }
                let first_consent = head.status == StatusCode::CONTINUE && !self.consented;
                if first_consent && self.held_back.take().is_some() {
                    // Polled once more, for the body.
                    cx.waker().wake_by_ref();
                }
                if self.interim <= MOST_INTERIM_HTTP2 || first_consent {
                    interim.send(head.status, &headers);
                }
                self.consented |= first_consent;
                continue;
            }
            match self.input.poll_fill(&mut self.link.io, cx)? {
                Poll::Ready(0) => return Poll::Ready(Err(failed.unwrap_or(io::ErrorKind::UnexpectedEof.into()))),
                Poll::Ready(_) => self.heard = true,
                // What the next hop has said already is worth more than that it takes no more of the request.
                Poll::Pending => return failed.map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            }
        }
    }

    /// Sends the request as far as it is there and is taken.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The body is not asked while what it gave is stuck.
        if let Some(cut) = self.body.as_ref().and_then(|body| body.poll_cut(cx)) {
            return Poll::Ready(Err(io::Error::other(BodyError::Cut(cut))));
        }
        loop {
            if self.written < self.out.bytes().len() {
                let rest = self.out.bytes().get(self.written..).unwrap_or_default();
                self.written += ready!(Pin::new(&mut self.link.io).poll_write(cx, rest))?;
                (self.sent, self.unflushed, self.link.io.unfinished) = (true, true, true);
                continue;
            }
            self.out.clear();
            self.written = 0;
            if !self.data.is_empty() {
                let count = ready!(Pin::new(&mut self.link.io).poll_write(cx, &self.data))?;
                self.data.advance(count);
                self.unflushed = true;
                if self.data.is_empty() && self.chunked {
                    self.out.push(b"\r\n");
                }
                continue;
            }
            let Some(body) = &mut self.body else { break };
            if let Some(consent) = &mut self.held_back {
                if consent.as_mut().poll(cx).is_pending() {
                    break;
                }
                self.held_back = None;
            }
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => self.take(frame)?,
                Poll::Pending => break,
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.link.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        self.link.io.unfinished = self.body.is_some();
        if self.body.is_none() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// A link on which less was written than was said is of no use: the next request would be taken for the rest.
    fn body_ended(&mut self) -> io::Result<()> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.body = None;
        Ok(())
    }

    /// Puts together what is to be written for a frame of the request body.
    fn take(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) -> io::Result<()> {
        match frame.transpose().map_err(io::Error::other)?.map(Frame::into_data) {
            Some(Ok(data)) => {
                if self.chunked && !data.is_empty() {
                    self.out.push(format!("{:x}\r\n", data.len()).as_bytes());
                }
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(data.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
                }
                self.data = data;
                if self.body.as_ref().is_some_and(|body| body.is_end_stream()) && !self.chunked {
                    self.body_ended()?;
                }
            }
            Some(Err(trailers)) => {
                self.body_ended()?;
                if self.chunked {
                    self.out.push(b"0\r\n");
                    for (name, value) in &trailers.into_trailers().unwrap_or_default() {
                        convert::line(name.as_str().as_bytes(), value.as_bytes(), &mut self.out);
                    }
                    self.out.push(b"\r\n");
                }
            }
            None => {
                self.body_ended()?;
                if self.chunked {
                    self.out.push(b"0\r\n\r\n");
                }
            }
        }
        Ok(())
    }
}

impl FromLink {
    pub(super) fn has_ended(&self) -> bool {
        self.body.has_ended()
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            let Some(talk) = self.talk.as_mut().filter(|_| !self.body.has_ended()) else { return Poll::Ready(None) };
            let found = self.body.find(talk.input.bytes());
            let frame = match found.map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))? {
                Found::Data { before, len } => {
                    talk.input.consume(before);
                    let data = Bytes::copy_from_slice(talk.input.bytes().get(..len).unwrap_or_default());
                    talk.input.consume(len);
                    Frame::data(data)
                }
                Found::Framing(count) => {
                    talk.input.consume(count);
                    continue;
                }
                Found::End(count, trailers) => {
                    talk.input.consume(count);
                    if trailers.is_empty() {
                        self.finish_if_ended();
                        return Poll::Ready(None);
                    }
                    Frame::trailers(trailers)
                }
                Found::More => {
                    if ready!(talk.input.poll_fill(&mut talk.link.io, cx))? > 0 {
                        continue;
                    }
                    if !matches!(self.body, Body::Rest) {
                        return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                    }
                    (self.talk, self.body) = (None, Body::Ended);
                    return Poll::Ready(None);
                }
            };
            self.finish_if_ended();
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    /// Gives the link back once nothing more goes over it, if it can take another request.
    fn finish_if_ended(&mut self) {
        if self.body.has_ended()
            && self.talk.as_ref().is_some_and(Talk::has_uploaded)
            && let Some(talk) = self.talk.take()
            && talk.input.is_empty()
        {
            self.pool.give_back(talk.link);
        }
    }

    /// Carries both ways at once, until the response has ended.
    fn poll_relay(&mut self, cx: &mut Context<'_>, to: &mut PollSender<Relayed>) -> Poll<()> {
        if let Some(talk) = &mut self.talk
            && !talk.has_uploaded()
            && let Poll::Ready(Err(_)) = talk.poll_up(cx)
        {
            // The response tells why, if it does not come to its end all the same.
            talk.body = None;
            talk.link.patience = Duration::ZERO;
        }
        while ready!(to.poll_reserve(cx)).is_ok() {
            let frame = ready!(self.poll_frame(cx));
            let last = !matches!(frame, Some(Ok(_)));
            if to.send_item(frame).is_err() || last {
                break;
            }
        }
        Poll::Ready(())
    }
}

/// A response whose request is still being sent. A task of its own carries on, for who reads the response may wait with
/// it, and the request must not.
fn relayed(pool: &Arc<Pool>, mut body: FromLink, rest: Rest) -> Received {
    let (sender, receiver) = mpsc::channel(1);
    pool.lifecycle().spawn(async move {
        let mut to = PollSender::new(sender.clone());
        tokio::select! {
            () = sender.closed() => {}
            () = poll_fn(|cx| body.poll_relay(cx, &mut to)) => {}
        }
        // The request may go on after its response, until the next hop takes no more of it.
        if body.has_ended()
            && let Some(talk) = &mut body.talk
            && let Some(Ok(())) = rest.carried(poll_fn(|cx| talk.poll_up(cx))).await
        {
            body.finish_if_ended();
        }
    });
    Received::Relayed(receiver)
}

/// How long a body is held back for a next hop that does not know of consent.
const CONSENT: Duration = Duration::from_secs(1);
