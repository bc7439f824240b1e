//! How many threads serve: as many as the CPUs that the process may use, by affinity and by its cgroup, at most four.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_integration::binary;

/// What the process says that it has, run by `wrapped`, which ends in the program to run.
fn workers(mut wrapped: Command) -> usize {
    // It ends at once: there is no such file.
    let output = wrapped.args(["sidecar", "--check", "-c", "/nowhere/sidecar.yaml"]).env("COUNTERSIGN_LOG", "debug");
    let output = output.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = log.lines().find(|line| line.contains("threads that serve")).unwrap_or_else(|| panic!("{log}"));
    serde_json::from_str::<serde_json::Value>(line).unwrap()["workers"].as_u64().unwrap().try_into().unwrap()
}

/// On these CPUs alone.
fn pinned(cpus: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpus]).arg(binary());
    command
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// A cgroup of the test's own whose CPU time can be bounded; removed when dropped.
struct Group {
    path: PathBuf,
    second: bool,
}

impl Group {
    /// Below where the controller is: version 2, or version 1.
    fn new() -> Option<Self> {
        let name = format!("countersign-test-{}", std::process::id());
        for (root, file, second) in
            [("/sys/fs/cgroup", "cpu.max", true), ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", false)]
        {
            let path = Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path, second };
            if group.path.join(file).exists() {
                return Some(group);
            }
        }
        None
    }

    /// So many thousandths of a CPU. False if it cannot be written.
    fn bound(&self, thousandths: usize) -> bool {
        let (file, text) = if self.second {
            ("cpu.max", format!("{} 100000", thousandths * 100))
        } else {
            ("cpu.cfs_quota_us", (thousandths * 100).to_string())
        };
        std::fs::write(self.path.join(file), text).is_ok()
    }

    /// The binary in it.
    fn run(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.path).arg(binary());
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[test]
fn as_many_threads_serve_as_the_process_may_use_cpus_and_at_most_four() {
    assert_eq!(workers(Command::new(binary())), cpus().min(4));
    assert_eq!(workers(pinned("0")), 1);
}

#[test]
fn the_limit_of_its_cgroup_counts_and_a_part_of_a_cpu_is_left_out() {
    let Some(group) = Group::new().filter(|group| group.bound(1000)) else {
        println!("NOT TESTED: no cgroup with a limit of CPU time can be made here; affinity is tested beside this");
        // What is there to be seen without one: no limit is none.
        assert_eq!(workers(Command::new(binary())), cpus().min(4));
        return;
    };
    println!("in a cgroup of version {}", if group.second { 2 } else { 1 });
    for (thousandths, whole) in [(500, 1), (1000, 1), (1900, 1), (2000, 2), (3500, 3), (9000, 9)] {
        assert!(group.bound(thousandths));
        assert_eq!(workers(group.run()), whole.min(cpus()).min(4), "with {thousandths} thousandths of a CPU");
    }
}
