//! A small mesh: one authority and as many services as the test asks for, each with a sidecar.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Process, free_address, peers, run};

pub const TRUST_DOMAIN: &str = "test.example";

/// A directory on tmpfs, an authority, and what the test adds.
pub struct Mesh {
    directory: TempDir,
    pub authority: Authority,
}

/// The least mesh that carries a request: `client` calls `server`, an nginx that answers `well` to everything.
pub struct Pair {
    pub mesh: Mesh,
    pub client: Sidecar,
    pub server: Sidecar,
    /// The nginx behind `server`; dropped, it is gone.
    pub app: Process,
    /// Where the app of `client` reaches `server`.
    pub upstream: SocketAddr,
}

impl Pair {
    /// A pair under the policy `rules`, both sidecars ready.
    pub async fn start(rules: &str) -> Self {
        Self::start_with(rules, "").await
    }

    /// As [`Pair::start`], with more lines in the files of both sidecars.
    pub async fn start_with(rules: &str, more: &str) -> Self {
        let mesh = Mesh::start(&["client", "server"], rules).await;
        let listen = free_address();
        let app =
            peers::nginx(&mesh.path("nginx"), &format!("server {{ listen {listen}; return 200 well; }}"), listen).await;
        let server = Mesh::service("server", listen, "http").with(more);
        let mut client = Mesh::service("client", free_address(), "http").with(more);
        let upstream = client.calls(&server);
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        Self { mesh, client, server, app, upstream }
    }
}

/// The authority and its files.
pub struct Authority {
    directory: PathBuf,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    process: Option<Process>,
}

/// What a sidecar's file says of one service.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    /// Where the app listens.
    pub app: SocketAddr,
    /// `http`, `grpc` or `tcp`.
    pub protocol: &'static str,
    /// Where the sidecar listens for the mesh.
    pub inbound: SocketAddr,
    /// Its upstreams: name, local address, address of the other sidecar, SPIFFE ID path, protocol.
    pub upstreams: Vec<(String, SocketAddr, SocketAddr, String, &'static str)>,
    /// Keys that are added to the inbound listener.
    pub keys: String,
    /// Lines that are added to the file as they are.
    pub more: String,
}

/// A running sidecar.
pub struct Sidecar {
    pub service: Service,
    pub directory: PathBuf,
    pub admin: SocketAddr,
    pub process: Process,
}

impl Mesh {
    /// An authority that runs, with `policy` (its rules only) and join tokens for `workloads`.
    pub async fn start(workloads: &[&str], rules: &str) -> Self {
        let mut mesh = Self::stopped(workloads, "1h", rules);
        mesh.authority.start().await;
        mesh
    }

    /// As [`Mesh::start`], but nothing runs yet; certificates last `ttl`.
    pub fn stopped(workloads: &[&str], ttl: &str, rules: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("countersign-test-").tempdir_in("/dev/shm").unwrap();
        Self::stopped_in(directory, workloads, ttl, rules)
    }

    /// As [`Mesh::stopped`], in a directory that the test made.
    pub fn stopped_in(directory: TempDir, workloads: &[&str], ttl: &str, rules: &str) -> Self {
        // The tests' own HTTP client asks for the default provider; the first mesh of the process sets it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let authority = Authority::init(&directory.path().join("ca"));
        let mut registrations = "workloads:\n".to_owned();
        for name in workloads {
            let _ =
                writeln!(registrations, "  - {{ id: /ns/test/sa/{name}, attest: {{ join_token: {{}} }}, ttl: {ttl} }}");
        }
        authority.write("workloads.yaml", &registrations);
        authority.write_policy(rules);
        Self { directory, authority }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A service whose sidecar listens on a free address.
    pub fn service(name: &str, app: SocketAddr, protocol: &'static str) -> Service {
        let inbound = free_address();
        let (keys, more) = (String::new(), String::new());
        Service { name: name.to_owned(), app, protocol, inbound, upstreams: Vec::new(), keys, more }
    }

    /// Writes the sidecar's files, with a fresh join token, and starts it. It need not be ready.
    pub fn spawn(&self, service: Service) -> Sidecar {
        let token = self.authority.token(&service.name);
        self.spawn_with_token(service, &token)
    }

    /// As [`Mesh::spawn`], with a join token that the test has.
    pub fn spawn_with_token(&self, service: Service, token: &str) -> Sidecar {
        let at = service.inbound.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let directory = self.path(&format!("{}-{at}", service.name));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("token"), token).unwrap();
        let admin = free_address();
        std::fs::write(directory.join("sidecar.yaml"), self.sidecar_yaml(&service, &directory, admin)).unwrap();
        let process = Sidecar::process(&directory);
        Sidecar { service, directory, admin, process }
    }

