//! The terminal that a process is in the hands of, if there is one: it signals all of its foreground group by itself.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::process::{Signal, getpgrp};
use rustix::termios::tcgetpgrp;

/// The terminal of this process.
pub(crate) struct Terminal(Option<File>);

impl Terminal {
    /// Finds it.
    pub(crate) fn find() -> Self {
        // It must not become this process's terminal by being opened.
        let flags = OFlags::NOCTTY.bits().cast_signed();
        Self(OpenOptions::new().read(true).custom_flags(flags).open("/dev/tty").ok())
    }

    /// Whether there was one, which is gone.
    pub(crate) fn has_hung_up(&self) -> bool {
        self.0.as_ref().is_some_and(|terminal| tcgetpgrp(terminal).is_err())
    }

    /// Whether all of this process's group have got `signal`.
    pub(crate) fn tells(&self, signal: Signal) -> bool {
        let Some(terminal) = &self.0 else { return false };
        let of_terminal = [Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal);
        match tcgetpgrp(terminal) {
            Ok(foreground) => of_terminal && foreground == getpgrp(),
            Err(_) => signal == Signal::HUP,
        }
    }
}
