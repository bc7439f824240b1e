//! File descriptors kept for when there are none left, so that the operator is answered then.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// Descriptors that are held for nothing but to be given up.
#[derive(Debug)]
pub(crate) struct Spare(Vec<OwnedFd>);

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
