//! `countersign wait`: asks the admin endpoint of a process until it is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use countersign_config::Document;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::Wait;
use crate::exit::Failure;

/// Ends once the process is ready; an error says what it waits for.
pub(crate) async fn run(options: &Wait) -> Result<(), Failure> {
    let admin = match (&options.admin, &options.config) {
        (Some(address), _) => *address,
        (None, Some(file)) => named_by(file)?,
        (None, None) => ADMIN,
    };
    let admin = reachable(admin);
    let deadline = Instant::now() + options.timeout;
    let mut limit = if options.timeout.is_zero() { LOOK } else { LOOK.min(options.timeout) };
    loop {
        let looked = timeout(limit, look(admin)).await;
        let why = match looked.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        sleep(AGAIN.min(deadline.saturating_duration_since(Instant::now()))).await;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Later(format!("{admin} is not ready: {why}")));
        }
        limit = LOOK.min(left);
    }
}

/// Where the admin endpoint is by the file at `path`, of a sidecar or of the authority. Nothing else in it has to be right:
/// it is for the process to say what is wrong with it.
fn named_by(path: &Path) -> Result<SocketAddr, Failure> {
    let named = Document::read(path)?.decode(|root| {
        let keys = root.table()?.entries();
        let Some((_, admin)) = keys.iter().find(|(key, _)| *key == "admin") else { return Some(ADMIN) };
        let keys = admin.table()?.entries();
        let Some((_, listen)) = keys.iter().find(|(key, _)| *key == "listen") else { return Some(ADMIN) };
        listen.parse()
    });
    Ok(named?)
}

/// One look: what it waits for, if it is not ready.
async fn look(admin: SocketAddr) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let tcp = TcpStream::connect(admin).await.map_err(|error| said(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(|error| said(&error))?;
    let request = Request::get("/ready").header(HOST, admin.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| said(&error))?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(|error| said(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await.map_err(|error| said(&error))?;
        if status == StatusCode::OK {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&body.to_bytes()).trim_end().replace('\n', "; ");
        // Whatever is there in the place of an admin endpoint must not write on a terminal as it likes.
        Err(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
    };
    tokio::pin!(asked);
    tokio::select! {
        result = &mut asked => result,
        // The answer may have come before the end of the connection was noticed.
        _ = connection => asked.await,
    }
}

/// An endpoint that listens on every address is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}

/// Where the admin endpoint of a sidecar is, unless its file says otherwise.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// How long one look may take.
const LOOK: Duration = Duration::from_secs(2);

/// How soon it is looked again.
const AGAIN: Duration = Duration::from_millis(100);

/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 << 10;
