//! Buffers that are held only while there are bytes in them.
//!
//! A connection that waits needs none; most connections wait most of the time. So each thread keeps a few and lends
//! them out.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes between a reader and a writer: what was filled in and not consumed yet.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    storage: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.storage.as_deref().and_then(|storage| storage.get(self.start..self.end)).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// How many more bytes [`Buffer::push`] takes.
    pub(crate) fn room(&self) -> usize {
        SIZE - self.end
    }

    /// Takes the first `count` bytes away. The storage goes back once nothing is left.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.start == self.end {
            self.clear();
        }
    }

    /// Empties it.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        if let Some(storage) = self.storage.take() {
            give_back(storage);
        }
    }

    /// Appends as many of `bytes` as there is room for.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        let (bytes, _) = bytes.split_at(count);
        let end = self.end;
        if let Some(place) = self.storage().get_mut(end..end + count) {
            place.copy_from_slice(bytes);
        }
        self.end += count;
        count
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

    /// Reads once from `io`: how many bytes came, 0 at the end. There must be room.
    pub(crate) fn poll_fill<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.end > SIZE / 2 {
            self.compact();
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
        if free.len() < KEPT {
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
        assert_eq!(buffer.push(b"hello"), 5);
        buffer.consume(2);
        assert_eq!(buffer.bytes(), b"llo");
        buffer.consume(3);
        assert!(buffer.storage.is_none() && buffer.is_empty());
        assert_eq!(buffer.push(&vec![b'x'; SIZE + 1]), SIZE);
        assert_eq!(buffer.room(), 0);
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
