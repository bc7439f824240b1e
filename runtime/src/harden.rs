//! What a process asks of the kernel for itself: that its memory stays out of files, and as many files as it may open.

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

/// Raises the limit on open files to what the system permits: each connection is one, and the usual soft limit of 1024
/// is there for programs that use `select`. Call it first thing in `main`; children inherit the limit.
///
/// # Errors
/// The kernel refuses; the caller decides whether to go on.
pub fn raise_open_files() -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_system_permits() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum }).unwrap();
        raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
