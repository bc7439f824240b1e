//! The end in order: what is under way finishes, as long as the grace lasts.

use std::sync::Arc;
use std::time::Duration;

use countersign_runtime::Lifecycle;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::discovery::Resolver;
use crate::listener::Direction;
use crate::listeners::Listeners;
use crate::live::{Connections, Kind};
use crate::spans::Spans;

/// What drains.
pub(crate) struct Drain<'a> {
    pub(crate) listeners: &'a mut Listeners,
    pub(crate) connections: &'a Connections,
    pub(crate) config: &'a Config,
    pub(crate) resolver: &'a Arc<Resolver>,
    pub(crate) lifecycle: &'a Lifecycle,
    pub(crate) spans: Option<&'a Spans>,
    /// Cancelled when the app has ended, where that is known.
    pub(crate) app: Option<&'a CancellationToken>,
    /// Whether another process accepts in place of this one.
    pub(crate) relieved: bool,
}

/// How many accepted connections there are.
#[derive(Clone, Copy)]
struct Open {
    inbound: usize,
    outbound: usize,
}

impl Drain<'_> {
    /// Inbound takes nothing new and finishes what is under way; outbound serves the app until the app is gone. Where another
    /// process accepts, both finish. What is silent may be ended before; all ends with the grace at the latest.
    pub(crate) async fn run(self) {
        tracing::info!(grace_s = self.config.drain.grace.as_secs(), "draining");
        if self.relieved {
            self.listeners.end_all().await;
        } else {
            self.listeners.end_inbound().await;
        }
        self.connections.end_silent(self.config.drain.idle);
        let deadline = Instant::now() + self.config.drain.grace;
        let mut quiet_since = Instant::now();
        let mut say_at = Instant::now() + SAY;
        loop {
            let Open { inbound, outbound } = self.open();
            metrics::gauge!("countersign_drain_connections", "direction" => "inbound").set(inbound as f64);
            metrics::gauge!("countersign_drain_connections", "direction" => "outbound").set(outbound as f64);
            if outbound > 0 {
                quiet_since = Instant::now();
            }
            let outbound_is_done = if self.relieved {
                outbound == 0
            } else if let Some(app) = self.app {
                app.is_cancelled()
            } else if self.config.inbound.is_empty() {
                // An app without an address cannot be asked; one that holds no connection for a while needs us no more.
                self.config.outbound.is_empty() || quiet_since.elapsed() >= QUIET
            } else {
                let limit = LONGEST_PROBE.min(deadline.saturating_duration_since(Instant::now()));
                tokio::select! {
                    gone = timeout(limit, is_gone(self.config, self.resolver)) => gone.unwrap_or(false),
                    () = self.lifecycle.stopping() => return,
                }
            };
            if inbound == 0 && outbound_is_done {
                tracing::info!("drained");
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(inbound, outbound, "the grace has ended before the connections");
                return;
            }
            if Instant::now() >= say_at {
                say_at += SAY;
                tracing::info!(inbound, outbound, left_s = left.as_secs(), "draining still");
            }
            tokio::select! {
                () = sleep(PROBE) => {}
                () = self.lifecycle.stopping() => return,
            }
        }
    }

    /// Those that handshake still are among them, and so is what a connection leaves behind when it ends.
    fn open(&self) -> Open {
        let count = |direction| {
            let accepted = |connection: &crate::live::Connection| {
                connection.listener.direction == direction && matches!(connection.kind, Kind::Http | Kind::Tcp)
            };
            self.listeners.accepted(direction).max(self.connections.count(accepted))
        };
        // The connection over which we send spans ourselves is not the app's.
        let ours = self.spans.map_or(0, |spans| {
            self.connections.count(|c| {
                !c.listener.is_inbound() && matches!(c.kind, Kind::Http | Kind::Tcp) && spans.come_from(c.remote)
            })
        });
        Open { inbound: count(Direction::Inbound), outbound: count(Direction::Outbound).saturating_sub(ours) }
    }
}

/// Whether every address of the app refuses connections. Whatever else comes of one, the app may be there and busy, or this
/// process short of something.
async fn is_gone(config: &Config, resolver: &Arc<Resolver>) -> bool {
    for inbound in &config.inbound {
        // Where none was ever found, nobody was served.
        let addresses = resolver.addresses(&inbound.app).await.unwrap_or_default();
        for address in addresses {
            match TcpStream::connect(address).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                _ => return false,
            }
        }
    }
    true
}

/// How often it is looked whether draining is done.
const PROBE: Duration = Duration::from_millis(100);

/// How long the app may take to refuse; one that does not answer in time is busy, not gone.
const LONGEST_PROBE: Duration = Duration::from_secs(1);

/// How often the log says what is open still.
const SAY: Duration = Duration::from_secs(5);

/// How long an app that serves nothing must hold no connection to be taken for gone.
const QUIET: Duration = Duration::from_secs(3);
