//! Lines of text over a unix socket, with each of which one socket may go.
//!
//! The kernel gives a socket with the bytes that it was sent with or with some before them, never later; so the next line
//! that needs one takes the first that came.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A connection between two processes.
#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
    /// What came and was not heard yet.
    read: Vec<u8>,
    sockets: VecDeque<OwnedFd>,
}

/// A line, and the socket that came with it.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) text: String,
    pub(super) socket: Option<OwnedFd>,
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, read: Vec::new(), sockets: VecDeque::new() }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a line; `text` has no end of line.
    pub(super) async fn say(&self, text: &str, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let line = format!("{text}\n");
        let mut rest = line.as_bytes();
        let mut socket = socket;
        while !rest.is_empty() {
            let send = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let sockets = socket.as_slice();
                if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                Ok(sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?)
            };
            let sent = self.stream.async_io(Interest::WRITABLE, send).await?;
            rest = rest.get(sent..).unwrap_or_default();
            // It went with the first bytes.
            socket = None;
        }
        Ok(())
    }

    /// The next line; none once the other end has closed. Safe to cancel.
    pub(super) async fn hear(&mut self) -> io::Result<Option<Heard>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                let socket = if text.starts_with("socket ") { self.sockets.pop_front() } else { None };
                return Ok(Some(Heard { text, socket }));
            }
            if self.read.len() > LONGEST || self.sockets.len() > MOST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it says too much at once"));
            }
            let receive = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut bytes = [0; 512];
                let flags = RecvFlags::CMSG_CLOEXEC;
                let got = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
                if got.flags.contains(ReturnFlags::CTRUNC) {
                    return Err(io::Error::other("a socket did not arrive: this process has too many open files"));
                }
                let mut sockets = Vec::new();
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        sockets.extend(rights);
                    }
                }
                Ok((bytes.get(..got.bytes).unwrap_or_default().to_vec(), sockets))
            };
            let (bytes, sockets) = self.stream.async_io(Interest::READABLE, receive).await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.read.extend(bytes);
            self.sockets.extend(sockets);
        }
    }
}

/// The longest line.
const LONGEST: usize = 4096;

/// Sockets that came before the lines that they belong to.
const MOST: usize = 64;
