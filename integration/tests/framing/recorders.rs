//! Backends that answer every request and write down what they saw of it: nginx, HAProxy, Node, Python, hyper.
//!
//! Each writes one line of JSON for each request that arrived whole: method, target, body, who it was told the caller
//! is, the names of the trailers and, but for nginx, all headers. Its answer says in `x-seen` which request it answers.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use countersign_integration::{Process, free_address, peers};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::rows::Asked;

/// A backend, and what it wrote down.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    log: PathBuf,
    /// How much of it was looked at.
    read: u64,
    _processes: Vec<Process>,
}

/// What a backend saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) asked: Asked,
    /// Every `x-forwarded-client-cert`, however it is spelled.
    pub(crate) callers: Vec<String>,
    pub(crate) trailers: Vec<String>,
    /// Names and values; nginx does not tell.
    pub(crate) headers: Vec<(String, String)>,
}

impl Recorder {
    /// Starts the backend of this name.
    pub(crate) async fn start(name: &str, directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let (address, log) = (free_address(), directory.join("seen"));
        std::fs::write(&log, "").unwrap();
        let processes = match name {
            "nginx" => vec![nginx(directory, address, &log).await],
            "haproxy" => {
                let behind = free_address();
                let recorder = python(directory, behind, &log).await;
                let sections = format!(
                    "frontend in\n    bind {address}\n    timeout client 10m\n    default_backend out\n\
                     backend out\n    timeout server 10m\n    server out {behind}"
                );
                vec![peers::haproxy(directory, &sections, address).await, recorder]
            }
            "node" => {
                let mut command = peers::node();
                command.arg(peers::script("recording/record.js")).arg(address.port().to_string()).arg(&log);
                let process = Process::start(&mut command, &directory.join("log"));
                peers::listening("node", address, &process).await;
                vec![process]
            }
            "python" => vec![python(directory, address, &log).await],
            "hyper" => {
                hyper(address, log.clone()).await;
                Vec::new()
            }
            other => panic!("no recorder {other}"),
        };
        Self { address, log, read: 0, _processes: processes }
    }

    /// What was written down since the last time.
    pub(crate) fn news(&mut self) -> Vec<Seen> {
        let mut file = std::fs::File::open(&self.log).unwrap();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += whole as u64;
        let new = text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        new.map(|line| Seen::parse(&String::from_utf8_lossy(line))).collect()
    }
}

impl Seen {
    fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |name: &str| value[name].as_str().unwrap_or_else(|| panic!("{name}: {line}")).to_owned();
        let list = |name: &str| {
            let all = value[name].as_array().unwrap_or_else(|| panic!("{name}: {line}"));
            all.iter().map(|one| one.as_str().unwrap().to_owned()).collect()
        };
        let asked = Asked { method: text("method"), target: text("target"), body: text("body") };
        let pair = |pair: &Value| (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned());
        let headers = value["headers"].as_array().map(|all| all.iter().map(pair).collect()).unwrap_or_default();
        Self { asked, callers: list("caller"), trailers: list("trailers"), headers }
    }
}

/// nginx tells what it saw in its access log, of requests that it answered with 200; the body is read because it is
/// passed on, to another server in the same nginx.
async fn nginx(directory: &Path, address: SocketAddr, log: &Path) -> Process {
    let (behind, log) = (free_address(), log.display());
    let server = format!(
        "log_format seen escape=json '{{\"method\":\"$request_method\",\"target\":\"$request_uri\",\"body\":\"$request_body\",\
         \"caller\":[\"$http_x_forwarded_client_cert\"],\"trailers\":[]}}';\n\
         map $status $whole {{ 200 1; default 0; }}\n\
         server {{\nlisten {address};\naccess_log {log} seen if=$whole;\nunderscores_in_headers on;\nmerge_slashes off;\n\
         large_client_header_buffers 8 128k;\nclient_body_buffer_size 1m;\nclient_body_timeout 10m;\nkeepalive_requests 100000;\n\
         location / {{ proxy_pass http://{behind}; add_header x-seen \"$request_method $request_uri\"; }}\n}}\n\
         server {{ listen {behind}; access_log off; large_client_header_buffers 8 128k; return 200 \"$request_method $request_uri\"; }}"
    );
    peers::nginx(directory, &server, address).await
}

async fn python(directory: &Path, address: SocketAddr, log: &Path) -> Process {
    let mut command = std::process::Command::new(peers::python());
    command.arg(peers::script("recording/record.py")).arg(address.port().to_string()).arg(log);
    let process = Process::start(&mut command, &directory.join("python.log"));
    peers::listening("Python", address, &process).await;
    process
}

async fn hyper(address: SocketAddr, log: PathBuf) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let log = log.clone();
            let service = service_fn(move |request| record(request, log.clone()));
            let mut server = hyper::server::conn::http1::Builder::new();
            server.max_headers(200);
            tokio::spawn(async move { server.serve_connection(TokioIo::new(tcp), service).await });
        }
    });
}

async fn record(request: Request<Incoming>, log: PathBuf) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?;
    let plain = |name: &str| name.replace('_', "-");
    let trailers: Vec<_> =
        body.trailers().map(|all| all.keys().map(|name| plain(name.as_str())).collect()).unwrap_or_default();
    let callers = parts.headers.iter().filter(|(name, _)| plain(name.as_str()) == "x-forwarded-client-cert");
    let callers: Vec<_> = callers.map(|(_, value)| String::from_utf8_lossy(value.as_bytes())).collect();
    let latin1 = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let headers: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), latin1(value.as_bytes()))).collect();
    let body = latin1(&body.to_bytes());
    let seen = format!("{} {}", parts.method, parts.uri);
    let line = json!({
        "method": parts.method.as_str(), "target": parts.uri.to_string(), "body": body, "caller": callers,
        "trailers": trailers, "headers": headers,
    });
    let mut file = std::fs::File::options().append(true).open(log).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
    Ok(Response::builder().header("x-seen", &seen).body(Full::from(seen)).unwrap())
}
