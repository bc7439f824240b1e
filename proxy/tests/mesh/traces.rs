//! What goes on of a trace: the header `traceparent` with which a request reaches the app, whichever way it takes.

use std::collections::HashSet;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Barrier, mpsc};

use super::support::app::{AppBody, answer};
use super::support::client::{empty, http1, http2, request, text};
use super::support::sidecar::metric;
use super::support::{App, Pair, free_address, read_to, soon};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const STATE: &str = "vendor=one,other=two";

/// How a request is sent. With `te` over HTTP/1.1 it leaves the fast path for the general one.
#[derive(Debug, Clone, Copy)]
enum Form {
    Fast,
    General,
    Http2,
}

/// What has a request leave the fast path.
const UNUSUAL: [(&str, &str); 2] = [("connection", "te"), ("te", "gzip")];

/// Answers with the trace that it was told.
async fn tell(request: http::Request<Incoming>) -> http::Response<AppBody> {
    let all = |name: &str| {
        let values = request.headers().get_all(name).iter().map(|value| value.to_str().unwrap());
        values.collect::<Vec<_>>().join(" and ")
    };
    answer(format!("{}; {}", all("traceparent"), all("tracestate")))
}

/// Sends a request with these values of `traceparent`; what reached the app.
async fn ask(pair: &Pair, form: Form, parents: &[String]) -> (Vec<String>, String) {
    let mut request = request("GET", "/", empty());
    let headers = request.headers_mut();
    for parent in parents {
        headers.append("traceparent", HeaderValue::from_str(parent).unwrap());
    }
    headers.insert("tracestate", HeaderValue::from_static(STATE));
    let response = match form {
        Form::Fast => soon("a response", http1(pair.entrance).await.send_request(request)).await,
        Form::General => {
            // Two of them are unusual; no hop goes on after this one.
            let unusual: HeaderMap = UNUSUAL
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .into_iter()
                .collect();
            request.headers_mut().extend(unusual);
            soon("a response", http1(pair.entrance).await.send_request(request)).await
        }
        Form::Http2 => {
            *request.uri_mut() = "http://app.test/".parse().unwrap();
            soon("a response", http2(pair.entrance).await.send_request(request)).await
        }
    };
    let text = text(response.unwrap()).await;
    let (parents, state) = text.split_once("; ").unwrap();
    (parents.split(" and ").filter(|parent| !parent.is_empty()).map(ToOwned::to_owned).collect(), state.to_owned())
}

/// A pair with links, and one with streams alone, both with `more` in their files.
async fn pairs(more: &str) -> [(Pair, App, &'static [Form]); 2] {
    let (http, grpc) = (App::http1(tell).await, App::http2(tell).await);
    let links = Pair::start_with("http", http.address, more).await;
    let streams = Pair::start_with("grpc", grpc.address, more).await;
    [(links, http, &[Form::Fast, Form::General, Form::Http2]), (streams, grpc, &[Form::Http2])]
}

/// The trace, the span and the flags of what should be a valid `traceparent`.
fn parts(parents: &[String]) -> (String, String, String) {
    let [parent] = parents else { panic!("one is expected: {parents:?}") };
    let parts: Vec<_> = parent.split('-').map(ToOwned::to_owned).collect();
    let [version, trace, span, flags] = &parts[..] else { panic!("{parent}") };
    assert_eq!((&version[..], trace.len(), span.len(), flags.len()), ("00", 32, 16, 2), "{parent}");
    (trace.clone(), span.clone(), flags.clone())
}

fn traceparent(version: &str, flags: &str) -> String {
    format!("{version}-{TRACE}-{CALLER}-{flags}")
}

/// What is no trace: nothing, an invalid one, and two.
fn none() -> [Vec<String>; 3] {
    [vec![], vec![traceparent("ff", "01")], vec![traceparent("00", "01"); 2]]
}

/// Nobody listens there, which requests are not to notice.
fn tracing(sample: f64) -> String {
    format!("tracing: {{ endpoint: 'http://{}', sample: {sample} }}\n", free_address())
}

#[tokio::test]
async fn a_sampled_trace_goes_on_with_a_span_of_ours_as_the_parent_on_every_path() {
    for (pair, _app, forms) in pairs(&tracing(0.0)).await {
        for form in forms {
            let (parents, state) = ask(&pair, *form, &[traceparent("00", "03")]).await;
            let (trace, span, flags) = parts(&parents);
            assert_eq!((&trace[..], &flags[..], &state[..]), (TRACE, "03", STATE), "{form:?}");
            assert_ne!(span, CALLER, "{form:?}");
        }
    }
}

#[tokio::test]
async fn requests_that_share_connections_go_on_with_spans_of_their_own() {
    let crowd = Arc::new(Barrier::new(CROWD));
    let app = App::http1(move |request| {
        let crowd = Arc::clone(&crowd);
        async move {
            crowd.wait().await;
            tell(request).await
        }
    })
    .await;
    let pair = Pair::start_with("http", app.address, &tracing(0.0)).await;
    let said = [traceparent("00", "01")];
    let told = futures::future::join_all((0..CROWD).map(|_| ask(&pair, Form::Fast, &said))).await;
    let spans: HashSet<_> = told.iter().map(|(parents, _)| parts(parents).1).collect();
    assert_eq!(spans.len(), CROWD);
    let opened = metric("countersign_upstream_connections_open", &["outbound", &pair.label()]);
    assert!(opened < CROWD as f64, "{opened} connections: none was shared");
}

#[tokio::test]
async fn the_forms_take_the_paths_that_they_are_named_after() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            told.send(read_to(&mut tcp, "\r\n\r\n").await).unwrap();
            let _ = tcp.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
        }
    })
    .await;
    let pair = Pair::start_with("http", app.address, &tracing(1.0)).await;
    // The fast path leaves names as they are written, the general one does not.
    for (unusual, name) in [(&[][..], "X-Name: kept\r\n"), (&UNUSUAL[..], "x-name: kept\r\n")] {
        let unusual: String = unusual.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let asked = format!("GET / HTTP/1.1\r\nhost: app.test\r\nX-Name: kept\r\n{unusual}\r\n");
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        tcp.write_all(asked.as_bytes()).await.unwrap();
        let head = soon("the app", heard.recv()).await.unwrap();
        assert!(head.contains(name) && head.contains("traceparent: 00-"), "{head}");
        let answer = read_to(&mut tcp, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }
}

