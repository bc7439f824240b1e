//! Buffers that are held only while there are bytes in them.
//!
//! A connection that waits needs none; most connections wait most of the time. So each thread keeps a few and lends
//! them out. [`ReadAhead`] and [`gathered`] put them below and above TLS.

mod gathered;
mod read_ahead;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) use gathered::{Gathered, Outlet, gathered};
pub(crate) use read_ahead::ReadAhead;

/// Bytes between a reader and a writer: what was filled in and not consumed yet.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    storage: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    /// Whether a part of what was pushed was consumed, and another was not.
    torn: bool,
}

impl Buffer {
    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.storage.as_deref().and_then(|storage| storage.get(self.start..self.end)).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether a part of what was pushed was consumed, and another was not.
    pub(crate) fn is_torn(&self) -> bool {
        self.torn
    }

    /// How many more bytes [`Buffer::push`] takes without growing.
    pub(crate) fn room(&self) -> usize {
        self.storage.as_ref().map_or(SIZE, |storage| storage.len()) - self.end
    }

    /// Takes the first `count` bytes away. The storage goes back once nothing is left.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        self.torn = true;
        if self.start == self.end {
            self.clear();
        }
    }

    /// Empties it.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end, self.torn) = (0, 0, false);
        if let Some(storage) = self.storage.take() {
            give_back(storage);
        }
    }

    /// Appends `bytes`. It grows where there is no room; who does not want that looks at [`Buffer::room`] first.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.room() < bytes.len() {
            self.grow(bytes.len());
        }
        let end = self.end;
        if let Some(place) = self.storage().get_mut(end..end + bytes.len()) {
            place.copy_from_slice(bytes);
            self.end += bytes.len();
        }
    }

    /// Appends `number` in decimal digits, if there is room.
    pub(crate) fn push_number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut begin = digits.len();
        for place in digits.iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            begin -= 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(digits.get(begin..).unwrap_or_default());
    }

    /// Reads once from `io`: how many bytes came, 0 at the end. It grows where there is no room.
    pub(crate) fn poll_fill<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.end > SIZE / 2 {
            self.compact();
        }
        if self.room() == 0 {
            self.grow(1);
        }
        let end = self.end;
        let mut read = ReadBuf::new(self.storage().get_mut(end..).unwrap_or_default());
        let polled = Pin::new(io).poll_read(cx, &mut read);
        let count = read.filled().len();
        self.end += count;
        if self.is_empty() {
            self.clear();
        }
        ready!(polled)?;
        Poll::Ready(Ok(count))
    }

    /// Writes until it is empty.
    pub(crate) fn poll_drain<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let count = ready!(Pin::new(&mut *io).poll_write(cx, self.bytes()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room for `more` bytes; at least twice as much as there was, so that growing step by step is not dear.
    fn grow(&mut self, more: usize) {
        self.compact();
        if self.room() >= more {
            return;
        }
        let mut storage = vec![0; (self.end + more).max(2 * SIZE).next_power_of_two()].into_boxed_slice();
        if let Some(place) = storage.get_mut(..self.end) {
            place.copy_from_slice(self.bytes());
        }
        if let Some(before) = self.storage.replace(storage) {
            give_back(before);
        }
    }

    /// Moves what is in it to the front.
    fn compact(&mut self) {
        if let Some(storage) = &mut self.storage {
            storage.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    fn storage(&mut self) -> &mut [u8] {
        self.storage.get_or_insert_with(lend)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.clear();
    }
}

thread_local! {
    /// What this thread has to lend.
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn lend() -> Box<[u8]> {
    let free = FREE.try_with(|free| free.borrow_mut().pop());
    free.ok().flatten().unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

fn give_back(storage: Box<[u8]>) {
    // The thread may be ending.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < KEPT && storage.len() == SIZE {
            free.push(storage);
        }
    });
}

/// Two TLS records: a larger one gains little in bulk, and a reader that is stuck holds one.
pub(crate) const SIZE: usize = 32 << 10;

/// How many a thread keeps to lend again.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_comes_out_and_the_storage_goes_back_when_it_is_empty() {
        let mut buffer = Buffer::default();
        buffer.push(b"hello");
        buffer.consume(2);
        assert_eq!(buffer.bytes(), b"llo");
        buffer.consume(3);
        assert!(buffer.storage.is_none() && buffer.is_empty());
    }

    #[test]
    fn it_grows_where_it_must_and_keeps_what_is_in_it() {
        let mut buffer = Buffer::default();
        buffer.push(&vec![b'x'; SIZE - 1]);
        buffer.consume(10);
        buffer.push(b"abc");
        assert_eq!(buffer.bytes().len(), SIZE - 8);
        buffer.push(&vec![b'y'; 5 * SIZE]);
        assert_eq!(buffer.bytes().len(), 6 * SIZE - 8);
        assert!(buffer.bytes().starts_with(b"xxx") && buffer.bytes().ends_with(b"yyy"));
        assert_eq!(buffer.bytes().get(SIZE - 11..SIZE - 7), Some(b"abcy".as_slice()));
    }

    #[tokio::test]
    async fn a_reader_that_waits_holds_no_storage() {
        let (mut here, _there) = tokio::io::duplex(64);
        let mut buffer = Buffer::default();
        std::future::poll_fn(|cx| {
            assert!(buffer.poll_fill(&mut here, cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(buffer.storage.is_none());
    }
}
