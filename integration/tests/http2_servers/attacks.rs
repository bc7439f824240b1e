//! The attacks: what each answers to a request, and what becomes of the caller and of the connection.

use std::io;

use countersign_integration::frames::{
    ACK, AGAIN, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW, INTERNAL_ERROR, PADDED, PING,
    PUSH_PROMISE, Peer, REFUSED_STREAM, SETTINGS, frame, goaway, headers, kept, literal, request, reset_for, response,
    settings, window_update,
};
use futures::future::BoxFuture;

/// Answers the request on this stream.
type Run = for<'a> fn(&'a mut Peer, u32) -> BoxFuture<'a, io::Result<()>>;

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// The attacker's SETTINGS.
    pub(crate) settings: &'static [(u16, u32)],
    pub(crate) run: Run,
    /// Whether the request has a body.
    pub(crate) upload: bool,
    pub(crate) heard: Heard,
    pub(crate) verdict: Verdict,
}

/// What the caller hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A response 200, whole.
    Well,
    /// A fault: 502.
    Fault,
    /// A fault: 503, for nothing was done about the request.
    Undone,
    /// A fault: 504.
    Late,
    /// Its connection, or its stream, ends before the response does.
    Broken,
    /// Nothing, in ten seconds.
    Nothing,
}

/// What becomes of the attacker's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The sidecar ends it, and makes another for the next request.
    Cut,
    /// It goes on: what is sent is allowed, or wrong for one stream only.
    Borne,
}

use Heard::{Broken, Fault, Late, Undone, Well};
use Verdict::{Borne, Cut};

