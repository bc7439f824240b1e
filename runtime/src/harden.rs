//! Keeps what is in memory out of files.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Makes the process leave no core dump and refuse a debugger of another user, so that keys and secrets in its
/// memory reach no disk. Call it first thing in `main`; children inherit the limit.
///
/// # Errors
/// The kernel refuses; the caller decides whether to go on.
pub fn harden() -> std::io::Result<()> {
    let hard = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: hard.map(|_| 0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
