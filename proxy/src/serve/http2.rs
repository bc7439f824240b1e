//! HTTP/2: a task for the connection, and one for each of its streams.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use countersign_runtime::Lifecycle;
use h2::ext::Protocol;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::response::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep, timeout};

use super::call::{Answers, Back, Call, Incoming, Interim, Switch, Upgraded};
use super::stream_io::StreamIo;
use crate::buffer::{Gathered, Outlet, gathered};
use crate::live::Connection;
use crate::live::body::Body;
use crate::pool::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::watched::Watched;

/// Serves HTTP/2 on a connection until it ends. With `websockets`, callers may ask for them by extended CONNECT.
pub(crate) async fn serve_http2<T, A>(
    connection: &Arc<Connection>,
    io: T,
    lifecycle: &Lifecycle,
    websockets: bool,
    caller: &Arc<A>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
    A: Answers,
{
    let limits = &connection.listener.limits;
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        // What a stream may hold of the app's answer while the caller does not read.
        .max_send_buffer_size(64 << 10)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(
            CONNECTION_WINDOW.max(STREAM_WINDOW.saturating_mul(limits.streams).min(MOST_WINDOW)),
        );
    if websockets {
        builder.enable_connect_protocol();
    }
    let (io, outlet) = gathered(io);
    let io = Watched::accepted(io, &connection.listener);
    let state = State::Beginning(Box::pin(builder.handshake(io)), Box::pin(sleep(limits.head)));
    let serving = Serving { state, finishing: false, outlet, connection, lifecycle, caller };
    if let Some(Err(error)) = connection.serve(serving, |serving| serving.get_mut().finish()).await {
        // A connection that broke is its peer's affair; it is worth a line for who looks for it.
        tracing::debug!(listener = %connection.listener.name, remote = %connection.remote, %error, "a connection broke");
    }
}

/// A connection, whose frames go out together after each of its turns.
struct Serving<'a, T, A> {
    state: State<T>,
    /// Whether it is to take no new request.
    finishing: bool,
    outlet: Outlet<T>,
    connection: &'a Arc<Connection>,
    lifecycle: &'a Lifecycle,
    caller: &'a Arc<A>,
}

enum State<T> {
    /// Its preface is awaited, for a time.
    Beginning(Pin<Box<server::Handshake<Watched<Gathered<T>>, Bytes>>>, Pin<Box<Sleep>>),
    Open(Box<server::Connection<Watched<Gathered<T>>, Bytes>>),
}

impl<T, A> Serving<'_, T, A>
where
    T: AsyncRead + AsyncWrite + Unpin,
    A: Answers,
{
    fn finish(&mut self) {
        self.finishing = true;
        if let State::Open(open) = &mut self.state {
            open.graceful_shutdown();
        }
    }

    /// Takes in what has come, and begins with what is new.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.state {
                State::Beginning(handshake, late) => {
                    if late.as_mut().poll(cx).is_ready() {
                        self.connection.listener.metrics.ended("head");
                        return Poll::Ready(Ok(()));
                    }
                    let mut open = ready!(handshake.as_mut().poll(cx))?;
                    if self.finishing {
                        open.graceful_shutdown();
                    }
                    self.state = State::Open(Box::new(open));
                }
                State::Open(open) => match ready!(open.poll_accept(cx)) {
                    Some(accepted) => {
                        let (request, response) = accepted?;
                        self.begin(request, response);
                    }
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }

    fn begin(&self, request: Request<RecvStream>, response: SendResponse<Bytes>) {
        let (mut parts, body) = request.into_parts();
        let response = Arc::new(Mutex::new(response));
        let interim = Interim::over(&response);
        let is_head = parts.method == Method::HEAD;
        let caller = Arc::clone(self.caller);
        let websocket = parts.extensions.remove::<Protocol>().is_some_and(|protocol| protocol.as_str() == WEBSOCKET);
        if !websocket {
            // Of another protocol it is a CONNECT, which is refused.
            let back = Back { interim, switch: None };
            let call = Call { parts, body: Incoming::Http2(body, false), back };
            drop(self.lifecycle.spawn(async move {
                let answered = pin!(caller.answer(call));
                let Some((head, body)) = awaited(answered, &response).await else { return };
                let ends = is_head || body.is_end_stream();
                if let Some(stream) = send_head(head, ends, &response).filter(|_| !ends) {
                    carry(body, stream).await;
                }
            }));
            return;
        }
        // What it asks for is, in the only words that the rules know, to GET the resource and to switch then.
        parts.method = Method::GET;
        let upgraded = Upgraded::default();
        let back = Back { interim, switch: Some(Switch::new(true, upgraded.clone())) };
        let call = Call { parts, body: Incoming::None, back };
        drop(self.lifecycle.spawn(async move {
            let answered = pin!(caller.answer(call));
            let Some((head, rest)) = awaited(answered, &response).await else { return };
            let tunnel = upgraded.take();
            let ends = tunnel.is_none() && rest.is_end_stream();
            let Some(stream) = send_head(head, ends, &response) else { return };
            match tunnel {
                Some(tunnel) => {
                    let io = StreamIo::new(body, stream, Arc::clone(&tunnel.ticket.flight));
                    let gone = io.gone();
                    let mut carried = pin!(tunnel.carry(async { Ok(io) }));
                    tokio::select! {
                        biased;
                        () = &mut carried => {}
                        // What came before the end is still for the next hop, if that takes it.
                        () = gone => drop(timeout(GRACE, carried).await),
                    }
                }
                None if ends => {}
                None => carry(rest, stream).await,
            }
        }));
    }
}