    /// Starts a sidecar, and waits until it is ready.
    pub async fn sidecar(&self, service: Service) -> Sidecar {
        let sidecar = self.spawn(service);
        sidecar.ready().await;
        sidecar
    }

    fn sidecar_yaml(&self, service: &Service, directory: &Path, admin: SocketAddr) -> String {
        let mut yaml = format!(
            "trust_domain: {TRUST_DOMAIN}\nidentity:\n  authority: {}\n  bundle: {}\n  attest: {{ join_token_file: {d}/token }}\n  \
             state: {d}/state\n  socket: {d}/agent.sock\n",
            self.authority.listen,
            self.authority.directory.join("bundle.pem").display(),
            d = directory.display(),
        );
        let _ = writeln!(
            yaml,
            "inbound:\n  - {{ name: {}, listen: \"{}\", app: {}, protocol: {}{} }}",
            service.name, service.inbound, service.app, service.protocol, service.keys
        );
        if !service.upstreams.is_empty() {
            yaml.push_str("outbound:\n");
        }
        for (name, listen, to, identity, protocol) in &service.upstreams {
            let _ = writeln!(
                yaml,
                "  - {{ name: {name}, listen: {listen}, to: \"{to}\", identity: {identity}, protocol: {protocol} }}"
            );
        }
        let _ = writeln!(yaml, "admin: {{ listen: {admin} }}");
        yaml + &service.more
    }
}

