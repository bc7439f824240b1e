//! Raw HTTP/1.1 and HTTP/2 through the real binary, with backends that write down what they saw: each sees exactly the
//! requests that were meant, and no later request gets an answer that is not its own.
//!
//! The requests are rows of `framing/requests.txt`, `framing/encoded.txt` (for listeners with `paths: encoded`) and
//! `framing/http2.txt`, and the answers of hostile apps rows of `framing/responses.txt`; anyone can add one. All go
//! three ways: to an outbound listener, to an inbound one, and to an outbound one on which a crowd is under way, so that
//! they go over HTTP/2 between the sidecars.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "framing/ground.rs"]
mod ground;
#[path = "framing/hostile.rs"]
mod hostile;
#[path = "framing/http2.rs"]
mod http2;
#[path = "framing/recorders.rs"]
mod recorders;
#[path = "framing/rows.rs"]
mod rows;
#[path = "framing/wire.rs"]
mod wire;

use ground::Ground;
use recorders::Recorder;
use rows::{Asked, Outcome, Row, encoded, requests};
use wire::{Client, ENDED, Pace, Way};

#[tokio::test]
async fn nginx_sees_what_was_meant_and_nothing_else() {
    Suite::run("nginx", Pace::Whole, "http", requests()).await;
}

#[tokio::test]
async fn haproxy_sees_what_was_meant_and_nothing_else() {
    Suite::run("haproxy", Pace::Whole, "http", requests()).await;
}

#[tokio::test]
async fn node_sees_what_was_meant_and_nothing_else() {
    Suite::run("node", Pace::Whole, "http", requests()).await;
}

#[tokio::test]
async fn python_sees_what_was_meant_and_nothing_else() {
    Suite::run("python", Pace::Whole, "http", requests()).await;
}

#[tokio::test]
async fn hyper_sees_what_was_meant_and_nothing_else() {
    Suite::run("hyper", Pace::Whole, "http", requests()).await;
}

#[tokio::test]
async fn it_makes_no_difference_that_each_byte_comes_by_itself() {
    Suite::run("hyper", Pace::Bytes, "http", requests()).await;
}

#[tokio::test]
async fn nginx_sees_encoded_paths_as_they_were_sent() {
    Suite::run("nginx", Pace::Whole, ENCODED, encoded()).await;
}

#[tokio::test]
async fn node_sees_encoded_paths_as_they_were_sent() {
    Suite::run("node", Pace::Whole, ENCODED, encoded()).await;
}

#[tokio::test]
async fn python_sees_encoded_paths_as_they_were_sent() {
    Suite::run("python", Pace::Whole, ENCODED, encoded()).await;
}

#[test]
fn the_list_of_requests_is_long_and_no_row_has_the_name_of_another() {
    let rows = requests();
    assert!(rows.len() >= 200, "{}", rows.len());
    let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len());
}

/// All rows, every way, with one backend.
struct Suite {
    ground: Ground,
    recorder: Recorder,
    pace: Pace,
    /// Clients that keep their connection through all rows, one for each way.
    bystanders: Vec<Client>,
    canaries: u32,
    /// How many requests have to have gone over streams between the sidecars.
    over_streams: usize,
}

impl Suite {
    async fn run(backend: &str, pace: Pace, protocol: &'static str, rows: Vec<Row>) {
        let rows: Vec<Row> = rows.into_iter().filter(|row| row.is_for(backend)).collect();
        let mesh = Ground::mesh().await;
        let recorder = Recorder::start(backend, &mesh.path("recorder")).await;
        let mut ground = Ground::start(mesh, recorder.address, protocol).await;
        ground.gather().await;
        let bystanders = ground.bystanders().await;
        let mut suite = Self { ground, recorder, pace, bystanders, canaries: 0, over_streams: 0 };
        let mut wrong = Vec::new();
        for way in 0..suite.ground.ways.len() {
            for row in &rows {
                if let Err(why) = suite.check(way, row).await {
                    wrong.push(format!("{}, {}: {why}", suite.ground.ways[way].name(), row.name));
                    suite.bystanders = suite.ground.bystanders().await;
                    suite.recorder.news();
                }
            }
        }
        assert!(wrong.is_empty(), "{backend}: {} of {} rows:\n{}", wrong.len(), 3 * rows.len(), wrong.join("\n"));
        suite.ground.disperse(suite.over_streams, |line| line["status"] == 200).await;
        let late = suite.recorder.news();
        assert!(late.is_empty(), "{backend}: seen after the last row: {late:?}");
    }

