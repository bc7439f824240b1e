//! A request over a stream, HTTP/2, and the body of its response.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::uri::Scheme;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use tokio::sync::oneshot;

use super::received::Received;
use super::{Answered, Asking, Held, Unanswered, refused};
use crate::fault::Hop;
use crate::http1::convert;
use crate::http1::response::{MOST_INTERIM_HTTP2, TOO_MANY_INTERIM};
use crate::live::body::RequestBody;
use crate::pool::{Place, Stream, into_io};
use crate::serve::Interim;
use crate::upstream::{Broken, Verdict};

/// The body of a response that comes over a stream.
pub(crate) struct FromStream {
    stream: RecvStream,
    data_ended: bool,
    /// What is left of the request.
    upload: Option<Upload>,
    _place: Arc<Place>,
    _held: Held,
}

/// Sends a request and waits for the head of its response.
pub(super) async fn send(
    asking: &mut Asking<'_>,
    mut stream: Stream,
    request: Request<RequestBody>,
) -> Result<Answered, Unanswered> {
    let pool = Arc::clone(asking.pool());
    let (mut parts, body) = request.into_parts();
    let scheme = if pool.hop() == Hop::App { Scheme::HTTP } else { Scheme::HTTPS };
    convert::for_http2(&mut parts, scheme, || pool.authority());
    let bodiless = body.is_end_stream();
    let spare = body.spare();
    let (mut response, sender) = match stream.sender.send_request(Request::from_parts(parts.clone(), ()), bodiless) {
        Ok(sent) => sent,
        Err(error) => {
            let again = asking.broke(Broken::ended(), &spare);
            let again = again.map(|(body, why)| (Request::from_parts(parts, body), why));
            return Err(Unanswered { error: into_io(error), unsent: true, again });
        }
    };
    let (used, place) = (stream.used, Arc::new(stream.into_place()));
    if bodiless {
        asking.held.awaits();
    }
    let upload = (!bodiless).then(|| upload(asking.held, body, sender, &place));
    if let Err(error) = inform(&mut response, asking.interim).await {
        let again = asking.broke(Broken::malformed(), &spare);
        let again = again.map(|(body, why)| (Request::from_parts(parts, body), why));
        return Err(Unanswered { error, unsent: false, again });
    }
    let response = match response.await {
        Ok(response) => response,
        Err(error) => {
            let broken = Broken::stream(&error, used);
            let again = asking.broke(broken, &spare);
            let again = again.map(|(body, why)| (Request::from_parts(parts, body), why));
            return Err(Unanswered { error: into_io(error), unsent: broken.unsent, again });
        }
    };
    let (head, stream) = response.into_parts();
    let verdict = Verdict::of(head.status, &head.headers);
    if let Some((body, why)) = asking.answered(&verdict, &spare) {
        let again = Some((Request::from_parts(parts, body), why));
        return Err(Unanswered { error: refused(head.status), unsent: false, again });
    }
    let data_ended = stream.is_end_stream();
    let body = FromStream { stream, data_ended, upload, _place: place, _held: Arc::clone(asking.held) };
    Ok(Answered::Response(Response::from_parts(head, Received::Stream(Box::new(body)))))
}

/// Passes on what comes before the head of the response. What breaks is found by who waits for that.
async fn inform(response: &mut ResponseFuture, interim: &Interim) -> io::Result<()> {
    let mut count = 0;
    while let Some(Ok(head)) = poll_fn(|cx| response.poll_informational(cx)).await {
        count += 1;
        if head.status() == StatusCode::SWITCHING_PROTOCOLS {
            let why = "it switched protocols without being asked";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if count > MOST_INTERIM_HTTP2 + 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, TOO_MANY_INTERIM));
        }
        interim.send(head.status(), head.headers());
    }
    Ok(())
}

/// An upload; dropped, it ends. It may go on after its response has ended, until the next hop takes no more of it.
struct Upload(oneshot::Sender<GoOn>);

struct GoOn;

impl FromStream {
    pub(super) fn has_ended(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn let_upload_go_on(&mut self) {
        if let Some(Upload(upload)) = self.upload.take() {
            let _ = upload.send(GoOn);
        }
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.data_ended {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                let data = data.map_err(into_io)?;
                let _ = self.stream.flow_control().release_capacity(data.len());
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.data_ended = true;
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(into_io)?;
        self.let_upload_go_on();
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl Drop for FromStream {
    fn drop(&mut self) {
        if self.stream.is_end_stream() {
            self.let_upload_go_on();
        }
    }
}

/// Sends a request body in a task of its own, for who reads the response may wait with it, and the request must not.
fn upload(held: &Held, body: RequestBody, sender: SendStream<Bytes>, place: &Arc<Place>) -> Upload {
    let (upload, response) = oneshot::channel();
    let (place, held) = (Arc::clone(place), Arc::clone(held));
    let rest = body.rest();
    Arc::clone(held.pool()).lifecycle().spawn(async move {
        let mut sending = pin!(send_body(body, sender));
        tokio::select! {
            () = &mut sending => held.awaits(),
            // Nobody looks after a request any more whose connection has gone.
            ended = response => if let Ok(GoOn) = ended { let _ = rest.carried(sending).await; },
        }
        drop(place);
    });
    Upload(upload)
}

async fn send_body(mut body: RequestBody, mut sender: SendStream<Bytes>) {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        // What broke the body was noted where it broke.
        let Ok(frame) = frame else { return sender.send_reset(Reason::CANCEL) };
        // An error here means that the next hop takes no more; the response tells why.
        match frame.into_data() {
            Ok(data) => {
                let last = body.is_end_stream();
                if send_data(&mut sender, data, &body, last).await.is_err() || last {
                    return;
                }
            }
            Err(frame) => return drop(sender.send_trailers(frame.into_trailers().unwrap_or_default())),
        }
    }
    drop(sender.send_data(Bytes::new(), true));
}

async fn send_data(
    sender: &mut SendStream<Bytes>,
    mut data: Bytes,
    body: &RequestBody,
    last: bool,
) -> Result<(), h2::Error> {
    if data.is_empty() && last {
        return sender.send_data(data, true);
    }
    while !data.is_empty() {
        sender.reserve_capacity(data.len());
        if sender.capacity() == 0 {
            let capacity = poll_fn(|cx| match body.poll_cut(cx) {
                Some(_) => Poll::Ready(None),
                None => sender.poll_capacity(cx),
            });
            match capacity.await {
                Some(granted) => granted?,
                None => return Err(Reason::CANCEL.into()),
            };
            continue;
        }
        let piece = data.split_to(sender.capacity().min(data.len()));
        sender.send_data(piece, last && data.is_empty())?;
    }
    Ok(())
}
