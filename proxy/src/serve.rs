//! The server's side of HTTP on a connection, with every limit set.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use countersign_runtime::Lifecycle;
use futures::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::buffer::{Outlet, gathered};
use crate::exchange::Upgraded;
use crate::fast::Left;
use crate::guard::{Framed, HeadLimits};
use crate::live::Connection;
use crate::live::body::Body;
use crate::pool::{CONNECTION_WINDOW, STREAM_WINDOW};

/// Serves HTTP/1 on a connection until it ends, and then the upgrade that its last request led to.
pub(crate) async fn serve_http1<T, S, F>(connection: &Arc<Connection>, left: Left<T>, upgraded: &Upgraded, answer: S)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send,
{
    let limits = &connection.listener.limits;
    let head = HeadLimits { bytes: limits.header_bytes as usize, headers: limits.headers };
    let framed = Framed::resumed(left.io, left.read, head);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(limits.headers)
        // `framed` has held the head to the limit; hyper asks for a buffer that it cannot fill.
        .max_buf_size(limits.header_bytes as usize + 4096)
        // What the app sends is what the caller gets; a date is the app's to set.
        .auto_date_header(false);
    let service = service_fn(|request| answer(request).map(Ok::<_, Infallible>));
    let served = builder.serve_connection(TokioIo::new(framed), service).with_upgrades();
    note(connection, connection.serve(served, |served| served.graceful_shutdown()).await);
    if let Some(tunnel) = upgraded.take() {
        tunnel.run(connection).await;
    }
}

/// Serves HTTP/2 on a connection until it ends.
pub(crate) async fn serve_http2<T, S, F>(connection: &Arc<Connection>, io: T, lifecycle: &Lifecycle, answer: S)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let limits = &connection.listener.limits;
    let mut builder = http2::Builder::new(Executor(lifecycle.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.header_bytes)
        // What a stream may hold of the app's answer while the caller does not read.
        .max_send_buf_size(64 << 10)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(
            CONNECTION_WINDOW.max(STREAM_WINDOW.saturating_mul(limits.streams).min(MOST_WINDOW)),
        )
        .auto_date_header(false);
    let service = service_fn(|request| answer(request).map(Ok::<_, Infallible>));
    let (io, outlet) = gathered(io);
    let served = Box::pin(builder.serve_connection(TokioIo::new(io), service));
    let draining = Draining { served, outlet };
    note(
        connection,
        connection.serve(draining, |draining| draining.get_mut().served.as_mut().graceful_shutdown()).await,
    );
}

/// A connection of HTTP/2, whose frames go out together after each of its turns.
struct Draining<C, T> {
    served: Pin<Box<C>>,
    outlet: Outlet<T>,
}

impl<C: Future, T: AsyncWrite + Unpin> Future for Draining<C, T> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = self.served.as_mut().poll(cx);
        // An error is found by the next turn that reads or writes.
        let _ = self.outlet.poll_drain(cx);
        polled
    }
}

/// A connection that broke is its peer's affair; it is worth a line for who looks for it.
fn note(connection: &Connection, ended: Option<hyper::Result<()>>) {
    if let Some(Err(error)) = ended {
        if error.is_timeout() {
            connection.listener.metrics.ended("head");
        }
        tracing::debug!(listener = %connection.listener.name, remote = %connection.remote, %error, "a connection broke");
    }
}

/// Runs hyper's tasks as part of the life of the process.
#[derive(Clone)]
struct Executor(Lifecycle);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.0.spawn(task));
    }
}

/// RFC 9113, section 6.9.1.
const MOST_WINDOW: u32 = i32::MAX.unsigned_abs();
