//! `backend`: what stands behind a pair where nginx will not do.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use clap::{Parser, Subcommand};
use countersign_bench::clock::monotonic_nanoseconds;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Backends of the measurements.
#[derive(Parser)]
struct Arguments {
    /// The address to listen on.
    #[arg(long, global = true, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// Server-sent events without end; each is the time at which it was sent, nanoseconds of CLOCK_MONOTONIC.
    Stream {
        /// Milliseconds between two events.
        #[arg(long, default_value_t = 10)]
        interval: u64,
    },
    /// Reads a request whole, then answers with how many bytes its body had.
    Sink,
    /// One endpoint of several: takes its time, then answers with 1 KiB. At `/served` it says how many requests it had
    /// before.
    Endpoint {
        /// Milliseconds until it answers.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// The status of its answers.
        #[arg(long, default_value_t = 200)]
        status: u16,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(arguments.listen).await?;
    match arguments.kind {
        Kind::Stream { interval } => serve(listener, move |_| events(Duration::from_millis(interval))).await,
        Kind::Sink => serve(listener, swallow).await,
        Kind::Endpoint { after, status } => {
            let (after, status) = (Duration::from_millis(after), StatusCode::from_u16(status)?);
            let served = Arc::new(AtomicU64::new(0));
            serve(listener, move |request| endpoint(request, after, status, Arc::clone(&served))).await
        }
    }
}

async fn serve<Answer, B>(
    listener: TcpListener,
    answer: impl Fn(Request<Incoming>) -> Answer + Clone + Send + 'static,
) -> Result<()>
where
    Answer: Future<Output = Result<Response<B>, hyper::Error>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A client that leaves in the middle of a stream is how each stream ends.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer.clone())));
    }
}

async fn events(every: Duration) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = stream::unfold(ticks, async |mut ticks| {
        ticks.tick().await;
        let event = Bytes::from(format!("data: {}\n\n", monotonic_nanoseconds()));
        Some((Ok(Frame::data(event)), ticks))
    });
    let mut response = Response::new(StreamBody::new(events));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

async fn swallow(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let mut body = request.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(Response::new(Full::from(bytes.to_string())))
}

async fn endpoint(
    request: Request<Incoming>,
    after: Duration,
    status: StatusCode,
    served: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    if request.uri().path() == "/served" {
        return Ok(Response::new(Full::from(served.load(Ordering::Relaxed).to_string())));
    }
    served.fetch_add(1, Ordering::Relaxed);
    if !after.is_zero() {
        sleep(after).await;
    }
    let mut response = Response::new(Full::from(vec![b'x'; 1024]));
    *response.status_mut() = status;
    Ok(response)
}
