//! The real peers, as `integration/peers/setup` installed them. A peer that is missing fails the test and says so.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Process, free_address, free_neighbours};

/// The folder of built peers.
fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/countersign");
    std::env::var_os("COUNTERSIGN_CACHE").map_or_else(home, PathBuf::from)
}

fn there(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run integration/peers/setup, as `make test` does", path.display());
    path
}

/// Python of the tests' virtual environment: requests, httpx, spiffe, psycopg.
pub fn python() -> PathBuf {
    there(cache().join("venv/bin/python"))
}

/// OpenTelemetry's collector: the program.
pub(crate) fn collector() -> PathBuf {
    there(cache().join("bin/collector"))
}

/// A script in `integration/peers/`.
pub fn script(name: &str) -> PathBuf {
    there(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name))
}

/// nginx with `server` inside its `http` block.
pub async fn nginx(directory: &Path, server: &str, listens: SocketAddr) -> Process {
    let process = Process::start(&mut nginx_command(directory, server), &directory.join("log"));
    listening("nginx", listens, &process).await;
    process
}

/// What starts nginx with `server` inside its `http` block.
pub fn nginx_command(directory: &Path, server: &str) -> Command {
    std::fs::create_dir_all(directory).unwrap();
    let d = directory.display();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {d}/pid;\nerror_log stderr warn;\nevents {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\nclient_body_temp_path {d}/body;\nproxy_temp_path {d}/proxy;\nfastcgi_temp_path {d}/fastcgi;\n\
         uwsgi_temp_path {d}/uwsgi;\nscgi_temp_path {d}/scgi;\n{server}\n}}\n"
    );
    std::fs::write(directory.join("nginx.conf"), config).unwrap();
    let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists()).expect("nginx");
    let mut command = Command::new(nginx);
    command.arg("-e").arg("stderr").arg("-p").arg(directory).arg("-c").arg(directory.join("nginx.conf"));
    command
}

/// HAProxy with `sections` (its frontends and backends).
pub async fn haproxy(directory: &Path, sections: &str, listens: SocketAddr) -> Process {
    std::fs::create_dir_all(directory).unwrap();
    let config = format!(
        "global\n    nbthread 1\n    maxconn 1000\n    tune.bufsize 131072\n    tune.http.maxhdr 200\n\
         defaults\n    mode http\n    option http-no-delay\n    http-reuse always\n    timeout connect 5s\n    \
         timeout client 60s\n    timeout server 60s\n    timeout http-keep-alive 60s\n{sections}\n"
    );
    std::fs::write(directory.join("haproxy.cfg"), config).unwrap();
    let haproxy = ["/usr/sbin/haproxy", "/usr/bin/haproxy"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(haproxy.expect("haproxy is missing: run integration/peers/setup"));
    command.arg("-db").arg("-f").arg(directory.join("haproxy.cfg"));
    let process = Process::start(&mut command, &directory.join("log"));
    listening("HAProxy", listens, &process).await;
    process
}

/// Envoy with `config`, which is its bootstrap as JSON.
pub async fn envoy(directory: &Path, config: &serde_json::Value, listens: SocketAddr) -> Process {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("envoy.json"), config.to_string()).unwrap();
    // Its own executable: the wrapper in bin/ would be the process that the test ends.
    let lib = std::fs::read_dir(there(cache().join("venv/lib"))).unwrap().next().unwrap().unwrap().path();
    let mut command = Command::new(there(lib.join("site-packages/envoy/_bin/envoy")));
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"]);
    command.arg(directory.join("envoy.json"));
    let process = Process::start(&mut command, &directory.join("log"));
    listening("Envoy", listens, &process).await;
    process
}

/// Node, for a script in `integration/peers/`.
pub fn node() -> Command {
    Command::new(there(PathBuf::from("/usr/bin/node")))
}

/// OpenBao in dev mode, with the root token `root`. Returns its address.
pub async fn openbao(directory: &Path) -> (Process, SocketAddr) {
    std::fs::create_dir_all(directory).unwrap();
    // It takes the next port too, for its cluster.
    let (address, _cluster) = free_neighbours();
    let mut command = Command::new(there(cache().join("bin/bao")));
    command.args(["server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root"]);
    command.arg(format!("-dev-listen-address={address}")).env("HOME", directory);
    let process = Process::start(&mut command, &directory.join("log"));
    let health = format!("http://{address}/v1/sys/health");
    process.until("OpenBao is ready", async || reqwest::get(&health).await?.error_for_status().map(drop)).await;
    (process, address)
}

/// h2spec, the conformance suite for servers of HTTP/2.
pub fn h2spec() -> Command {
    Command::new(there(cache().join("bin/h2spec")))
}

/// PostgreSQL with a role `postgres` that is trusted, on loopback. It refuses to run as root, so as root it runs as
/// the user `postgres`, in a directory of its own.
pub async fn postgres() -> (Process, SocketAddr, tempfile::TempDir) {
    let address = free_address();
    let (process, directory) = postgres_at(address).await;
    (process, address, directory)
}

/// As [`postgres`], at this address of loopback.
pub async fn postgres_at(address: SocketAddr) -> (Process, tempfile::TempDir) {
    let directory = tempfile::Builder::new().prefix("countersign-postgres-").tempdir().unwrap();
    let data = directory.path().join("data");
    let root = rustix::process::getuid().is_root();
    let bin = postgres_bin();
    if root {
        let owned = Command::new("chown").arg("postgres:postgres").arg(directory.path()).status().unwrap();
        assert!(owned.success(), "chown to postgres failed");
    }
    let as_postgres = |program: &str| {
        let program = bin.join(program);
        if !root {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    };
    let output = as_postgres("initdb").args(["-U", "postgres", "-A", "trust", "-N", "-D"]).arg(&data).output().unwrap();
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    let mut command = as_postgres("postgres");
    command.arg("-D").arg(&data).args([
        "-h",
        "127.0.0.1",
        "-p",
        &address.port().to_string(),
        "-c",
        "fsync=off",
        // In its own directory, or a killed server leaves its shared memory behind.
        "-c",
        "dynamic_shared_memory_type=mmap",
        "-k",
        "",
    ]);
    let process = Process::start(&mut command, &directory.path().join("log"));
    listening("PostgreSQL", address, &process).await;
    (process, directory)
}

/// Redis, which keeps nothing.
pub async fn redis(directory: &Path, address: SocketAddr) -> Process {
    std::fs::create_dir_all(directory).unwrap();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--appendonly", "no"]);
    let process = Process::start(command.arg("--dir").arg(directory), &directory.join("log"));
    listening("Redis", address, &process).await;
    process
}

fn postgres_bin() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.filter_map(|version| Some(version.ok()?.path().join("bin"))).collect())
        .unwrap_or_default();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().expect("PostgreSQL's server is missing: run integration/peers/setup")
}

/// Waits until something listens on `address`.
pub async fn listening(what: &str, address: SocketAddr, process: &Process) {
    let what = format!("{what} listens on {address}");
    process.until(&what, async || tokio::net::TcpStream::connect(address).await.map(drop)).await;
}