impl Authority {
    fn init(directory: &Path) -> Self {
        let (listen, admin) = (free_address(), free_address());
        let shown = directory.display().to_string();
        let arguments = ["ca", "init", "--trust-domain", TRUST_DOMAIN, "--directory", &shown, "--listen"];
        let listen_text = listen.to_string();
        let output = run(&[&arguments[..], &[&listen_text]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let authority = Self { directory: directory.to_owned(), listen, admin, process: None };
        let yaml = std::fs::read_to_string(directory.join("ca.yaml")).unwrap();
        let mut lines: Vec<String> = yaml.lines().filter(|line| !line.starts_with("admin:")).map(Into::into).collect();
        lines.push(format!("admin: {{ listen: {admin} }}\n"));
        authority.write("ca.yaml", &lines.join("\n"));
        authority
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&mut self) {
        let config = self.config();
        let process = Process::countersign(&["ca", "run", "-c", &config], &self.directory.join("log"));
        let admin = self.admin;
        process.until("the authority is ready", async || get(admin, "/ready").await.and_then(ok)).await;
        self.process = Some(process);
    }

    pub fn config(&self) -> String {
        self.directory.join("ca.yaml").display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the authority was not started")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.directory.join(name);
        let next = path.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, path).unwrap();
    }

    /// Replaces the policy: `rules` in full, with the names that every test uses.
    pub fn write_policy(&self, rules: &str) {
        self.write("policy.yaml", &format!("version: 1\ntrust_domain: {TRUST_DOMAIN}\n{rules}"));
    }

    /// A join token of one use for `/ns/test/sa/NAME`.
    pub fn token(&self, name: &str) -> String {
        let output = self.create_token(name, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn create_token(&self, name: &str, more: &[&str]) -> Output {
        let (config, service) = (self.config(), format!("test/{name}"));
        let arguments = ["ca", "token", "create", "-c", &config, "--service", &service];
        run(&[&arguments[..], more].concat())
    }
}

impl Service {
    /// Adds an upstream: another service, by the name of its registration. Returns the local address.
    pub fn calls(&mut self, other: &Service) -> SocketAddr {
        let listen = free_address();
        let identity = format!("/ns/test/sa/{}", other.name);
        self.upstreams.push((other.name.clone(), listen, other.inbound, identity, other.protocol));
        listen
    }

    /// Adds keys to its inbound listener.
    pub fn keyed(mut self, keys: &str) -> Self {
        self.keys.push_str(", ");
        self.keys.push_str(keys);
        self
    }

    /// Adds lines to the sidecar's file.
    pub fn with(mut self, more: &str) -> Self {
        self.more.push_str(more);
        self
    }
}

impl Sidecar {
    fn process(directory: &Path) -> Process {
        let config = directory.join("sidecar.yaml").display().to_string();
        Process::countersign(&["sidecar", "-c", &config], &directory.join("log"))
    }

    /// Starts the process again, with the same files.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = Self::process(&self.directory);
    }

    /// Starts it again without its inbound listener, and waits until it is ready.
    pub async fn serve_no_app(&mut self) {
        let file = self.path("sidecar.yaml");
        let yaml = std::fs::read_to_string(&file).unwrap();
        let (before, rest) = yaml.split_once("inbound:\n").unwrap();
        let (_, after) = rest.split_once('\n').unwrap();
        std::fs::write(&file, format!("{before}{after}")).unwrap();
        self.restart();
        self.ready().await;
    }

    /// Starts another process with the file `name`, beside the one that runs; it has a log of its own.
    pub fn beside(&self, name: &str) -> Process {
        let config = self.path(name).display().to_string();
        let log = (2..).map(|number| self.path(&format!("log-{number}"))).find(|log| !log.exists()).unwrap();
        Process::countersign(&["sidecar", "-c", &config], &log)
    }

    /// Waits until `/ready` answers 200.
    pub async fn ready(&self) {
        let what = format!("{} is ready", self.service.name);
        self.process.until(&what, async || get(self.admin, "/ready").await.and_then(ok)).await;
    }

    /// What an admin route answers now.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, String), String> {
        get(self.admin, path).await
    }

    /// The JSON of an admin route.
    pub async fn json(&self, path: &str) -> Value {
        let (_, body) = self.get(path).await.unwrap();
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    /// The sum of a metric over all series whose labels contain each of `labels` (`name="value"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics").await.unwrap();
        total(&text, name, labels)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Authority {
    /// As [`Sidecar::metric`].
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = get(self.admin, "/metrics").await.unwrap();
        total(&text, name, labels)
    }
}

/// The lines of a sidecar's file by which its app reaches the workload `server` at `listen`: it is at each of `to`. `keys`
/// are those of the listener, each with a comma before it.
pub fn outbound(listen: SocketAddr, to: &[SocketAddr], protocol: &str, keys: &str) -> String {
    let to: Vec<String> = to.iter().map(|to| format!("\"{to}\"")).collect();
    format!(
        "outbound:\n  - {{ name: server, listen: {listen}, to: [{}], identity: /ns/test/sa/server, protocol: {protocol}{keys} }}\n",
        to.join(", ")
    )
}

/// The sum of a metric over all series of `metrics` whose labels contain each of `labels`.
pub fn total(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let series = metrics.lines().filter(|line| !line.starts_with('#'));
    let of_name = series.filter(|line| line.split(['{', ' ']).next() == Some(name));
    let matching = of_name.filter(|line| labels.iter().all(|label| line.contains(label)));
    matching.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn get(admin: SocketAddr, path: &str) -> Result<(StatusCode, String), String> {
    let response = reqwest::get(format!("http://{admin}{path}")).await.map_err(|error| error.to_string())?;
    let status = response.status();
    Ok((status, response.text().await.map_err(|error| error.to_string())?))
}

fn ok((status, body): (StatusCode, String)) -> Result<(), String> {
    if status.is_success() { Ok(()) } else { Err(format!("{status}: {body}")) }
}