#[tokio::test]
async fn a_request_at_the_limits_of_a_head_passes_with_spans_as_without() {
    let app = App::http1(|_| async { answer("well") }).await;
    let (traced, plain) =
        (Pair::start_with("http", app.address, &tracing(1.0)).await, Pair::start("http", app.address).await);
    for form in [Form::Fast, Form::General, Form::Http2] {
        for fields in 92..=101 {
            let status = async |pair: &Pair| {
                let mut request = request("GET", "/", empty());
                let headers = request.headers_mut();
                if matches!(form, Form::General) {
                    for (name, value) in UNUSUAL {
                        headers.insert(name, HeaderValue::from_static(value));
                    }
                }
                while headers.len() < fields {
                    headers.append("x-many", HeaderValue::from_static("1"));
                }
                let response = match form {
                    Form::Http2 => {
                        *request.uri_mut() = "http://app.test/".parse().unwrap();
                        http2(pair.entrance).await.send_request(request).await
                    }
                    _ => http1(pair.entrance).await.send_request(request).await,
                };
                response.unwrap().status()
            };
            assert_eq!(status(&traced).await, status(&plain).await, "{form:?} {fields}");
        }
    }
}

/// So many that they share connections between the sidecars (docs/decisions/009).
const CROWD: usize = 32;

#[tokio::test]
async fn what_is_not_sampled_arrives_as_it_came_on_every_path() {
    let unsampled = vec![traceparent("00", "00")];
    for (pair, _app, forms) in pairs(&tracing(0.0)).await {
        for form in forms {
            for said in none().into_iter().chain([unsampled.clone()]) {
                assert_eq!(ask(&pair, *form, &said).await, (said, STATE.to_owned()), "{form:?}");
            }
        }
    }
    for (pair, _app, forms) in pairs(&tracing(1.0)).await {
        for form in forms {
            assert_eq!(ask(&pair, *form, &unsampled).await, (unsampled.clone(), STATE.to_owned()), "{form:?}");
        }
    }
}

#[tokio::test]
async fn a_sampled_request_without_a_valid_trace_begins_one_on_every_path() {
    for (pair, _app, forms) in pairs(&tracing(1.0)).await {
        for form in forms {
            for said in none() {
                let (parents, state) = ask(&pair, *form, &said).await;
                let (trace, _, flags) = parts(&parents);
                assert_ne!(trace, TRACE, "{form:?} {said:?}");
                assert_eq!((&flags[..], &state[..]), ("01", ""), "{form:?} {said:?}");
            }
        }
    }
}

#[tokio::test]
async fn without_a_collector_every_trace_passes_as_it_came() {
    for (pair, _app, forms) in pairs("").await {
        for form in forms {
            for said in none().into_iter().chain([vec![traceparent("00", "01")]]) {
                assert_eq!(ask(&pair, *form, &said).await, (said, STATE.to_owned()), "{form:?}");
            }
        }
    }
}
