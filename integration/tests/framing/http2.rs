//! Callers who speak HTTP/2, frame by frame: a backend sees what was meant or nothing, and the next request on the same
//! connection is answered by its own answer.

use countersign_integration::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, Peer, RST_STREAM,
};
use countersign_testing::{rows, unescape};
use tokio::time::timeout;

use crate::ground::Ground;
use crate::recorders::{Recorder, Seen};
use crate::rows::Asked;
use crate::wire::PATIENCE;

#[tokio::test]
async fn node_sees_what_was_meant_over_http2_and_nothing_else() {
    Suite::run("node").await;
}

#[tokio::test]
async fn python_sees_what_was_meant_over_http2_and_nothing_else() {
    Suite::run("python").await;
}

#[test]
fn the_list_of_http2_requests_is_long_and_no_row_has_the_name_of_another() {
    let rows = requests();
    assert!(rows.len() >= 150, "{}", rows.len());
    let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len());
}

/// All rows, every way, with one backend.
struct Suite {
    ground: Ground,
    recorder: Recorder,
    /// Clients that keep their connection through all rows, one for each way.
    bystanders: Vec<Peer>,
    canaries: u32,
}

/// What comes of the frames of one row.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The backend sees this request, whole and once, with these headers, and its answer comes.
    Passes(Asked, Vec<(String, String)>),
    /// The guard refuses, for a reason that begins so.
    Refused(&'static str),
    /// The stream is reset, and the connection goes on.
    Reset,
    /// The connection ends.
    Ended,
    /// The client takes the request back.
    Nothing,
}

/// What was heard on a stream.
#[derive(Debug)]
enum Heard {
    Answer(Status, String),
    Reset,
    Ended,
}

/// A status that is an entry of HPACK's static table, which every encoder uses for it.
#[derive(Debug, PartialEq, Eq)]
enum Status {
    Ok,
    BadRequest,
    Other(Option<u8>),
}

struct Row {
    name: &'static str,
    outcome: Outcome,
    steps: Vec<Step>,
}

/// What a client does.
enum Step {
    /// A header block; in HEADERS and CONTINUATION if split.
    Block {
        fields: Vec<(Vec<u8>, Vec<u8>)>,
        split: bool,
    },
    Data(Vec<u8>),
    /// Takes the stream back.
    Cancel,
}

