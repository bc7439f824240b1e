//! Apps behind a sidecar.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(crate) type AppBody = BoxBody<Bytes, hyper::Error>;

pub(crate) struct App {
    pub(crate) address: SocketAddr,
    /// How many connections it has accepted.
    pub(crate) accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// An answer of a known length.
pub(crate) fn answer(text: impl Into<Bytes>) -> Response<AppBody> {
    Response::new(Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed())
}

/// A socket on whose connections little is held on the way to it. The kernel of who sends holds some segments, so they are
/// small.
pub(crate) fn narrow() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(1024).unwrap();
    socket.set_tcp_mss(88).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

impl App {
    /// Answers in HTTP/1.
    pub(crate) async fn http1<S, F>(answer: S) -> Self
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<AppBody>> + Send + 'static,
    {
        Self::accept(move |tcp| {
            let answer = answer.clone();
            async move {
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(tcp), service).with_upgrades().await;
            }
        })
        .await
    }

    /// Answers in HTTP/2.
    pub(crate) async fn http2<S, F>(answer: S) -> Self
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<AppBody>> + Send + 'static,
    {
        Self::accept(move |tcp| {
            let answer = answer.clone();
            async move {
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(tcp), service).await;
            }
        })
        .await
    }

    /// Does what it likes with each connection.
    pub(crate) async fn tcp<S, F>(serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::accept(serve).await
    }

    /// As [`App::tcp`], over connections that hold little on the way to it: who sends more than it reads waits.
    pub(crate) async fn narrow<S, F>(serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let socket = narrow();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(16).unwrap();
        Self::serve(TcpListener::from_std(socket.into()).unwrap(), serve)
    }

    /// Gives back each byte.
    pub(crate) async fn echo() -> Self {
        Self::tcp(|mut tcp| async move {
            let (mut from, mut to) = tcp.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        })
        .await
    }

    async fn accept<S, F>(serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), serve)
    }

    fn serve<S, F>(listener: TcpListener, serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(tcp));
            }
        });
        Self { address, accepted, task }
    }

    /// Accepts no connection any more.
    pub(crate) fn leave(&self) {
        self.task.abort();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}
