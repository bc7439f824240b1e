//! The apps that are no [`Backend`]: one of HTTP/2, and one of bytes. Both send back what they get.
//!
//! [`Backend`]: countersign_integration::Backend

use std::convert::Infallible;
use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// Answers each call with its own messages.
pub(crate) async fn calls() -> SocketAddr {
    serve(|tcp| async {
        let service =
            service_fn(|request: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(request.into_body())) });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // How it ends is the caller's affair.
        let _ = server.serve_connection(TokioIo::new(tcp), service).await;
    })
    .await
}

/// Sends back each byte.
pub(crate) async fn bytes() -> SocketAddr {
    serve(|mut tcp| async move {
        let (mut from, mut to) = tcp.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await
}

async fn serve<F: Future<Output = ()> + Send + 'static>(answer: fn(TcpStream) -> F) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(tcp));
        }
    });
    address
}