    /// Sends one row on a new connection, then canaries behind it and on the connections of the bystanders of this way and
    /// the next; looks at what the backend saw of all that.
    async fn check(&mut self, way: usize, row: &Row) -> Result<(), String> {
        let mut meant: Vec<Asked> = Vec::new();
        let mut client = self.ground.ways[way].connect().await;
        let cut = row.outcomes.contains(&Outcome::Cut);
        client.send(&row.raw, self.pace, cut);
        let mut open = true;
        for outcome in &row.outcomes {
            match outcome {
                Outcome::Passes(asked) => {
                    let answer = client.answer(&asked.method).await?;
                    if answer.status != 200 || answer.seen.as_deref() != Some(&asked.seen()) {
                        return Err(format!("{}: answered {answer:?}", asked.seen()));
                    }
                    open = !answer.close;
                    meant.push(asked.clone());
                }
                Outcome::Refused => {
                    let answer = client.answer("GET").await?;
                    if answer.status != 400 || answer.fault.as_deref() != Some("client") {
                        return Err(format!("not refused but {answer:?}"));
                    }
                    open = !answer.close;
                }
                Outcome::Denied => {
                    let answer = client.answer("GET").await?;
                    if answer.status != 403 || answer.fault.as_deref() != Some("policy") {
                        return Err(format!("not denied but {answer:?}"));
                    }
                    open = !answer.close;
                }
                Outcome::Closed => open = false,
                Outcome::Cut => {
                    if let Ok(answer) = client.answer("GET").await
                        && answer.status < 400
                    {
                        return Err(format!("cut, and answered {answer:?}"));
                    }
                    open = false;
                }
            }
        }
        if open {
            match self.canary(&mut client).await {
                Ok(asked) => meant.push(asked),
                // Behind a refused request whose body was not read to its end.
                Err(why) if why.starts_with(ENDED) && row.outcomes.last() == Some(&Outcome::Refused) => {}
                Err(why) => return Err(format!("same connection: {why}")),
            }
        } else {
            client.ended().await?;
        }
        if matches!(self.ground.ways[way], Way::Crowded(_)) {
            self.over_streams += meant.len() - usize::from(row.needs_a_link());
        }
        for way in [way, self.ground.next(way)] {
            let mut bystander = self.bystanders.remove(way);
            let asked = self.canary(&mut bystander).await.map_err(|why| format!("bystander: {why}"))?;
            self.bystanders.insert(way, bystander);
            self.over_streams += usize::from(matches!(self.ground.ways[way], Way::Crowded(_)));
            meant.push(asked);
        }
        self.ground.compare(&mut self.recorder, meant).await.map(drop)
    }

    /// A request that must be answered by its own answer.
    async fn canary(&mut self, client: &mut Client) -> Result<Asked, String> {
        self.canaries += 1;
        let asked = Asked::get(&format!("/canary/{}", self.canaries));
        let answer = client.ask(&asked.target).await?;
        let own = answer.status == 200 && answer.seen.as_deref() == Some(&asked.seen());
        if own && answer.body == asked.seen().into_bytes() { Ok(asked) } else { Err(format!("{answer:?}")) }
    }
}

/// What the file of a sidecar says of a listener.
const ENCODED: &str = "http, paths: encoded";
