//! Open files: a thousand connections need more than the soft limit that shells set.

use rustix::process::{Resource, Rlimit};

/// Raises the soft limit on open files to the hard one.
///
/// # Errors
/// The kernel refuses.
pub fn raise_open_files() -> std::io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    Ok(rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}