impl Suite {
    async fn run(backend: &str) {
        let rows = requests();
        let mesh = Ground::mesh().await;
        let recorder = Recorder::start(backend, &mesh.path("recorder")).await;
        let mut ground = Ground::start(mesh, recorder.address, "http").await;
        ground.gather().await;
        let mut suite = Self { ground, recorder, bystanders: Vec::new(), canaries: 0 };
        suite.meet().await;
        let mut wrong = Vec::new();
        let (mut passed, crowded) = (0, suite.ground.ways.len() - 1);
        for way in 0..suite.ground.ways.len() {
            for row in &rows {
                match suite.check(way, row).await {
                    Ok(count) if way == crowded => passed += count,
                    Ok(_) => {}
                    Err(why) => {
                        wrong.push(format!("{}, {}: {why}", suite.ground.ways[way].name(), row.name));
                        suite.meet().await;
                        suite.recorder.news();
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{backend}: {} of {} rows:\n{}", wrong.len(), 3 * rows.len(), wrong.join("\n"));
        // The bystander asked on that way beside every row of the way before.
        passed += rows.len();
        suite.ground.disperse(passed, |line| line["status"] == 200).await;
        let late = suite.recorder.news();
        assert!(late.is_empty(), "{backend}: seen after the last row: {late:?}");
    }

    /// New bystanders.
    async fn meet(&mut self) {
        self.bystanders.clear();
        for way in 0..self.ground.ways.len() {
            self.bystanders.push(self.connect(way).await);
        }
    }

    async fn connect(&self, way: usize) -> Peer {
        Peer::begin(self.ground.ways[way].dial(true).await, &[]).await.unwrap()
    }

    /// Sends one row, then canaries behind it and on the connections of the bystanders of this way and the next; looks at
    /// what the backend saw of all that. How many requests passed on this way.
    async fn check(&mut self, way: usize, row: &Row) -> Result<usize, String> {
        let mut peer = self.connect(way).await;
        let stream = peer.stream();
        // It may have been ended by what came first.
        let sent = peer.send(&row.frames(stream)).await;
        let mut meant: Vec<Asked> = Vec::new();
        match (&row.outcome, heard_unless_nothing(&mut peer, stream, &row.outcome).await?) {
            (Outcome::Passes(asked, _), Some(Heard::Answer(Status::Ok, body))) if body == asked.body_of_answer() => {
                meant.push(asked.clone());
            }
            (Outcome::Refused(why), Some(Heard::Answer(Status::BadRequest, body)))
                if body.starts_with(&format!("{REFUSED}{why}")) => {}
            (Outcome::Reset, Some(Heard::Reset)) | (Outcome::Nothing, None) => {}
            (Outcome::Ended, Some(Heard::Ended)) => peer = self.connect(way).await,
            (_, heard) => return Err(format!("{heard:?}, sent: {sent:?}")),
        }
        meant.push(self.canary(&mut peer).await.map_err(|why| format!("same connection: {why}"))?);
        let passed = meant.len() + 1;
        for way in [way, self.ground.next(way)] {
            let mut bystander = self.bystanders.remove(way);
            let asked = self.canary(&mut bystander).await.map_err(|why| format!("bystander: {why}"))?;
            self.bystanders.insert(way, bystander);
            meant.push(asked);
        }
        let seen = self.ground.compare(&mut self.recorder, meant).await?;
        if let Outcome::Passes(asked, headers) = &row.outcome {
            let seen = seen.iter().find(|seen| seen.asked == *asked).unwrap();
            check_headers(seen, headers)?;
        }
        Ok(passed)
    }

    /// A request that must be answered by its own answer.
    async fn canary(&mut self, peer: &mut Peer) -> Result<Asked, String> {
        self.canaries += 1;
        let asked = Asked::get(&format!("/canary/{}", self.canaries));
        let stream = peer.stream();
        let sent = peer.send(&frames::headers(stream, END_STREAM, &frames::request("GET", &asked.target))).await;
        match heard(peer, stream).await? {
            Heard::Answer(Status::Ok, body) if body == asked.seen() => Ok(asked),
            other => Err(format!("{other:?}, sent: {sent:?}")),
        }
    }
}

impl Asked {
    /// What a recorder answers.
    fn body_of_answer(&self) -> String {
        if self.method == "HEAD" { String::new() } else { self.seen() }
    }
}

/// The backend saw one host and one way to find the end of the body, and of the other headers just `expected`.
fn check_headers(seen: &Seen, expected: &[(String, String)]) -> Result<(), String> {
    let framing = ["content-length", "transfer-encoding"];
    if seen.headers.iter().filter(|(name, _)| framing.contains(&name.as_str())).count() > 1 {
        return Err(format!("two ends of a body: {seen:?}"));
    }
    let ours = |name: &str| framing.contains(&name) || name == "x-forwarded-client-cert";
    let mut others: Vec<_> = seen.headers.iter().filter(|(name, _)| !ours(name)).cloned().collect();
    // Of two that name one host, either may be passed on.
    others.iter_mut().filter(|(name, _)| name == "host").for_each(|(_, value)| value.make_ascii_lowercase());
    let host = ("host".to_owned(), "a".to_owned());
    let mut expected: Vec<_> = expected.iter().chain([&host]).cloned().collect();
    others.sort();
    expected.sort();
    if others == expected { Ok(()) } else { Err(format!("headers {others:?}")) }
}

async fn heard_unless_nothing(peer: &mut Peer, stream: u32, outcome: &Outcome) -> Result<Option<Heard>, String> {
    if *outcome == Outcome::Nothing { Ok(None) } else { heard(peer, stream).await.map(Some) }
}

/// What comes on a stream, to its end.
async fn heard(peer: &mut Peer, stream: u32) -> Result<Heard, String> {
    timeout(PATIENCE, hear(peer, stream)).await.map_err(|_| "nothing in time".to_owned())
}

async fn hear(peer: &mut Peer, stream: u32) -> Heard {
    let mut answer: Option<(Status, Vec<u8>)> = None;
    loop {
        let of_stream = |frame: &Frame| frame.stream == stream || frame.kind == GOAWAY;
        let Ok(frame) = peer.until(of_stream).await else { return Heard::Ended };
        match (frame.kind, &mut answer) {
            (RST_STREAM, _) => return Heard::Reset,
            (GOAWAY, _) => return Heard::Ended,
            (HEADERS, None) => answer = Some((Status::of(&frame), Vec::new())),
            (DATA, Some((_, body))) => body.extend_from_slice(&frame.payload),
            _ => {}
        }
        if frame.ends_stream()
            && let Some((status, body)) = answer.take()
        {
            return Heard::Answer(status, String::from_utf8_lossy(&body).into_owned());
        }
    }
}

impl Status {
    fn of(head: &Frame) -> Self {
        match head.payload.first() {
            Some(0x88) => Self::Ok,
            Some(0x8c) => Self::BadRequest,
            other => Self::Other(other.copied()),
        }
    }
}

impl Row {
    /// The bytes, of which the last frame ends the stream.
    fn frames(&self, stream: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            let end = if at + 1 == self.steps.len() { END_STREAM } else { 0 };
            bytes.extend(match step {
                Step::Block { fields, split } => {
                    let fields = fields.iter().map(|(name, value)| frames::octets(name, value));
                    let block = fields.collect::<Vec<_>>().concat();
                    if *split {
                        let (one, other) = block.split_at(block.len() / 2);
                        let rest = frames::frame(CONTINUATION, END_HEADERS, stream, other);
                        [frames::frame(HEADERS, end, stream, one), rest].concat()
                    } else {
                        frames::headers(stream, end, &block)
                    }
                }
                Step::Data(data) => frames::frame(DATA, end, stream, data),
                Step::Cancel => frames::reset(stream),
            });
        }
        bytes
    }
}

fn requests() -> Vec<Row> {
    rows(include_str!("http2.txt")).map(row).collect()
}

fn row(line: &'static str) -> Row {
    let mut columns = line.split(" | ");
    let mut next = || columns.next().unwrap_or_else(|| panic!("a column is missing: {line}"));
    let (name, outcome, headers) = (next(), next(), next());
    let text = |bytes: Vec<u8>| bytes.into_iter().map(char::from).collect::<String>();
    let headers = match headers {
        "-" => Vec::new(),
        headers => headers.split(", ").map(field).map(|(name, value)| (text(name), text(value))).collect(),
    };
    let outcome = match outcome {
        "reset" => Outcome::Reset,
        "ended" => Outcome::Ended,
        "nothing" => Outcome::Nothing,
        request => match request.strip_prefix("400 ") {
            Some(why) => Outcome::Refused(why),
            None => Outcome::Passes(Asked::parse(request), headers),
        },
    };
    Row { name, outcome, steps: columns.map(step).collect() }
}

fn step(text: &'static str) -> Step {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    match kind {
        "data" => Step::Data(unescape(rest)),
        "cancel" => Step::Cancel,
        "head" => Step::Block { fields: block(rest), split: false },
        "split" => Step::Block { fields: block(rest), split: true },
        "trailers" | "raw" => Step::Block { fields: rest.split(", ").flat_map(fields).collect(), split: false },
        other => panic!("no step: {other}"),
    }
}

/// An ordinary request with the method that comes first, and then: `:path=/x` in place of the ordinary value, `-:path`
/// without it, and fields behind them.
fn block(text: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut words = text.split(", ");
    let method = words.next().unwrap();
    let mut pseudo = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", "/b")].to_vec();
    let mut others = Vec::new();
    for word in words {
        if let Some(without) = word.strip_prefix('-') {
            pseudo.retain(|(name, _)| *name != without);
        } else if let Some((name, value)) = word.split_once('=').filter(|(name, _)| is_ordinary(name)) {
            pseudo.iter_mut().find(|(other, _)| *other == name).unwrap().1 = value;
        } else {
            others.extend(fields(word));
        }
    }
    let pseudo = pseudo.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), unescape(value)));
    pseudo.chain(others).collect()
}

fn is_ordinary(name: &str) -> bool {
    [":method", ":scheme", ":authority", ":path"].contains(&name)
}

/// A name and a value, as often as `*N` behind them says.
fn fields(text: &'static str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (text, times) = text.rsplit_once(" *").map_or((text, 1), |(text, times)| (text, times.parse().unwrap()));
    vec![field(text); times]
}

fn field(text: &str) -> (Vec<u8>, Vec<u8>) {
    let (name, value) = text.split_once(' ').unwrap_or((text, ""));
    (unescape(name), unescape(value))
}

/// How a refusal begins.
const REFUSED: &str = "the request was refused: ";
