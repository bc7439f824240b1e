//! A modest load whose answers are counted: GET and PUT by turns, which may both be done twice, over new connections and
//! over some that are kept.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::plain::{Connection, field};

/// Callers that ask until they are told that it is enough.
pub struct Callers {
    enough: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: JoinSet<Seen>,
}

/// What they saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// How many answers of 200 had this body.
    pub good: BTreeMap<String, usize>,
    /// Every other answer, and every connection that broke.
    pub bad: Vec<String>,
}

impl Callers {
    /// So many callers, each with a pause between its requests.
    pub fn start(upstream: SocketAddr, count: usize, pause: Duration) -> Self {
        let (enough, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let call = |number| {
            let (enough, answered) = (Arc::clone(&enough), Arc::clone(&answered));
            async move {
                let (mut seen, mut kept) = (Seen::default(), None);
                while !enough.load(Ordering::SeqCst) {
                    match ask(upstream, answered.load(Ordering::SeqCst) + number, &mut kept).await {
                        Ok(body) => *seen.good.entry(body).or_default() += 1,
                        Err(why) => seen.bad.push(why),
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                    // A load, and not all that the machine can do.
                    sleep(pause).await;
                }
                seen
            }
        };
        let callers = (0..count).map(call).collect();
        Self { enough, answered, callers }
    }

    /// How many requests have ended, well or not.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits until so many more have ended.
    pub async fn more(&self, count: usize) {
        let wanted = self.answered() + count;
        crate::eventually("requests are answered", async || {
            let answered = self.answered();
            if answered >= wanted { Ok(()) } else { Err(answered) }
        })
        .await;
    }

    /// Lets them end, each after its request.
    pub async fn end(self) -> Seen {
        self.enough.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        for seen in self.callers.join_all().await {
            for (body, count) in seen.good {
                *all.good.entry(body).or_default() += count;
            }
            all.bad.extend(seen.bad);
        }
        all
    }
}

impl Seen {
    /// How many answers had this body.
    pub fn of(&self, body: &str) -> usize {
        self.good.get(body).copied().unwrap_or_default()
    }

    /// How many answers were good.
    pub fn count(&self) -> usize {
        self.good.values().sum()
    }

    /// Asserts that nothing failed, and gives back how many requests there were.
    pub fn all_good(&self) -> usize {
        assert!(self.bad.is_empty(), "{} of {} failed: {:?}", self.bad.len(), self.count() + self.bad.len(), self.bad);
        self.count()
    }
}

/// One request, over the connection that is kept or over a new one, and the body of its answer.
async fn ask(
    upstream: SocketAddr,
    number: usize,
    kept: &mut Option<Connection<tokio::net::TcpStream>>,
) -> Result<String, String> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::connect(upstream).await.map_err(|error| error.to_string())?,
    };
    let (method, body) = if number.is_multiple_of(2) { ("GET", 0) } else { ("PUT", 1 + number % 5000) };
    let answer =
        connection.ask(method, "/load", "", &vec![b'x'; body]).await.map_err(|error| format!("{method}: {error}"))?;
    if !number.is_multiple_of(5) && field(&answer.head, "connection").is_none() {
        *kept = Some(connection);
    }
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    if answer.status == 200 { Ok(body) } else { Err(format!("{method}: {} {body}", answer.head)) }
}
