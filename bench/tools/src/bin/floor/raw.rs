//! HTTP/1.1 framed by hand: heads are parsed for their framing only and go on byte for byte, connections out are
//! pooled. A head and what is there of its body leave in one write.

mod framing;

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::{Dial, Stream};
use framing::{Body, Head};

/// What is dialled, and the connections to it that are idle, last used first.
pub(crate) struct Upstream {
    dial: Dial,
    idle: Mutex<Vec<Peer>>,
    buffer: usize,
}

/// One end: a connection, and what was read from it and not yet sent on.
struct Peer {
    stream: Stream,
    unsent: BytesMut,
    /// How much is read at once.
    capacity: usize,
}

impl Upstream {
    pub(crate) fn new(dial: Dial, buffer: usize) -> Self {
        Self { dial, idle: Mutex::default(), buffer }
    }

    async fn take(&self) -> Result<Peer> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(peer) => Ok(peer),
            None => Ok(Peer::new(self.dial.connect().await?, self.buffer)),
        }
    }

    fn put(&self, peer: Peer) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
    }
}

/// Carries the requests of one connection.
pub(crate) async fn serve(stream: Stream, to: &Upstream) -> Result<()> {
    let mut client = Peer::new(stream, to.buffer);
    while let Some(request) = client.head(framing::request).await? {
        let mut upstream = to.take().await?;
        client.relay(&mut upstream, request.length, request.body).await?;
        let response = loop {
            let Some(head) = upstream.head(|bytes| framing::response(bytes, request.is_head)).await? else {
                bail!("the connection was closed instead of an answer");
            };
            if !head.interim {
                break head;
            }
            upstream.relay(&mut client, head.length, Body::Length(0)).await?;
        };
        upstream.relay(&mut client, response.length, response.body).await?;
        if !response.close {
            to.put(upstream);
        }
        if request.close || response.close {
            break;
        }
    }
    Ok(client.stream.shutdown().await?)
}

impl Peer {
    fn new(stream: Stream, capacity: usize) -> Self {
        Self { stream, unsent: BytesMut::new(), capacity }
    }

    /// Reads until a head is whole; `None` if the connection ends before one begins.
    async fn head(&mut self, parse: impl Fn(&[u8]) -> Result<Option<Head>>) -> Result<Option<Head>> {
        loop {
            if let Some(head) = parse(&self.unsent)? {
                return Ok(Some(head));
            }
            if !self.read().await? {
                ensure!(self.unsent.is_empty(), "the connection was closed within a head");
                return Ok(None);
            }
        }
    }

    /// Sends a head of `length` bytes on, and its body to the end.
    async fn relay(&mut self, to: &mut Self, length: usize, mut body: Body) -> Result<()> {
        let mut ready = length + body.consume(&self.unsent[length..])?;
        loop {
            to.stream.write_all(&self.unsent[..ready]).await?;
            self.unsent.advance(ready);
            if body.is_whole() {
                return Ok(to.stream.flush().await?);
            }
            // What has come must not wait in a TLS buffer for what has not.
            to.stream.flush().await?;
            if !self.read().await? {
                ensure!(body == Body::UntilClose, "the connection was closed within a body");
                return Ok(());
            }
            ready = body.consume(&self.unsent)?;
        }
    }

    async fn read(&mut self) -> Result<bool> {
        self.unsent.reserve(self.capacity);
        Ok(self.stream.read_buf(&mut self.unsent).await? > 0)
    }
}