/// Every attack.
pub(crate) const ATTACKS: &[Attack] = &[
    attack("CONTINUATION without end", Fault, Cut, |peer, stream| Box::pin(continuations(peer, stream, 8 << 10))),
    attack("empty CONTINUATION without end", Fault, Cut, |peer, stream| Box::pin(continuations(peer, stream, 0))),
    attack("PING flood", Well, Borne, |peer, stream| Box::pin(flood(peer, stream, frame(PING, 0, 0, b"12345678")))),
    attack("PING acknowledged that was not sent", Well, Borne, |peer, stream| {
        Box::pin(flood(peer, stream, frame(PING, ACK, 0, b"12345678")))
    }),
    attack("SETTINGS flood", Well, Borne, |peer, stream| {
        Box::pin(flood(peer, stream, settings(&[(INITIAL_WINDOW, 1 << 16)])))
    }),
    attack("SETTINGS acknowledged that were not sent", Fault, Cut, |peer, stream| {
        Box::pin(flood(peer, stream, frame(SETTINGS, ACK, 0, &[])))
    }),
    attack("SETTINGS with a window over the end", Fault, Cut, |peer, stream| {
        Box::pin(flood(peer, stream, settings(&[(INITIAL_WINDOW, 1 << 31)])))
    }),
    attack("empty DATA flood", Broken, Cut, |peer, stream| Box::pin(empty_data(peer, stream, 0, &[]))),
    attack("DATA of padding alone", Broken, Cut, |peer, stream| {
        Box::pin(empty_data(peer, stream, PADDED, &[3, 0, 0, 0]))
    }),
    attack("HPACK bomb", Fault, Cut, |peer, stream| Box::pin(bomb(peer, stream))),
    attack("header list over the limit", Fault, Cut, |peer, stream| Box::pin(long_list(peer, stream))),
    Attack {
        settings: &[(INITIAL_WINDOW, 0)],
        upload: true,
        ..attack("no window for an upload", Late, Borne, |peer, _| Box::pin(peer.settle()))
    },
    Attack {
        upload: true,
        ..attack("WINDOW_UPDATE by 1", Well, Borne, |peer, stream| {
            Box::pin(flood(peer, stream, window_update(stream, 1)))
        })
    },
    attack("WINDOW_UPDATE by 0", Fault, Cut, |peer, stream| Box::pin(flood(peer, stream, window_update(0, 0)))),
    attack("WINDOW_UPDATE over the end", Fault, Cut, |peer, stream| {
        Box::pin(flood(peer, stream, window_update(0, 0x7fff_ffff)))
    }),
    // The stream is reset, but `h2` does not tell who waits for its response.
    attack("WINDOW_UPDATE of a stream over the end", Late, Borne, |peer, stream| {
        Box::pin(tell(peer, window_update(stream, 0x7fff_ffff)))
    }),
    attack("GOAWAY flood that leaves the request out", Undone, Cut, |peer, _| {
        Box::pin(tell(peer, goaway(0).repeat(10_000)))
    }),
    attack("GOAWAY flood", Well, Cut, |peer, stream| Box::pin(flood(peer, stream, goaway(stream)))),
    attack("GOAWAY that takes back what it took", Fault, Cut, |peer, stream| {
        Box::pin(flood(peer, stream, [goaway(stream), goaway(stream + 100)].concat()))
    }),
    attack("RST_STREAM behind the head", Broken, Borne, |peer, stream| {
        Box::pin(tell(peer, [headers(stream, 0, &response("200")), reset_for(stream, INTERNAL_ERROR)].concat()))
    }),
    attack("RST_STREAM at once", Fault, Borne, |peer, stream| Box::pin(tell(peer, reset_for(stream, INTERNAL_ERROR)))),
    attack("every request refused", Undone, Borne, |peer, stream| {
        Box::pin(tell(peer, reset_for(stream, REFUSED_STREAM)))
    }),
    attack("PUSH_PROMISE", Fault, Cut, |peer, stream| {
        let promise = [&2_u32.to_be_bytes()[..], &request("GET", "/")].concat();
        Box::pin(tell(peer, frame(PUSH_PROMISE, END_HEADERS, stream, &promise)))
    }),
    attack("a response without :status", Fault, Borne, |peer, stream| {
        Box::pin(tell(peer, headers(stream, END_STREAM, &literal("x-a", "b"))))
    }),
    attack("a response with two :status", Fault, Borne, |peer, stream| {
        Box::pin(tell(peer, headers(stream, END_STREAM, &[response("200"), response("500")].concat())))
    }),
    attack("a response with a header of the hop", Fault, Borne, |peer, stream| {
        let block = [response("200"), literal("transfer-encoding", "chunked")].concat();
        Box::pin(tell(peer, headers(stream, END_STREAM, &block)))
    }),
    attack("a response 101", Fault, Borne, |peer, stream| Box::pin(tell(peer, headers(stream, 0, &response("101"))))),
    attack("a length that does not hold", Broken, Borne, |peer, stream| {
        let head = headers(stream, 0, &[response("200"), literal("content-length", "10")].concat());
        Box::pin(tell(peer, [head, frame(DATA, END_STREAM, stream, b"short")].concat()))
    }),
    attack("trailers that do not end the stream", Broken, Borne, |peer, stream| {
        let head = headers(stream, 0, &response("200"));
        Box::pin(tell(peer, [head, headers(stream, 0, &literal("x-a", "b"))].concat()))
    }),
    attack("trailers with a pseudo-header behind others", Broken, Borne, |peer, stream| {
        let trailers = [literal("x-a", "b"), response("500")].concat();
        Box::pin(tell(peer, [headers(stream, 0, &response("200")), headers(stream, END_STREAM, &trailers)].concat()))
    }),
    // `h2` drops it, and the trailers are passed on without.
    attack("trailers with a pseudo-header", Well, Borne, |peer, stream| {
        let answer = [headers(stream, 0, &response("200")), frame(DATA, 0, stream, b"well")].concat();
        Box::pin(tell(peer, [answer, headers(stream, END_STREAM, &response("500"))].concat()))
    }),
    attack("DATA before the head", Fault, Cut, |peer, stream| {
        Box::pin(tell(peer, frame(DATA, END_STREAM, stream, b"early")))
    }),
    attack("DATA over the window", Broken, Borne, |peer, stream| {
        let data = frame(DATA, 0, stream, &[0; 1 << 14]).repeat(500);
        Box::pin(tell(peer, [headers(stream, 0, &response("200")), data].concat()))
    }),
    attack("a stream that nobody has opened", Fault, Cut, |peer, stream| {
        Box::pin(tell(peer, headers(stream + 100, END_STREAM, &response("200"))))
    }),
    attack("a frame of 16 MiB", Fault, Cut, |peer, stream| Box::pin(huge_frame(peer, stream))),
    attack("no HTTP/2 at all", Fault, Cut, |peer, _| Box::pin(tell(peer, b"HTTP/1.1 200 OK\r\n\r\n".repeat(1000)))),
];

