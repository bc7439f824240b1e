//! HTTP/1.1 on one connection, by hand: a client that does no more than it is told (nothing is sent twice, nothing
//! reopened), and what the other end of it needs too.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One connection.
pub struct Connection<T> {
    io: BufReader<T>,
}

/// A response, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Its head, as it came.
    pub head: String,
    pub body: Vec<u8>,
}

impl Connection<TcpStream> {
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        Ok(Self::over(tcp))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// Over a connection that is there.
    pub fn over(io: T) -> Self {
        // Small, for a test holds thousands of them.
        Self { io: BufReader::with_capacity(1024, io) }
    }

    /// What is under it, with what was read of it already.
    pub fn io(&mut self) -> &mut BufReader<T> {
        &mut self.io
    }

    pub fn into_inner(self) -> T {
        self.io.into_inner()
    }

    /// A request without a body, and its answer.
    pub async fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.ask("GET", path, "", b"").await
    }

    /// A request with `more` header lines, and its answer.
    pub async fn ask(&mut self, method: &str, path: &str, more: &str, body: &[u8]) -> io::Result<Answer> {
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: app.test\r\n{length}{more}\r\n");
        timeout(PATIENCE, async {
            self.send(head.as_bytes()).await?;
            self.send(body).await?;
            self.answer().await
        })
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes these bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Reads a response.
    pub async fn answer(&mut self) -> io::Result<Answer> {
        let head = self.head().await?;
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a response: {head:?}")))?;
        let mut body = Vec::new();
        if field(&head, "transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk().await? {
                body.extend(chunk);
            }
        } else if let Some(length) = field(&head, "content-length") {
            body = vec![0; length.parse().map_err(io::Error::other)?];
            self.io.read_exact(&mut body).await?;
        }
        Ok(Answer { status, head, body })
    }

    /// Reads a head.
    pub async fn head(&mut self) -> io::Result<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.io.read_line(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(head)
    }

    /// Reads a chunk; none after the last.
    pub async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        self.io.read_line(&mut line).await?;
        let length = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; length + 2];
        self.io.read_exact(&mut chunk).await?;
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }

    /// Reads until the other side ends the connection, one way or the other.
    pub async fn ended(&mut self) {
        let mut rest = [0; 4096];
        while matches!(self.io.read(&mut rest).await, Ok(1..)) {}
    }
}

/// The value of a header field in `head`.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let of_name = |line: &&str| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    let line = head.lines().find(|line| of_name(line) && line[name.len()..].starts_with(':'))?;
    Some(line[name.len() + 1..].trim())
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
