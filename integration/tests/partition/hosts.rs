//! The client's host, which is the test's own, and the server's, which is a network namespace at the other end of a wire.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use countersign_integration::stranger::Stranger;
use countersign_integration::{Process, binary, bytes, eventually, free_address, peers};
use tempfile::TempDir;

/// How long the file is that comes slowly.
pub(crate) const FILE: usize = 500_000;

pub(crate) struct Hosts {
    /// The sidecar of the caller.
    pub(crate) client: Process,
    /// Where the caller's app reaches the server.
    pub(crate) upstream: SocketAddr,
    _server: [Process; 2],
    // After the processes that are in it.
    host: Host,
    _directory: TempDir,
}

/// A network namespace and a wire to it; gone when dropped.
struct Host {
    name: String,
    /// Its address, and ours.
    there: String,
}

impl Hosts {
    /// Sidecars of both sides that are ready, `client` being keys of the listener that leads to the server. None where no
    /// namespace can be made, which it says.
    pub(crate) async fn start(protocol: &str, client: &str) -> Option<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let host = match Host::new() {
            Ok(host) => host,
            Err(why) => {
                println!("NOT TESTED: no network namespace with a wire can be made here: {why}");
                return None;
            }
        };
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let at = |name: &str| directory.path().join(name);
        let authority = Stranger::new("hosts.example");
        for name in ["client", "server"] {
            let leaf = authority.issue(&format!("/{name}"), |_| {});
            authority.write(directory.path(), name, &leaf);
        }
        let rule = "{ name: open, from: /client, to: /server, allow: {} }";
        let policy = format!("version: 1\ntrust_domain: hosts.example\nrules: [{rule}]\n");
        std::fs::write(at("policy.yaml"), policy).unwrap();

        std::fs::create_dir_all(at("nginx")).unwrap();
        std::fs::write(at("nginx/file"), bytes(FILE)).unwrap();
        let http2 = if protocol == "grpc" { " http2" } else { "" };
        let server = format!(
            "server {{ listen 127.0.0.1:9000{http2}; location / {{ return 200 well; }} \
             location = /file {{ root {}; limit_rate 50k; }} }}",
            at("nginx").display()
        );
        let mut nginx = host.run(&peers::nginx_command(&at("nginx"), &server));
        let nginx = Process::start(&mut nginx, &at("nginx/log"));

        let inbound = format!("{}:15443", host.there);
        let listener =
            format!("inbound: [{{ name: app, listen: '{inbound}', app: 127.0.0.1:9000, protocol: {protocol} }}]");
        let server = host.run(&proxy(directory.path(), "server", &listener));
        let server = Process::start(&mut { server }, &at("server.log"));

        let upstream = free_address();
        let listener = format!(
            "outbound: [{{ name: server, listen: '{upstream}', to: '{inbound}', identity: /server, protocol: {protocol}{client} }}]"
        );
        let client = Process::start(&mut proxy(directory.path(), "client", &listener), &at("client.log"));
        client
            .until("the server can be reached", async || {
                assert!(nginx.running() && server.running(), "{}{}", nginx.log(), server.log());
                let there = tokio::net::TcpStream::connect(&*inbound).await;
                there.map(drop).map_err(|error| error.to_string())?;
                tokio::net::TcpStream::connect(upstream).await.map(drop).map_err(|error| error.to_string())
            })
            .await;
        let said = |process: &Process| process.log().contains("received an identity");
        eventually("both have their identity", async || {
            if said(&client) && said(&server) { Ok(()) } else { Err(server.log() + &client.log()) }
        })
        .await;
        Some(Self { client, upstream, _server: [server, nginx], host, _directory: directory })
    }

    /// Cuts the wire, or makes it whole: bytes are lost, and nobody is told.
    pub(crate) fn wire(&self, whole: bool) {
        // At the other end, or this host would know.
        let state = if whole { "up" } else { "down" };
        ip(&["-n", &self.host.name, "link", "set", &self.host.name, state]).unwrap();
    }
}

/// A sidecar of ours with its identity in files.
fn proxy(directory: &Path, name: &str, listener: &str) -> Command {
    let admin = free_address();
    let yaml = format!(
        "trust_domain: hosts.example\nidentity: {{ files: {{ cert: {name}.pem, key: {name}.key, bundle: bundle.pem }} }}\n\
         policy: policy.yaml\n{listener}\nadmin: {{ listen: '{admin}' }}\n"
    );
    let file = directory.join(format!("{name}.yaml"));
    std::fs::write(&file, yaml).unwrap();
    let mut command = Command::new(binary());
    command.args(["proxy", "-c"]).arg(file);
    command
}

impl Host {
    fn new() -> Result<Self, String> {
        // Names of devices have at most 15 bytes; addresses are apart for tests that run at the same time.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let name = format!("cst{process}n{number}");
        let ours = format!("{name}x");
        let network = format!("10.213.{}.{}", process % 250, (process / 250 * 16 + number * 4) % 252 / 4 * 4);
        let (base, last) = network.rsplit_once('.').unwrap();
        let last: u32 = last.parse().unwrap();
        let (here, there) = (format!("{base}.{}", last + 1), format!("{base}.{}", last + 2));
        ip(&["netns", "add", &name])?;
        let host = Self { name: name.clone(), there };
        let mac = "02:00:00:00:00:02";
        ip(&["link", "add", &ours, "type", "veth", "peer", "name", &name, "address", mac, "netns", &name])?;
        ip(&["addr", "add", &format!("{here}/30"), "dev", &ours])?;
        ip(&["link", "set", &ours, "up"])?;
        ip(&["-n", &name, "addr", "add", &format!("{}/30", host.there), "dev", &name])?;
        ip(&["-n", &name, "link", "set", &name, "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        // Known for ever, so that it is not asked who is there: the answer would be that nobody is.
        ip(&["neigh", "replace", &host.there, "lladdr", mac, "nud", "permanent", "dev", &ours])?;
        Ok(host)
    }

    /// `command` on this host. It becomes the process itself.
    fn run(&self, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.name]).arg(command.get_program()).args(command.get_args());
        inside
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The wire goes with it.
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
}