const fn attack(name: &'static str, heard: Heard, verdict: Verdict, run: Run) -> Attack {
    Attack { name, settings: &[], run, upload: false, heard, verdict }
}

/// As it should be.
pub(crate) async fn answer(peer: &mut Peer, stream: u32) -> io::Result<()> {
    peer.send(&[headers(stream, 0, &response("200")), frame(DATA, END_STREAM, stream, b"well")].concat()).await
}

async fn tell(peer: &mut Peer, frames: Vec<u8>) -> io::Result<()> {
    peer.send(&frames).await
}

/// 10,000 times the same, and then an answer.
async fn flood(peer: &mut Peer, stream: u32, frame: Vec<u8>) -> io::Result<()> {
    let batch = frame.repeat(1000);
    for _ in 0..10 {
        peer.send(&batch).await?;
        peer.settle().await?;
    }
    answer(peer, stream).await
}

/// A header block that does not end, of up to 32 MiB or 20,000 frames.
async fn continuations(peer: &mut Peer, stream: u32, size: usize) -> io::Result<()> {
    let field = literal("x-more", &"x".repeat(100));
    let block: Vec<u8> = field.iter().copied().cycle().take(size / field.len() * field.len()).collect();
    peer.send(&frame(HEADERS, END_STREAM, stream, &response("200"))).await?;
    let batch = frame(CONTINUATION, 0, stream, &block).repeat(if size == 0 { 1000 } else { 10 });
    for _ in 0..if size == 0 { 20 } else { 400 } {
        peer.send(&batch).await?;
    }
    peer.settle().await
}

/// A body of which nothing comes.
async fn empty_data(peer: &mut Peer, stream: u32, flags: u8, payload: &[u8]) -> io::Result<()> {
    peer.send(&headers(stream, 0, &response("200"))).await?;
    let batch = frame(DATA, flags, stream, payload).repeat(1000);
    for _ in 0..10 {
        peer.send(&batch).await?;
        peer.settle().await?;
    }
    Ok(())
}

/// One field of 3 KiB, and an answer that names it five thousand times, in a byte each.
async fn bomb(peer: &mut Peer, stream: u32) -> io::Result<()> {
    let mut block = [response("200"), kept("x-bomb", &"x".repeat(3000))].concat();
    block.extend([AGAIN; 5000]);
    peer.send(&headers(stream, END_STREAM, &block)).await
}

/// A head of twice the size that is allowed.
async fn long_list(peer: &mut Peer, stream: u32) -> io::Result<()> {
    let part: Vec<u8> = literal("x-long", &"x".repeat(1000)).repeat(15);
    let mut all = frame(HEADERS, END_STREAM, stream, &response("200"));
    for left in (0..8).rev() {
        all.extend(frame(CONTINUATION, if left == 0 { END_HEADERS } else { 0 }, stream, &part));
    }
    peer.send(&all).await
}

/// A frame larger than is allowed, by its header.
async fn huge_frame(peer: &mut Peer, stream: u32) -> io::Result<()> {
    let mut begin = vec![0xff, 0xff, 0xff, DATA, 0];
    begin.extend(stream.to_be_bytes());
    peer.send(&begin).await?;
    for _ in 0..64 {
        peer.send(&[0; 1 << 14]).await?;
    }
    Ok(())
}
