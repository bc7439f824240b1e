//! A client that writes what it is told and reads HTTP/1.1 answers strictly, in plain or over mutual TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_integration::frames::Stream;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How a client reaches the backend.
#[derive(Clone)]
pub(crate) enum Way {
    /// As the app of a sidecar: in plain, to its outbound listener.
    Outbound(SocketAddr),
    /// As whoever holds an SVID: over mutual TLS, to the inbound listener.
    Inbound(SocketAddr, Arc<ClientConfig>),
    /// As [`Way::Outbound`], to a listener on which a crowd may be under way.
    Crowded(SocketAddr),
}

/// How the bytes are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Whole,
    /// Each byte by itself; of what is long, those at both ends.
    Bytes,
}

pub(crate) struct Client {
    reader: ReadHalf<Stream>,
    /// The task that writes; it gives the writer back.
    writing: Option<JoinHandle<WriteHalf<Stream>>>,
    received: Vec<u8>,
}

/// A response, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `x-countersign-fault`.
    pub(crate) fault: Option<String>,
    /// `x-seen`: which request the backend says that it answers.
    pub(crate) seen: Option<String>,
    /// Whether the connection ends with it.
    pub(crate) close: bool,
    pub(crate) body: Vec<u8>,
}

impl Way {
    pub(crate) async fn connect(&self) -> Client {
        let (reader, writer) = tokio::io::split(self.dial(false).await);
        Client { reader, writing: Some(tokio::spawn(async { writer })), received: Vec::new() }
    }

    /// A connection on which nothing was said yet but, over TLS, that it is for HTTP/2.
    pub(crate) async fn dial(&self, http2: bool) -> Stream {
        let (Self::Outbound(address) | Self::Inbound(address, _) | Self::Crowded(address)) = self;
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let Self::Inbound(_, config) = self else { return Box::new(tcp) };
        let mut config = ClientConfig::clone(config);
        if http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let name = ServerName::try_from("sidecar.test").unwrap();
        Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap())
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Outbound(_) => "outbound",
            Self::Inbound(..) => "inbound",
            Self::Crowded(_) => "crowded",
        }
    }
}

impl Client {
    /// Writes while the answers are read; then ends its side, with `end`. That the other side takes no more is its
    /// right: what it answers is what counts.
    pub(crate) fn send(&mut self, bytes: &[u8], pace: Pace, end: bool) {
        let (bytes, before) = (bytes.to_vec(), self.writing.take().unwrap());
        self.writing = Some(tokio::spawn(async move {
            let mut writer = before.await.unwrap();
            let slow = if pace == Pace::Bytes { ENDS } else { 0 };
            let (head, rest) = bytes.split_at(slow.min(bytes.len()));
            let (middle, tail) = rest.split_at(rest.len().saturating_sub(slow));
            let pieces = head.chunks(1).chain([middle]).chain(tail.chunks(1)).filter(|piece| !piece.is_empty());
            for piece in pieces {
                if writer.write_all(piece).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            if end {
                let _ = writer.shutdown().await;
            }
            writer
        }));
    }

    /// The next answer, to a request of `method`; those with 1xx are passed over.
    pub(crate) async fn answer(&mut self, method: &str) -> Result<Answer, String> {
        timeout(PATIENCE, self.read_answer(method)).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    /// The end of the connection, with nothing before it.
    pub(crate) async fn ended(&mut self) -> Result<(), String> {
        let more = timeout(PATIENCE, self.more()).await.map_err(|_| "the connection stays open".to_owned())?;
        if more.is_err() && self.received.is_empty() { Ok(()) } else { Err(format!("more came: {}", self.shown())) }
    }

    /// One request and its answer.
    pub(crate) async fn ask(&mut self, target: &str) -> Result<Answer, String> {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), Pace::Whole, false);
        self.answer("GET").await
    }

    async fn read_answer(&mut self, method: &str) -> Result<Answer, String> {
        loop {
            let (mut answer, framing) = self.read_head().await?;
            if (100..200).contains(&answer.status) && answer.status != 101 {
                continue;
            }
            if method != "HEAD" && !matches!(answer.status, 101 | 204 | 304) {
                self.read_body(&framing, &mut answer).await?;
            }
            return Ok(answer);
        }
    }

    async fn read_head(&mut self) -> Result<(Answer, Framing), String> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; 128];
            let mut response = httparse::Response::new(&mut fields);
            if let httparse::Status::Complete(len) =
                response.parse(&self.received).map_err(|error| format!("{error}: {}", self.shown()))?
            {
                let field = |name: &str| {
                    let mut all = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
                    let found = all.next().map(|header| String::from_utf8_lossy(header.value).into_owned());
                    if all.next().is_some() { Err(format!("{name} came twice")) } else { Ok(found) }
                };
                let framing = Framing { length: field("content-length")?, encoding: field("transfer-encoding")? };
                let answer = Answer {
                    status: response.code.unwrap(),
                    fault: field("x-countersign-fault")?,
                    seen: field("x-seen")?,
                    close: field("connection")?.as_deref() == Some("close") || response.version == Some(0),
                    body: Vec::new(),
                };
                let head: Vec<u8> = self.received.drain(..len).collect();
                if head.split_inclusive(|byte| *byte == b'\n').any(|line| !line.ends_with(b"\r\n")) {
                    return Err(format!("a bare line feed in {}", String::from_utf8_lossy(&head)));
                }
                return Ok((answer, framing));
            }
            self.more().await?;
        }
    }

    async fn read_body(&mut self, framing: &Framing, answer: &mut Answer) -> Result<(), String> {
        let cut = |why: String| format!("cut behind {}: {why}", answer.status);
        match (&framing.length, &framing.encoding) {
            (Some(length), None) => {
                let length = length.parse().map_err(|_| format!("content-length: {length}"))?;
                answer.body = self.take(length).await.map_err(cut)?;
            }
            (None, Some(encoding)) if encoding == "chunked" => loop {
                let size = self.line().await.map_err(cut)?;
                let size = usize::from_str_radix(&size, 16).map_err(|_| format!("chunk size {size:?}"))?;
                answer.body.extend(self.take(size).await.map_err(cut)?);
                if size == 0 {
                    while !self.line().await.map_err(cut)?.is_empty() {}
                    return Ok(());
                }
                let end = self.line().await.map_err(cut)?;
                if !end.is_empty() {
                    return Err(format!("{end:?} behind a chunk"));
                }
            },
            (None, None) if answer.close => {
                while self.more().await.is_ok() {}
                answer.body = std::mem::take(&mut self.received);
            }
            other => return Err(format!("a body of unclear length: {other:?}")),
        }
        Ok(())
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.received.len() < length {
            self.more().await?;
        }
        Ok(self.received.drain(..length).collect())
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(at) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line = self.take(at + 2).await?;
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), String> {
        match self.reader.read_buf(&mut self.received).await {
            Ok(0) => Err(ENDED.to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{ENDED}: {error}")),
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.received[..self.received.len().min(300)]).into_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(writing) = &self.writing {
            writing.abort();
        }
    }
}

struct Framing {
    length: Option<String>,
    encoding: Option<String>,
}

/// How the reason begins where the other side ended the connection.
pub(crate) const ENDED: &str = "the connection ended";

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How much of long bytes is written byte by byte, at each end.
const ENDS: usize = 400;
