//! What is at the end of every chain: an app that sends back what it got, and tells who it was told the caller is.

use std::net::SocketAddr;

use countersign_integration::free_address;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Starts one. Its answer has the body of the request, `x-target`, and in `x-caller` the identity of the caller as the
/// sidecar or the peer before it said it.
pub(crate) async fn start() -> SocketAddr {
    let address = free_address();
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let server = hyper::server::conn::http1::Builder::new();
            let service = service_fn(async |request| Ok::<_, hyper::Error>(answer(request).await?));
            tokio::spawn(async move { server.serve_connection(TokioIo::new(tcp), service).await });
        }
    });
    address
}

/// Answers when the request is whole: nginx does not carry long bodies both ways at once.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let mut response = Response::builder().header("x-target", format!("{} {}", parts.method, parts.uri));
    for name in ["x-forwarded-client-cert", "x-verified"] {
        for value in parts.headers.get_all(name) {
            response = response.header("x-caller", value);
        }
    }
    Ok(response.body(Full::new(body.collect().await?.to_bytes())).unwrap())
}
