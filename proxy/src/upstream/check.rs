//! Active health checks: each endpoint is asked now and then how it does, over the same connections as requests.
//!
//! The question is a request like any other to the other side: its policy has to allow it to this caller.

use std::io;
use std::sync::{Arc, Weak};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderValue, Method, Request, StatusCode, Version};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::health::Reason;
use super::{Member, Upstream, Verdict};
use crate::buffer::Buffer;
use crate::config::{Ask, Check};
use crate::guard::HeadLimits;
use crate::http1::response::{self, Asked};
use crate::pool::{Link, Pool, Stream, Way};

/// How an endpoint did when it was asked, in a row.
#[derive(Default)]
struct Record {
    good: u32,
    bad: u32,
}

impl Upstream {
    /// Asks the endpoints until the upstream is gone or the process ends.
    pub(super) fn start_checks(self: &Arc<Self>, check: Check) {
        let upstream = Arc::downgrade(self);
        let lifecycle = self.parts.lifecycle.clone();
        self.parts.lifecycle.spawn(async move {
            let mut clock = interval(check.interval);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut records: Vec<(Weak<Member>, Record)> = Vec::new();
            loop {
                tokio::select! {
                    _ = clock.tick() => {}
                    () = lifecycle.stopping() => return,
                }
                // What finishes may go on for long, but picks no endpoint any more.
                let Some(upstream) = upstream.upgrade().filter(|upstream| !upstream.listener.is_finishing()) else {
                    return;
                };
                let members = upstream.members.borrow().all.clone();
                // Not held on to between two questions: a listener that is gone would keep its connections.
                let mut before = std::mem::take(&mut records);
                let mut record_of = |member: &Arc<Member>| {
                    let same = before.iter().position(|(other, _)| other.as_ptr() == Arc::as_ptr(member));
                    same.map_or_else(Record::default, |same| before.swap_remove(same).1)
                };
                let asked = members.iter().map(|member| ask(member, &check));
                let answers = tokio::select! {
                    answers = futures::future::join_all(asked) => answers,
                    () = lifecycle.stopping() => return,
                };
                for (member, answer) in members.iter().zip(answers) {
                    let mut record = record_of(member);
                    upstream.take_note(member, &mut record, answer, &check);
                    records.push((Arc::downgrade(member), record));
                }
            }
        });
    }

    fn take_note(&self, member: &Member, record: &mut Record, answer: Result<Does, String>, check: &Check) {
        self.group.metrics.checked(answer.is_ok());
        match answer {
            // That it has too much to do says nothing of how it is.
            Ok(Does::Much) => {}
            Ok(Does::Well) => {
                (record.good, record.bad) = (record.good.saturating_add(1), 0);
                // What was ejected for its answers to requests comes back by those.
                let by_this = matches!(member.endpoint.health.reason(), Some(Reason::Check | Reason::Unreachable));
                if by_this && record.good >= check.healthy {
                    member.endpoint.comes_back("its health check is answered");
                }
            }
            Err(why) => {
                (record.good, record.bad) = (0, record.bad.saturating_add(1));
                if record.bad >= check.unhealthy {
                    member.endpoint.eject(Reason::Check, &format!("its health check fails: {why}"));
                }
            }
        }
    }
}

/// How an endpoint does that answers.
#[derive(Debug, PartialEq, Eq)]
enum Does {
    Well,
    /// It has too much to do to say.
    Much,
}

async fn ask(member: &Member, check: &Check) -> Result<Does, String> {
    let pool = member.pools.apart();
    let asked = async {
        if check.ask == Ask::Connect {
            return pool.reach().await.map(|()| Does::Well).map_err(|fault| fault.to_string());
        }
        match (pool.way().await.map_err(|fault| fault.to_string())?, &check.ask) {
            (Way::Link(link), Ask::Http(path)) => over_link(pool, link, path).await.map_err(|error| error.to_string()),
            (Way::Stream(stream), Ask::Http(path)) => {
                let request = request(Method::GET, path, &[]).ok_or("the path cannot be asked for")?;
                over_stream(stream, request, None).await.map(|(does, _)| does)
            }
            (Way::Stream(stream), Ask::Grpc(service)) => grpc(stream, service).await,
            (Way::Link(_), Ask::Grpc(_)) => Err("it does not speak HTTP/2".to_owned()),
            (_, Ask::Connect) => Ok(Does::Well),
        }
    };
    timeout(check.timeout, asked).await.unwrap_or_else(|_| Err("it does not answer in time".to_owned()))
}

