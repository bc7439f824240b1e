//! What an app does as a client.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::soon;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().boxed()
}

/// A body of known length.
pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// A request to `path`.
pub(crate) fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(path).header("host", "app.test").body(body).unwrap()
}

/// One connection that speaks HTTP/1.
pub(crate) async fn http1(address: SocketAddr) -> http1::SendRequest<Body> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// One connection that speaks HTTP/2 by prior knowledge.
pub(crate) async fn http2(address: SocketAddr) -> http2::SendRequest<Body> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a request over a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: Request<Body>) -> Response<Incoming> {
    let mut sender = http1(address).await;
    soon("a response", sender.send_request(request)).await.unwrap()
}

/// The whole body as text.
pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = soon("the end of a body", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Status and body of a GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut request = request("GET", path, empty());
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    let response = send(address, request).await;
    (response.status().as_u16(), text(response).await)
}

/// As [`get`], where nobody may answer.
pub(crate) async fn try_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let tcp = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.ok()?;
    tokio::spawn(connection);
    let mut request = request("GET", path, empty());
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A body whose pieces the test sends; it ends when the sender is dropped.
pub(crate) struct Pieces(mpsc::UnboundedReceiver<Bytes>);

/// A body and what sends its pieces.
pub(crate) fn pieces() -> (mpsc::UnboundedSender<Bytes>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Pieces(receiver).boxed())
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