impl<T, A> Future for Serving<'_, T, A>
where
    T: AsyncRead + AsyncWrite + Unpin,
    A: Answers,
{
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.turn(cx);
        // An error is found by the next turn that reads or writes.
        let _ = self.outlet.poll_drain(cx);
        polled
    }
}

/// Waits for the answer. `None` if the caller has taken the request back, or has gone.
async fn awaited(
    mut answered: Pin<&mut impl Future<Output = Response<Body>>>,
    response: &Mutex<SendResponse<Bytes>>,
) -> Option<(Parts, Body)> {
    // In this order: nothing is sent for a request that was taken back.
    let answer = poll_fn(|cx| {
        // Let go of at once: the answer may have interim responses to send.
        let reset = lock(response).poll_reset(cx);
        if reset.is_ready() { Poll::Ready(None) } else { answered.as_mut().poll(cx).map(Some) }
    });
    let (mut head, body) = answer.await?.into_parts();
    let own = body.own_text().len();
    if own > 0 {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(own));
    }
    // It is how a fault ends a connection of HTTP/1 (RFC 9113, section 8.2.2).
    head.headers.remove(CONNECTION);
    Some((head, body))
}

/// Sends the head of a response, with which it may end. `None` if the caller has gone.
fn send_head(head: Parts, ends: bool, response: &Mutex<SendResponse<Bytes>>) -> Option<SendStream<Bytes>> {
    let mut response = lock(response);
    match response.send_response(Response::from_parts(head, ()), ends) {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "a response was not sent");
            response.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}

/// Sends a body as fast as the caller takes it.
async fn carry(mut body: Body, mut stream: SendStream<Bytes>) {
    loop {
        let frame = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            // Nothing is asked of the next hop that the caller has no room for.
            if stream.capacity() == 0 {
                stream.reserve_capacity(1);
                while stream.capacity() == 0 {
                    match stream.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(_) => return Poll::Ready(None),
                        Poll::Pending => return body.poll_cut(cx).map(|cut| Some(Some(Err(cut)))),
                    }
                }
            }
            Pin::new(&mut body).poll_frame(cx).map(Some)
        });
        let Some(frame) = frame.await else { return };
        let sent = match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                let last = body.is_end_stream();
                let sent = stream.send_data(data, last);
                if last {
                    return;
                }
                sent
            }
            Some(Ok(Err(frame))) => return drop(stream.send_trailers(frame.into_trailers().unwrap_or_default())),
            None => return drop(stream.send_data(Bytes::new(), true)),
            Some(Err(_)) => return stream.send_reset(Reason::INTERNAL_ERROR),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn lock(response: &Mutex<SendResponse<Bytes>>) -> MutexGuard<'_, SendResponse<Bytes>> {
    response.lock().unwrap_or_else(PoisonError::into_inner)
}

/// RFC 8441, section 5.
const WEBSOCKET: &str = "websocket";

/// How long the next hop may take for what a caller has left behind.
const GRACE: Duration = Duration::from_secs(2);

/// RFC 9113, section 6.9.1.
const MOST_WINDOW: u32 = i32::MAX.unsigned_abs();
