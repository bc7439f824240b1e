//! Processes that a test starts, and that end with it.

use std::fmt::Display;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use countersign_testing::eventually;

/// The binary under test: built by `make build` (or `cargo build`) beside the test binaries, or what
/// `COUNTERSIGN_BINARY` names.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("COUNTERSIGN_BINARY").map(PathBuf::from) {
        assert!(binary.exists(), "{} is not there, which COUNTERSIGN_BINARY names", binary.display());
        return binary;
    }
    let mut directory = std::env::current_exe().unwrap();
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    let binary = directory.join("countersign");
    assert!(binary.exists(), "{} is not there: run `make build` first, as `make test` does", binary.display());
    binary
}

/// Runs the binary to its end.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A running process, its output in a file. Killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; standard output and standard error go to `log`, after what is there.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Starts the binary under test.
    pub fn countersign(arguments: &[&str], log: &Path) -> Self {
        Self::start(Command::new(binary()).args(arguments), log)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    pub fn running(&self) -> bool {
        // Looked at and left to be waited for.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_raw(self.pid().cast_signed()).unwrap()), look).unwrap().is_none()
    }

    /// Looks until `look` gives `Ok`; fails the test with the log if the process ends before, or after [`DEADLINE`].
    ///
    /// [`DEADLINE`]: countersign_testing::DEADLINE
    pub async fn until<E: Display>(&self, what: &str, mut look: impl AsyncFnMut() -> Result<(), E>) {
        eventually(what, async || {
            let looked = look().await.map_err(|why| format!("{why}; its log:\n{}", self.log()));
            if looked.is_err() {
                assert!(self.running(), "{what}: the process has ended; its log:\n{}", self.log());
            }
            looked
        })
        .await;
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid().cast_signed()).unwrap(), signal).unwrap();
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "did not end within {limit:?}; its log:\n{}", self.log());
            // Between two looks: the end of a child can be waited for, but not with a deadline.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
