//! Apps that answer wrongly: whatever one of them says, it reaches nobody but the caller that it answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use countersign_integration::{eventually, free_address};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

use crate::ground::Ground;
use crate::rows::{Asked, Reply, replies};
use crate::wire::{Answer, Client, ENDED, Pace, Way};

#[tokio::test]
async fn a_wrong_answer_reaches_nobody_but_who_asked() {
    let mut suite = Suite::start().await;
    suite.ground.gather().await;
    let mut wrong = Vec::new();
    let replies = replies();
    assert!(replies.len() >= 50, "{}", replies.len());
    for reply in &replies {
        suite.app.reply(reply);
        for way in suite.ground.ways.clone() {
            let got = suite.ask(&way, reply).await;
            let broken = got == "cut" || got == "502";
            if got != reply.outcome && reply.outcome != "any" && !(broken && reply.outcome == "cut") {
                wrong.push(format!("{}, {}: {got}", way.name(), reply.name));
            }
            if let Err(why) = suite.canaries().await {
                wrong.push(format!("{}, {}: afterwards: {why}", way.name(), reply.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), 3 * replies.len(), wrong.join("\n"));
    suite.ground.disperse(replies.len(), |line| line["path"] == "/case").await;
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_reaches_nobody() {
    let mut suite = Suite::start().await;
    for _ in 0..20 {
        suite.canaries().await.unwrap();
        // All connections to the app are idle now.
        let told = suite.app.idle_word.send(EVIL.into()).unwrap();
        assert!(told >= 1, "no connection to the app is kept");
        suite.app.said(told).await;
        suite.canaries().await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_before_the_request_is_given_to_no_second_caller() {
    let mut suite = Suite::start().await;
    for way in suite.ground.ways.clone() {
        // Without connections that are kept, the next one is new, and is greeted. One that was opened for a canary which
        // found another may come late.
        eventually("no connection to the app is kept", async || {
            let _ = suite.app.idle_word.send(Arc::from(&b""[..]));
            let open = suite.ground.connections_to_backend().await;
            if open == 0.0 { Ok(()) } else { Err(open) }
        })
        .await;
        *suite.app.script.greeting.lock().unwrap() = Some(EVIL.into());
        // The one who asks may get the greeting for an answer: over HTTP/1.1 nobody can tell.
        let _ = way.connect().await.ask("/first").await;
        suite.canaries().await.unwrap();
    }
}

struct Suite {
    ground: Ground,
    app: App,
    bystanders: Vec<Client>,
    canaries: u32,
}

impl Suite {
    async fn start() -> Self {
        let app = App::start().await;
        let ground = Ground::start(Ground::mesh().await, app.address, "http").await;
        let bystanders = ground.bystanders().await;
        Self { ground, app, bystanders, canaries: 0 }
    }

    /// The request that is answered wrongly, and what came of it in the words of the rows.
    async fn ask(&mut self, way: &Way, reply: &Reply) -> String {
        let mut client = way.connect().await;
        let mut raw = format!("{} /case HTTP/1.1\r\nHost: a\r\n", reply.method).into_bytes();
        if reply.upload > 0 {
            raw.extend_from_slice(format!("Content-Length: {}\r\n", reply.upload).as_bytes());
        }
        raw.extend_from_slice(b"\r\n");
        raw.resize(raw.len() + reply.upload, b'x');
        client.send(&raw, Pace::Whole, false);
        let answer = match client.answer(reply.method).await {
            Ok(answer) => answer,
            Err(why) if why.starts_with("cut") || why.starts_with(ENDED) => return "cut".to_owned(),
            Err(why) => return why,
        };
        let ours = answer.status == 502 && matches!(answer.fault.as_deref(), Some("local" | "upstream"));
        let got = match &answer {
            _ if ours => "502".to_owned(),
            Answer { fault: Some(fault), .. } => format!("{} fault {fault}", answer.status),
            answer => format!("{} ={}", answer.status, String::from_utf8_lossy(&answer.body)),
        };
        let behind = if answer.close { client.ended().await } else { self.canary(&mut client).await };
        match behind {
            Ok(()) => got,
            // Of an upload that was not read to its end the rest would be taken for a request.
            Err(why) if reply.upload > 0 && why.starts_with(ENDED) => got,
            Err(why) => format!("{got}, and on the same connection {why}"),
        }
    }

    /// Requests by others, one after the other and many at once.
    async fn canaries(&mut self) -> Result<(), String> {
        for mut bystander in std::mem::take(&mut self.bystanders) {
            self.canary(&mut bystander).await.map_err(|why| format!("bystander: {why}"))?;
            self.bystanders.push(bystander);
        }
        let mut many = Vec::new();
        for _ in 0..4 {
            for way in self.ground.ways.clone() {
                self.canaries += 1;
                let asked = Asked::get(&format!("/canary/{}", self.canaries));
                many.push(async move {
                    let mut client = way.connect().await;
                    own(&asked, client.ask(&asked.target).await)
                });
            }
        }
        join_all(many).await.into_iter().collect()
    }

    async fn canary(&mut self, client: &mut Client) -> Result<(), String> {
        self.canaries += 1;
        let asked = Asked::get(&format!("/canary/{}", self.canaries));
        own(&asked, client.ask(&asked.target).await)
    }
}

/// Whether a request got its own answer.
fn own(asked: &Asked, answer: Result<Answer, String>) -> Result<(), String> {
    let answer = answer?;
    let own = answer.seen.as_deref() == Some(&asked.seen()) && answer.body == asked.seen().into_bytes();
    if own && answer.status == 200 { Ok(()) } else { Err(format!("{} was answered {answer:?}", asked.seen())) }
}

/// An app that answers `/case` as it is told, and everything else well.
struct App {
    address: SocketAddr,
    script: Arc<Script>,
    /// What each connection says while it waits for a request; nothing means that it ends.
    idle_word: broadcast::Sender<Arc<[u8]>>,
}

#[derive(Default)]
struct Script {
    reply: Mutex<(Vec<u8>, bool)>,
    /// Said once by the next connection, before it reads.
    greeting: Mutex<Option<Arc<[u8]>>>,
    /// How many connections have said their idle word.
    said: Mutex<usize>,
}

impl App {
    async fn start() -> Self {
        let address = free_address();
        let listener = TcpListener::bind(address).await.unwrap();
        let (script, idle_word) = (Arc::new(Script::default()), broadcast::channel(16).0);
        let (shared, words) = (Arc::clone(&script), idle_word.clone());
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                // What the other side does with the connection is its own affair.
                let (script, words) = (Arc::clone(&shared), words.subscribe());
                tokio::spawn(async move { script.serve(tcp, words).await });
            }
        });
        Self { address, script, idle_word }
    }

    fn reply(&self, reply: &Reply) {
        *self.script.reply.lock().unwrap() = (reply.raw.clone(), reply.ends);
    }

    /// Waits until as many connections have said their idle word.
    async fn said(&self, count: usize) {
        eventually("the app has spoken", async || {
            let mut said = self.script.said.lock().unwrap();
            if *said < count {
                return Err(*said);
            }
            *said = 0;
            Ok(())
        })
        .await;
    }
}

impl Script {
    async fn serve(&self, mut tcp: TcpStream, mut words: broadcast::Receiver<Arc<[u8]>>) -> std::io::Result<()> {
        let greeting = self.greeting.lock().unwrap().take();
        if let Some(greeting) = greeting {
            tcp.write_all(&greeting).await?;
        }
        let mut received = Vec::new();
        loop {
            let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
                tokio::select! {
                    read = tcp.read_buf(&mut received) => if read? == 0 { return Ok(()) },
                    word = words.recv() => {
                        let word = word.unwrap();
                        let written = tcp.write_all(&word).await;
                        *self.said.lock().unwrap() += 1;
                        written?;
                        if word.is_empty() {
                            return Ok(());
                        }
                    }
                }
                continue;
            };
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let length: usize = length.unwrap_or(0);
            if head.split(' ').nth(1) == Some("/case") {
                let (raw, ends) = self.reply.lock().unwrap().clone();
                tcp.write_all(&raw).await?;
                if ends {
                    return Ok(());
                }
            }
            while received.len() < end + 4 + length {
                if tcp.read_buf(&mut received).await? == 0 {
                    return Ok(());
                }
            }
            received.drain(..end + 4 + length);
            if head.split(' ').nth(1) != Some("/case") {
                let seen = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
                let answer =
                    format!("HTTP/1.1 200 OK\r\nx-seen: {seen}\r\nContent-Length: {}\r\n\r\n{seen}", seen.len());
                tcp.write_all(answer.as_bytes()).await?;
            }
        }
    }
}

const EVIL: &[u8] = b"HTTP/1.1 200 OK\r\nx-seen: GET /evil\r\nContent-Length: 4\r\n\r\nevil";
