//! Server-sent events: each is passed on when it is sent, and a client that leaves is missed at once.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_integration::{PROMPT, eventually};
use serde_json::Value;

use super::Echo;

/// curl as a reader of events.
struct Reader {
    curl: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

struct Event {
    id: u64,
    sent: Duration,
    arrived: Duration,
}

impl Reader {
    fn start(version: &str, url: &str) -> Self {
        let arguments = ["-sS", "--no-buffer", "--max-time", "30", version, url];
        let mut curl = Command::new("curl").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(curl.stdout.take().unwrap()).lines();
        Self { curl, lines }
    }

    fn leave(mut self) {
        self.curl.kill().unwrap();
        self.curl.wait().unwrap();
    }
}

impl Iterator for Reader {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let id = self.lines.next()?.unwrap();
        let arrived = now();
        let sent = self.lines.next().unwrap().unwrap();
        assert_eq!(self.lines.next().unwrap().unwrap(), "");
        let number = |line: &str, field: &str| line.strip_prefix(field).unwrap().parse().unwrap();
        Some(Event { id: number(&id, "id: "), sent: Duration::from_millis(number(&sent, "data: ")), arrived })
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// A time that the server tells, if it has come.
async fn state(echo: &Echo, name: &str) -> Option<Duration> {
    let state = reqwest::get(format!("http://{}/events/state", echo.app)).await.unwrap().text().await.unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    state[name].as_u64().map(Duration::from_millis)
}

#[tokio::test]
async fn each_event_arrives_when_it_is_sent() {
    let echo = Echo::start().await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let events: Vec<_> = Reader::start(version, &echo.url("/events?count=40")).collect();
        let ids: Vec<_> = events.iter().map(|event| event.id).collect();
        assert_eq!(ids, (0..40).collect::<Vec<_>>(), "{version}");
        let late: Vec<_> = events.iter().filter(|event| event.arrived > event.sent + PROMPT).map(|e| e.id).collect();
        assert!(late.is_empty(), "{version}: these came later than {PROMPT:?}: {late:?}");
        assert!(events[0].arrived < events[39].sent, "{version}: the first came after the last was sent");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_missed_by_the_server_within_a_second() {
    let echo = Echo::start().await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut reader = Reader::start(version, &echo.url("/events?count=100000"));
        assert_eq!(reader.nth(2).unwrap().id, 2, "{version}");
        assert_eq!(state(&echo, "aborted").await, None, "{version}");
        let left = now();
        reader.leave();
        let aborted = eventually("the server has seen the client leave", async || {
            state(&echo, "aborted").await.ok_or("it still sends")
        });
        let took = aborted.await.saturating_sub(left);
        assert!(took < PROMPT, "{version}: the server went on for {took:?}");
    }
}
