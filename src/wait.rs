//! `countersign wait`: asks the admin endpoint of a process until it is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::Wait;
use crate::exit::Failure;
use crate::sidecar;

/// Ends once the process is ready; an error says what it waits for.
pub(crate) async fn run(options: &Wait) -> Result<(), Failure> {
    let admin = match (&options.admin, &options.config) {
        (Some(address), _) => *address,
        (None, Some(file)) => sidecar::admin(file)?,
        (None, None) => ADMIN,
    };
    let admin = reachable(admin);
    let deadline = Instant::now() + options.timeout;
    loop {
        let looked = timeout(LOOK, look(admin)).await;
        let why = match looked.unwrap_or_else(|_| Err(format!("no answer within {LOOK:?}"))) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Later(format!("{admin} is not ready: {why}")));
        }
        sleep(AGAIN.min(left)).await;
    }
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
