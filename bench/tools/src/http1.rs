//! An HTTP/1.1 client for load: one connection, one request at a time, responses framed by `Content-Length`.
//!
//! It has no policy and makes no copy, so that what it costs is small beside what it measures.

use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where a request goes: `http://ADDRESS:PORT/PATH`.
#[derive(Debug, Clone)]
pub struct Target {
    /// Whom to dial.
    pub address: SocketAddr,
    /// What to ask for.
    pub path: String,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").context("the URL does not begin with http://")?;
        let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address = address.parse().with_context(|| format!("{address} is not an address with a port"))?;
        Ok(Self { address, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
    }
}

impl Target {
    /// A GET of it, ready to be sent.
    pub fn get(&self) -> Vec<u8> {
        format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", self.path, self.address).into_bytes()
    }

    /// The head of a POST to it; `length` bytes have to follow.
    pub fn post(&self, length: u64) -> Vec<u8> {
        format!("POST {} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n", self.path, self.address)
            .into_bytes()
    }
}

/// A TCP connection without Nagle's delay.
///
/// # Errors
/// It cannot be made.
pub async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One kept-alive connection.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// What was read and not yet used.
    buffer: BytesMut,
    /// How much is read at once.
    capacity: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection over `stream` that reads up to `capacity` bytes at once.
    pub fn new(stream: S, capacity: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), capacity }
    }

    /// Sends a request and reads the whole response, which has to be 200. Returns the length of its body.
    ///
    /// # Errors
    /// The connection broke, or the answer was another.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<u64> {
        self.send(request).await?;
        self.response().await
    }

    /// Sends bytes, of which no copy is kept.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Reads a whole response, which has to be 200. Returns the length of its body, which is thrown away.
    ///
    /// # Errors
    /// The connection broke, or the answer was another.
    pub async fn response(&mut self) -> Result<u64> {
        let length = loop {
            if let Some((head, length)) = head(&self.buffer)? {
                self.buffer.advance(head);
                break length;
            }
            self.read().await?;
        };
        let mut left = length;
        loop {
            let used = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.buffer.advance(used);
            left -= used as u64;
            if left == 0 {
                return Ok(length);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<()> {
        self.buffer.reserve(self.capacity);
        ensure!(
            self.stream.read_buf(&mut self.buffer).await? > 0,
            "the connection was closed before the answer was whole"
        );
        Ok(())
    }
}

/// The length of a head of status 200, and of the body after it; `None` while it is not whole.
fn head(bytes: &[u8]) -> Result<Option<(usize, u64)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    if response.code != Some(200) {
        bail!("the answer is {}", response.code.unwrap_or_default());
    }
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.context("the answer has no Content-Length")?;
    Ok(Some((head, std::str::from_utf8(length.value)?.parse()?)))
}
