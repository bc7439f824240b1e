//! `backend`: what stands behind a pair where nginx will not do.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
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
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};

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
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(arguments.listen).await?;
    match arguments.kind {
        Kind::Stream { interval } => serve(listener, move |_| events(Duration::from_millis(interval))).await,
        Kind::Sink => serve(listener, swallow).await,
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
