//! Raw HTTP/1.1 through the real binary, with backends that write down what they saw: each sees exactly the requests
//! that were meant, and no later request gets an answer that is not its own.
//!
//! The requests are rows of `framing/requests.txt` and the answers of hostile apps rows of `framing/responses.txt`;
//! anyone can add one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "framing/ground.rs"]
mod ground;
#[path = "framing/hostile.rs"]
mod hostile;
#[path = "framing/recorders.rs"]
mod recorders;
#[path = "framing/rows.rs"]
mod rows;
#[path = "framing/wire.rs"]
mod wire;

use countersign_integration::eventually;

use ground::Ground;
use recorders::{Recorder, Seen};
use rows::{Asked, Outcome, Row, requests};
use wire::{Client, ENDED, Pace};

#[tokio::test]
async fn nginx_sees_what_was_meant_and_nothing_else() {
    Suite::run("nginx", Pace::Whole).await;
}

#[tokio::test]
async fn haproxy_sees_what_was_meant_and_nothing_else() {
    Suite::run("haproxy", Pace::Whole).await;
}

#[tokio::test]
async fn node_sees_what_was_meant_and_nothing_else() {
    Suite::run("node", Pace::Whole).await;
}

#[tokio::test]
async fn python_sees_what_was_meant_and_nothing_else() {
    Suite::run("python", Pace::Whole).await;
}

#[tokio::test]
async fn hyper_sees_what_was_meant_and_nothing_else() {
    Suite::run("hyper", Pace::Whole).await;
}

#[tokio::test]
async fn it_makes_no_difference_that_each_byte_comes_by_itself() {
    Suite::run("hyper", Pace::Bytes).await;
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

/// All rows, both ways, with one backend.
struct Suite {
    ground: Ground,
    recorder: Recorder,
    pace: Pace,
    /// Clients that keep their connection through all rows, one for each way.
    bystanders: Vec<Client>,
    canaries: u32,
}

impl Suite {
    async fn run(backend: &str, pace: Pace) {
        let rows: Vec<Row> = requests().into_iter().filter(|row| row.is_for(backend)).collect();
        let mesh = Ground::mesh().await;
        let recorder = Recorder::start(backend, &mesh.path("recorder")).await;
        let ground = Ground::start(mesh, recorder.address).await;
        let bystanders = vec![ground.ways[0].connect().await, ground.ways[1].connect().await];
        let mut suite = Self { ground, recorder, pace, bystanders, canaries: 0 };
        let mut wrong = Vec::new();
        for way in 0..suite.ground.ways.len() {
            for row in &rows {
                if let Err(why) = suite.check(way, row).await {
                    wrong.push(format!("{}, {}: {why}", suite.ground.ways[way].name(), row.name));
                    suite.bystanders = vec![suite.ground.ways[0].connect().await, suite.ground.ways[1].connect().await];
                    suite.recorder.news();
                }
            }
        }
        let late = suite.recorder.news();
        assert!(wrong.is_empty(), "{backend}: {} of {} rows:\n{}", wrong.len(), 2 * rows.len(), wrong.join("\n"));
        assert!(late.is_empty(), "{backend}: seen after the last row: {late:?}");
    }

    /// Sends one row, then canaries on every connection there is; looks at what the backend saw of all that.
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
        for way in 0..self.ground.ways.len() {
            let mut new = self.ground.ways[way].connect().await;
            meant.push(self.canary(&mut new).await.map_err(|why| format!("new connection: {why}"))?);
            let mut bystander = self.bystanders.remove(0);
            let asked = self.canary(&mut bystander).await.map_err(|why| format!("bystander: {why}"))?;
            self.bystanders.push(bystander);
            meant.push(asked);
        }
        self.compare(meant).await
    }

    /// A request that must be answered by its own answer.
    async fn canary(&mut self, client: &mut Client) -> Result<Asked, String> {
        self.canaries += 1;
        let asked = Asked::get(&format!("/canary/{}", self.canaries));
        let answer = client.ask(&asked.target).await?;
        let own = answer.status == 200 && answer.seen.as_deref() == Some(&asked.seen());
        if own && answer.body == asked.seen().into_bytes() { Ok(asked) } else { Err(format!("{answer:?}")) }
    }

    /// The backend saw what was meant, each once, and nothing that the caller says of itself.
    async fn compare(&mut self, mut meant: Vec<Asked>) -> Result<(), String> {
        let mut seen: Vec<Seen> = Vec::new();
        let last = meant.last().unwrap().clone();
        let recorder = &mut self.recorder;
        // nginx writes its line behind the answer.
        eventually("the backend writes of the last canary", async || {
            seen.extend(recorder.news());
            if seen.iter().any(|seen| seen.asked == last) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        for one in &seen {
            let [caller] = &one.callers[..] else { return Err(format!("not one caller: {one:?}")) };
            if !self.ground.is_caller(caller) || one.trailers.iter().any(|name| name != "x-sum") {
                return Err(format!("who called, or trailers: {one:?}"));
            }
        }
        let mut seen: Vec<Asked> = seen.into_iter().map(|seen| seen.asked).collect();
        seen.sort();
        meant.sort();
        if seen == meant { Ok(()) } else { Err(format!("meant {meant:?}, seen {seen:?}")) }
    }
}
