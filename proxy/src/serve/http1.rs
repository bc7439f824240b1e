//! HTTP/1 as the general path has it: hyper behind the guard's framing.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use http::Request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::call::{Answers, Back, Call, Incoming, Interim, Switch, Upgraded};
use crate::fast::Left;
use crate::guard::{Framed, HeadLimits};
use crate::live::Connection;

/// Serves HTTP/1 on a connection until it ends, and then the upgrade that its last request led to.
pub(crate) async fn serve_http1<T, A>(connection: &Arc<Connection>, left: Left<T>, caller: &Arc<A>)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: Answers,
{
    let limits = &connection.listener.limits;
    let head = HeadLimits { bytes: limits.header_bytes as usize, headers: limits.headers };
    let late = Arc::new(AtomicBool::new(false));
    let framed = Framed::resumed(left.io, left.read, head).heads_within(limits.head, Arc::clone(&late));
    let mut builder = http1::Builder::new();
    builder
        // `framed` bounds the time of a head. hyper would bound the time between two requests with it.
        .header_read_timeout(None)
        .max_headers(limits.headers)
        // `framed` has held the head to the limit; hyper asks for a buffer that it cannot fill.
        .max_buf_size(limits.header_bytes as usize + 4096)
        // What the app sends is what the caller gets; a date is the app's to set.
        .auto_date_header(false);
    let (upgraded, asked) = (Upgraded::default(), Mutex::new(None));
    let service = service_fn(|mut request: Request<hyper::body::Incoming>| {
        let switch = request.extensions_mut().remove::<OnUpgrade>().map(|caller| {
            *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(caller);
            Switch::new(false, upgraded.clone())
        });
        let (parts, body) = request.into_parts();
        let back = Back { interim: Interim::default(), switch };
        Arc::clone(caller).answer(Call { parts, body: Incoming::Http1(body), back }).map(Ok::<_, Infallible>)
    });
    let served = builder.serve_connection(TokioIo::new(framed), service).with_upgrades();
    if let Some(Err(error)) = connection.serve(served, |served| served.graceful_shutdown()).await {
        // A connection that broke is its peer's affair; it is worth a line for who looks for it.
        tracing::debug!(listener = %connection.listener.name, remote = %connection.remote, %error, "a connection broke");
    }
    if late.load(Ordering::Relaxed) {
        connection.listener.metrics.ended("head");
    }
    let caller = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(tunnel), Some(caller)) = (upgraded.take(), caller) {
        let caller = async { caller.await.map(TokioIo::new).map_err(std::io::Error::other) };
        tunnel.run(connection, caller).await;
    }
}
