//! An app of HTTP/1.1 that the test can watch: it says which requests reach it, and when their callers are gone.
//!
//! | path | what it does |
//! |---|---|
//! | `/bytes/N` | answers N bytes, those of [`bytes`] |
//! | `/closed/N` | answers N bytes whose end is that of the connection |
//! | `/sum` | reads the body to its end and answers its [`sum`] |
//! | `/told/…` | reads the body to its end, and tells the test how long it was |
//! | `/pieces/N` | answers N pieces, one a millisecond |
//! | `/paused/N` | answers a piece, and another after N seconds |
//! | `/socket` | switches protocols and sends back what it gets |
//! | `/silent/…` | never answers |
//! | `/endless/…` | answers pieces without end |
//! | `/sink/…` | reads the body and does not answer |
//! | `/deaf/…` | does not read the body |
//! | else | answers its path |

use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::plain::{Connection, field};

/// The app.
pub struct Backend {
    pub address: SocketAddr,
    /// Of the requests that are not answered whole: `asked PATH` when it came, `gone PATH` when its caller went. Of a
    /// body that is to be told: `whole LENGTH`.
    pub heard: UnboundedReceiver<String>,
}

impl Backend {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, heard) = unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                tokio::spawn(serve(Connection::over(tcp), tell.clone()));
            }
        });
        Self { address, heard }
    }
}

/// The first `count` bytes of a sequence that looks like no shift of itself but by its period.
pub fn bytes(count: usize) -> Vec<u8> {
    period().repeat(count / PERIOD + 1)[..count].to_vec()
}

/// Length and hash of a body.
pub fn sum(body: &[u8]) -> String {
    format!("{} {:x?}", body.len(), digest::digest(&digest::SHA256, body).as_ref())
}

fn period() -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..PERIOD as u64).map(|place| place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
    });
    &BYTES
}

/// Serves a connection until it ends; how it ends is the caller's affair.
async fn serve(mut connection: Connection<TcpStream>, tell: UnboundedSender<String>) {
    while let Ok(true) = answer(&mut connection, &tell).await {}
}

/// Answers a request; `false` if the connection is of no use any more.
async fn answer(connection: &mut Connection<TcpStream>, tell: &UnboundedSender<String>) -> io::Result<bool> {
    let head = connection.head().await?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let number = || path.rsplit('/').next().and_then(|number| number.parse::<usize>().ok()).unwrap_or_default();
    match path.split('/').nth(1).unwrap_or_default() {
        "bytes" => {
            connection.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", number()).as_bytes()).await?;
            for _ in 0..number() / PERIOD {
                connection.send(period()).await?;
            }
            connection.send(&period()[..number() % PERIOD]).await?;
        }
        "closed" => {
            connection.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
            for _ in 0..number() / PERIOD {
                connection.send(period()).await?;
            }
            connection.send(&period()[..number() % PERIOD]).await?;
            return Ok(false);
        }
        "sum" => {
            let body = body(connection, &head).await?;
            whole(connection, sum(&body).as_bytes()).await?;
        }
        "told" => {
            let body = body(connection, &head).await?;
            // The test may have heard enough.
            let _ = tell.send(format!("whole {}", body.len()));
            whole(connection, b"told").await?;
        }
        "pieces" => {
            connection.send(CHUNKED).await?;
            for piece in 0..number() {
                connection.send(&chunk(&format!("piece {piece}\n"))).await?;
                // A pace, so that they stay pieces on the way.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            connection.send(b"0\r\n\r\n").await?;
        }
        "paused" => {
            connection.send(&[CHUNKED, &chunk("first\n")].concat()).await?;
            // The silence that was asked for.
            tokio::time::sleep(Duration::from_secs(number() as u64)).await;
            connection.send(&[chunk("last\n").as_slice(), b"0\r\n\r\n"].concat()).await?;
        }
        "socket" => {
            connection
                .send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                .await?;
            let io = connection.io();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..count]).await?;
                io.flush().await?;
            }
            return Ok(false);
        }
        "silent" | "endless" | "sink" | "deaf" => {
            // The test may have heard enough.
            let _ = tell.send(format!("asked {path}"));
            hang(connection, &path).await;
            let _ = tell.send(format!("gone {path}"));
            return Ok(false);
        }
        _ => {
            body(connection, &head).await?;
            whole(connection, path.as_bytes()).await?;
        }
    }
    Ok(true)
}

/// Does what `path` says until the caller is gone.
async fn hang(connection: &mut Connection<TcpStream>, path: &str) {
    if path.starts_with("/deaf") {
        return std::future::pending().await;
    }
    if !path.starts_with("/endless") {
        return connection.ended().await;
    }
    let endless = async {
        let (mut reader, mut writer) = tokio::io::split(connection.io());
        let writes = async {
            writer.write_all(CHUNKED).await?;
            loop {
                writer.write_all(&chunk("more\n")).await?;
                writer.flush().await?;
                // A pace at which no buffer on the way fills.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            ended = writes => ended,
            _ = reader.read_u8() => Ok::<(), io::Error>(()),
        }
    };
    let _ = endless.await;
}

/// Reads the body of the request with this head.
async fn body(connection: &mut Connection<TcpStream>, head: &str) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if field(head, "transfer-encoding").is_some() {
        while let Some(chunk) = connection.chunk().await? {
            body.extend(chunk);
        }
    } else if let Some(length) = field(head, "content-length") {
        body = vec![0; length.parse().map_err(io::Error::other)?];
        connection.io().read_exact(&mut body).await?;
    }
    Ok(body)
}

async fn whole(connection: &mut Connection<TcpStream>, body: &[u8]) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.send(&[head.as_bytes(), body].concat()).await
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

/// A prime, so that no buffer's size divides it.
const PERIOD: usize = 65_537;

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
