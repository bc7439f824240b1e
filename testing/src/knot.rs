//! Knot, a DNS server of Debian, with one zone whose records a test changes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::eventually;

/// A running server. Killed when dropped.
pub struct Knot {
    process: Option<Child>,
    directory: PathBuf,
    address: SocketAddr,
    zone: &'static str,
    serial: u32,
}

impl Knot {
    /// Starts it at `address`, with these lines in the zone `mesh.test`; negative answers hold for a second. Its files are
    /// in `directory`.
    pub async fn start(directory: &Path, address: SocketAddr, records: &str) -> Self {
        Self::serving("mesh.test", directory, address, records).await
    }

    /// As [`Knot::start`], with another zone. Of all else it refuses to speak.
    pub async fn serving(zone: &'static str, directory: &Path, address: SocketAddr, records: &str) -> Self {
        let d = directory.display();
        std::fs::create_dir_all(directory).unwrap();
        let config = format!(
            "server:\n    rundir: \"{d}\"\n    listen: {}@{}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ncontrol:\n    listen: \"{d}/control\"\nlog:\n  - target: stderr\n    any: warning\n\
             database:\n    storage: \"{d}/db\"\nzone:\n  - domain: {}\n    storage: \"{d}\"\n    file: zone\n    \
             zonefile-load: whole\n    zonefile-sync: -1\n    journal-content: none\n",
            address.ip(),
            address.port(),
            zone
        );
        std::fs::write(directory.join("knot.conf"), config).unwrap();
        let mut knot = Self { process: None, directory: directory.to_owned(), address, zone, serial: 0 };
        knot.put(records);
        knot.run().await;
        knot
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts these lines in the place of those in its zone; answers come from them when this returns.
    pub fn write(&mut self, records: &str) {
        self.put(records);
        let output = self.control(&["-b", "zone-reload", self.zone]);
        assert!(output.status.success(), "knotc: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again, as it was.
    pub async fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.directory.join("log")).unwrap();
        let mut command = Command::new(program("knotd"));
        command.arg("-c").arg(self.directory.join("knot.conf")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        eventually("Knot serves its zone", async || {
            let output = self.control(&["zone-read", self.zone, "@", "SOA"]);
            let log = || std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            if output.status.success() { Ok(()) } else { Err(log()) }
        })
        .await;
    }

    fn put(&mut self, records: &str) {
        self.serial += 1;
        let zone = format!(
            "$ORIGIN {}.\n$TTL 60\n@ 1 SOA ns hostmaster {} 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n{records}\n",
            self.zone, self.serial
        );
        let next = self.directory.join("next");
        std::fs::write(&next, zone).unwrap();
        std::fs::rename(next, self.directory.join("zone")).unwrap();
    }

    fn control(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("knotc"));
        command.arg("-c").arg(self.directory.join("knot.conf")).args(arguments).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Debian keeps it off an ordinary user's PATH.
fn program(name: &str) -> PathBuf {
    let found = ["/usr/sbin", "/usr/bin"].map(|directory| Path::new(directory).join(name));
    let found = found.into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: run integration/peers/setup, as `make test` does"))
}