async fn over_link(pool: &Arc<Pool>, mut link: Link, path: &str) -> io::Result<Does> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: {AGENT}\r\n\r\n");
    link.io.unfinished = true;
    link.io.write_all(head.as_bytes()).await?;
    link.io.flush().await?;
    link.io.unfinished = false;
    let limits = &pool.listener().limits;
    let limits = HeadLimits { bytes: limits.header_bytes as usize, headers: limits.headers };
    let asked = Asked { is_head: false, from_app: false, close: false, limits };
    let mut input = Buffer::default();
    loop {
        let read = response::read_headers(input.bytes(), &asked);
        if let Some((head, _)) = read.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))? {
            input.consume(head.len);
            if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            if head.body.skip(&mut input) && input.is_empty() {
                link.patience = head.patience;
                pool.give_back(link);
            }
            return does(&head.verdict).map_err(io::Error::other);
        }
        if std::future::poll_fn(|cx| input.poll_fill(&mut link.io, cx)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends a request and gives back the body of its answer, as far as anybody needs it.
async fn over_stream(stream: Stream, request: Request<()>, body: Option<Bytes>) -> Result<(Does, Bytes), String> {
    let mut sender = stream.sender.clone();
    let (response, mut upload) = sender.send_request(request, body.is_none()).map_err(|error| error.to_string())?;
    if let Some(body) = body {
        upload.send_data(body, true).map_err(|error| error.to_string())?;
    }
    let response = response.await.map_err(|error| error.to_string())?;
    let does = does(&Verdict::of(response.status(), response.headers()))?;
    let status = |headers: &http::HeaderMap| headers.get("grpc-status").cloned();
    let mut grpc = status(response.headers());
    let mut body = response.into_body();
    let mut text = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| error.to_string())?;
        let _ = body.flow_control().release_capacity(data.len());
        if text.len() < LONGEST {
            text.extend_from_slice(&data);
        }
    }
    if let Some(trailers) = body.trailers().await.map_err(|error| error.to_string())? {
        grpc = grpc.or_else(|| status(&trailers));
    }
    drop(stream);
    match grpc {
        Some(status) if status != "0" && does == Does::Well => {
            Err(format!("its gRPC status is {}", status.to_str().unwrap_or("malformed")))
        }
        _ => Ok((does, text.freeze())),
    }
}

/// Asks by the gRPC Health Checking Protocol (`grpc.health.v1.Health/Check`).
async fn grpc(stream: Stream, service: &str) -> Result<Does, String> {
    let headers = [(CONTENT_TYPE, "application/grpc"), (TE, "trailers")];
    let request = request(Method::POST, "/grpc.health.v1.Health/Check", &headers);
    let request = request.ok_or("it cannot be asked for")?;
    let question = Question { service: service.to_owned() }.encode_to_vec();
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::try_from(question.len()).unwrap_or(u32::MAX));
    message.put_slice(&question);
    let (does, answer) = over_stream(stream, request, Some(message.freeze())).await?;
    if does == Does::Much {
        return Ok(does);
    }
    let answer = answer.get(5..).and_then(|answer| Answer::decode(answer).ok()).ok_or("its answer is malformed")?;
    if answer.status == SERVING { Ok(Does::Well) } else { Err(format!("it says {}", answer.status)) }
}

fn request(method: Method, path: &str, headers: &[(http::HeaderName, &'static str)]) -> Option<Request<()>> {
    let uri = http::Uri::builder().scheme("https").authority("localhost").path_and_query(path).build().ok()?;
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) = (method, uri, Version::HTTP_2);
    for (name, value) in headers {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    request.headers_mut().insert(http::header::USER_AGENT, HeaderValue::from_static(AGENT));
    Some(request)
}

fn does(verdict: &Verdict) -> Result<Does, String> {
    match verdict.status {
        _ if verdict.is_busy() => Ok(Does::Much),
        status if status.is_success() => Ok(Does::Well),
        status => Err(format!("it answers {status}")),
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// What the app finds in its log.
const AGENT: &str = "countersign-check";

/// More of an answer than anybody needs.
const LONGEST: usize = 4096;
