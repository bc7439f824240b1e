//! A recording hyper server behind the guard, over a connection whose bytes arrive in pieces as the test says.
//!
//! It runs without a runtime: the connection is polled until nobody wakes it any more, so a verdict is complete when
//! it is taken, and thousands of them take seconds.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use countersign_proxy::guard::{self, Framed, HeadLimits, Paths};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the service saw, in words, and what the client got back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) requests: Vec<String>,
    pub(crate) answers: Vec<u8>,
    /// Whether the server closed of its own accord.
    pub(crate) closed: bool,
}

/// Lets hyper serve a connection on which `pieces` arrive one after the other.
pub(crate) fn serve(pieces: &[&[u8]]) -> Seen {
    serve_paths(pieces, Paths::Strict)
}

/// As [`serve`], on a listener that takes such paths.
pub(crate) fn serve_paths(pieces: &[&[u8]], paths: Paths) -> Seen {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let wire = Wire {
        pieces: pieces.iter().map(|piece| piece.to_vec()).collect(),
        pause: true,
        ended: Arc::default(),
        answers: Arc::default(),
    };
    let (ended, answers) = (Arc::clone(&wire.ended), Arc::clone(&wire.answers));
    let recorded = Arc::clone(&seen);
    let service = service_fn(move |request| record(request, paths, Arc::clone(&recorded)));
    let framed = Framed::new(wire, HeadLimits::default());
    let connection = hyper::server::conn::http1::Builder::new()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(framed), service);
    let mut connection = pin!(connection);
    let closed = settle(&mut connection);
    if !closed {
        ended.store(true, Ordering::SeqCst);
        assert!(settle(&mut connection), "the connection does not end with its client: {:?}", seen.lock().unwrap());
    }
    let (requests, answers) = (seen.lock().unwrap().clone(), answers.lock().unwrap().clone());
    Seen { requests, answers, closed }
}

/// `GET /a`, `POST /a =body`, `POST /a ~reason` for a body that breaks off, `!reason` for a refused request.
async fn record(
    request: Request<Incoming>,
    paths: Paths,
    seen: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let (line, status) = match guard::check(&parts, paths) {
        Err(refused) => {
            // Else it would depend on time whether hyper can go on with the connection.
            let _ = body.collect().await;
            (format!("!{}", refused.reason()), StatusCode::BAD_REQUEST)
        }
        Ok(()) => {
            let head = format!("{} {}", parts.method, parts.uri);
            match body.collect().await.map(|body| body.to_bytes()) {
                Ok(body) if body.is_empty() => (head, StatusCode::OK),
                Ok(body) => (format!("{head} ={}", body.escape_ascii()), StatusCode::OK),
                Err(error) => {
                    let reason = guard::refusal_of_body(&error).map_or("eof", guard::Refused::reason);
                    (format!("{head} ~{reason}"), StatusCode::BAD_REQUEST)
                }
            }
        }
    };
    seen.lock().unwrap().push(line);
    Ok(Response::builder().status(status).body(Full::new(Bytes::from_static(b"ok"))).unwrap())
}

/// Polls until the future is ready (`true`) or nobody wakes it (`false`).
fn settle<F: Future>(future: &mut Pin<&mut F>) -> bool {
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    while woken.0.swap(false, Ordering::SeqCst) {
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return true;
        }
    }
    false
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A connection whose other end has sent `pieces`; each read gets one, with a pause before each.
struct Wire {
    pieces: VecDeque<Vec<u8>>,
    pause: bool,
    ended: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return if self.ended.load(Ordering::SeqCst) { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        if std::mem::replace(&mut self.pause, false) {
            self.pieces.push_front(piece);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let len = piece.len().min(out.remaining());
        out.put_slice(&piece[..len]);
        if len < piece.len() {
            self.pieces.push_front(piece.split_off(len));
        } else {
            self.pause = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answers.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
