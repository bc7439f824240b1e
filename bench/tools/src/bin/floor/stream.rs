//! A connection, plain or TLS, and how each side gets one.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Result;
use countersign_bench::http1::connect;
use countersign_bench::tls::server_name;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// A connection of either kind.
pub(crate) enum Stream {
    Plain(TcpStream),
    /// Boxed: an idle task should not hold the room of a TLS state in its future.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where connections come in.
#[derive(Clone)]
pub(crate) struct Door {
    listener: Arc<TcpListener>,
    tls: Option<TlsAcceptor>,
}

impl Door {
    pub(crate) async fn plain(listen: SocketAddr) -> Result<Self> {
        Ok(Self { listener: Arc::new(TcpListener::bind(listen).await?), tls: None })
    }

    pub(crate) async fn tls(listen: SocketAddr, config: Arc<ServerConfig>) -> Result<Self> {
        Ok(Self { tls: Some(config.into()), ..Self::plain(listen).await? })
    }

    pub(crate) async fn accept(&self) -> Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The handshake, if there is one.
    pub(crate) async fn open(&self, accepted: TcpStream) -> Result<Stream> {
        Ok(match &self.tls {
            Some(tls) => Stream::Tls(Box::new(tls.accept(accepted).await?.into())),
            None => Stream::Plain(accepted),
        })
    }
}

/// Where connections go out.
pub(crate) struct Dial {
    to: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Dial {
    pub(crate) fn plain(to: SocketAddr) -> Self {
        Self { to, tls: None }
    }

    pub(crate) fn tls(to: SocketAddr, config: Arc<ClientConfig>) -> Self {
        Self { to, tls: Some(config.into()) }
    }

    pub(crate) async fn connect(&self) -> Result<Stream> {
        let stream = connect(self.to).await?;
        Ok(match &self.tls {
            Some(tls) => Stream::Tls(Box::new(tls.connect(server_name(), stream).await?.into())),
            None => Stream::Plain(stream),
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
