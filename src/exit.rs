//! How the command ends: the exit codes, and what is said on standard error with them.

use std::fmt::Display;
use std::process::ExitCode;

use countersign_config::Problems;

/// The command line was wrong.
pub(crate) const USAGE: u8 = 2;
/// A file that the user wrote is wrong (`EX_CONFIG` of sysexits.h).
const CONFIGURATION: u8 = 78;
/// Try again later (`EX_TEMPFAIL`).
const LATER: u8 = 75;

/// Why the command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed; the text says what was attempted, and why it failed.
    Failed(String),
    /// It was called wrongly.
    Usage(String),
    /// A file is wrong; every problem is named.
    Configuration(Problems),
    /// What it needs is not there yet.
    Later(String),
    /// The app cannot be run; the status is the one that a shell would have.
    NotRun(String, u8),
    /// The app that it ran has ended with this status, of which the app has said what there is to say.
    App(u8),
}

impl Failure {
    /// `what` failed because of `why`.
    pub(crate) fn failed(what: impl Display, why: impl Display) -> Self {
        Self::Failed(format!("{what}: {why}"))
    }

    /// A wrong call.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// Says why on standard error, and gives the exit code.
    #[expect(clippy::print_stderr, reason = "this is where the command speaks to its user")]
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Failed(message) => {
                eprintln!("countersign: {message}");
                ExitCode::FAILURE
            }
            Self::Usage(message) => {
                eprintln!("countersign: {message}");
                ExitCode::from(USAGE)
            }
            Self::Configuration(problems) => {
                eprintln!("{problems}");
                ExitCode::from(CONFIGURATION)
            }
            Self::Later(message) => {
                eprintln!("countersign: {message}");
                ExitCode::from(LATER)
            }
            Self::NotRun(message, status) => {
                eprintln!("countersign: {message}");
                ExitCode::from(*status)
            }
            Self::App(status) => ExitCode::from(*status),
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Configuration(problems)
    }
}
