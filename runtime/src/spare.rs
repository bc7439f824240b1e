//! File descriptors that callers cannot take, so that what is under way goes on and the operator is answered when there
//! are no others left.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, dup};
use rustix::process::{Resource, getrlimit};

/// What is kept for other things than new connections: the way on of those that there are, files that are read, renewals.
///
/// The kernel gives the lowest number that is free. So whoever gets a high one knows that all below are in use.
#[derive(Debug, Clone, Copy)]
pub struct Headroom {
    /// The first number that is kept.
    first: RawFd,
}

/// Descriptors that are held for nothing but to be given up.
#[derive(Debug)]
pub(crate) struct Spare(Vec<OwnedFd>);

impl Headroom {
    /// Of the limit that the process has now: a sixteenth, at least 8 and at most 64.
    pub fn of_limit() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let first = limit.saturating_sub((limit / 16).clamp(8, 64));
        Self { first: RawFd::try_from(first).unwrap_or(RawFd::MAX) }
    }

    /// Whether all of it was left when `opened` was opened.
    pub fn was_left_for(self, opened: &impl AsRawFd) -> bool {
        opened.as_raw_fd() < self.first
    }

    /// Whether all of it is left now; `any` is something that is open.
    pub fn is_left(self, any: impl AsFd) -> bool {
        dup(any).is_ok_and(|opened| self.was_left_for(&opened))
    }
}

impl Spare {
    /// As many as the system gives, up to [`COUNT`].
    pub(crate) fn hold() -> Self {
        let mut spare = Self(Vec::new());
        spare.fill();
        spare
    }

    /// Takes back what was given up, as far as there are free ones.
    pub(crate) fn fill(&mut self) {
        while self.0.len() < COUNT {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file.into()),
                Err(_) => return,
            }
        }
    }

    /// Makes one free; false if none is held.
    pub(crate) fn give_up(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

/// Whether the process, or the system, may open no more files.
pub fn out_of_files(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// How many are held: a connection of the operator, one of a scraper, and two more.
const COUNT: usize = 4;
