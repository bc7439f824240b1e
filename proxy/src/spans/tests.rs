use http::HeaderMap;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// What begins a trace for the share `sample` of requests that have none.
fn spans(sample: f64) -> Arc<Spans> {
    let endpoint = "127.0.0.1:4317".parse().unwrap();
    let (_nobody, identity) = tokio::sync::watch::channel(None);
    Spans::start(&Tracing { endpoint, sample, service: None }, identity).unwrap()
}

fn caller(value: &str) -> Option<Trace> {
    Trace::of(&HeaderMap::from_iter([(PARENT, HeaderValue::from_str(value).unwrap())]))
}

/// The span of a request whose caller says `value`, under a sidecar that begins no trace.
fn begin(value: &str) -> Option<Box<Span>> {
    begin_under(&spans(0.0), caller(value).as_ref())
}

/// The span of a request that has room for a trace, and whose caller may have it recorded.
fn begin_under(spans: &Arc<Spans>, caller: Option<&Trace>) -> Option<Box<Span>> {
    spans.begin(caller, Version::HTTP_11, || true, || true)
}

#[test]
fn a_sampled_trace_goes_on_under_its_id_and_known_flags_with_our_span_as_the_parent() {
    for (said, flags) in [("01", "01"), ("03", "03"), ("ff", "03"), ("fd", "01")] {
        let span = begin(&format!("00-{TRACE}-{CALLER}-{said}")).unwrap();
        assert_eq!(span.parent, SpanId::from_hex(CALLER).ok());
        let own = span.trace().span_id();
        assert_ne!(own, CALLER);
        assert_eq!(span.trace().as_str(), format!("00-{TRACE}-{own}-{flags}"));
        assert_eq!(caller(span.trace().as_str()).as_ref(), Some(span.trace()), "it is valid itself");
    }
}

#[test]
fn of_a_version_to_come_only_the_sampled_flag_is_kept() {
    let span = begin(&format!("cc-{TRACE}-{CALLER}-ff-more")).unwrap();
    assert!(span.trace().as_str().starts_with("00-") && span.trace().as_str().ends_with("-01"));
}

#[test]
fn a_trace_that_is_not_sampled_is_never_recorded() {
    for flags in ["00", "02", "fe"] {
        let trace = caller(&format!("00-{TRACE}-{CALLER}-{flags}"));
        assert!(trace.is_some() && begin_under(&spans(1.0), trace.as_ref()).is_none(), "{flags}");
    }
}

#[test]
fn without_a_trace_the_share_of_requests_decides() {
    for (sample, fewest, most) in [(0.0, 0, 0), (0.5, 400, 600), (1.0, 1000, 1000)] {
        let spans = spans(sample);
        let begun: Vec<_> = (0..1000).filter_map(|_| begin_under(&spans, None)).collect();
        assert!((fewest..=most).contains(&begun.len()), "{sample}: {}", begun.len());
        assert!(begun.iter().all(|span| span.begins_trace() && caller(span.trace().as_str()).is_some()));
    }
}

#[test]
fn a_trace_that_may_not_be_recorded_or_has_no_room_is_not() {
    let (all, sampled) = (spans(1.0), caller(&format!("00-{TRACE}-{CALLER}-01")));
    assert!(all.begin(sampled.as_ref(), Version::HTTP_11, || false, || true).is_none());
    assert!(all.begin(None, Version::HTTP_11, || false, || true).is_some(), "nobody else asked for it");
    assert!(all.begin(None, Version::HTTP_11, || true, || false).is_none());
    assert!(all.begin(sampled.as_ref(), Version::HTTP_11, || true, || false).is_some(), "it has one already");
}

#[test]
fn a_head_near_the_limits_has_no_room() {
    let limits = Limits { headers: 100, header_bytes: 8192, ..Limits::default() };
    for (fields, bytes, room) in [(10, 1000, true), (96, 1000, true), (97, 1000, false), (10, 8192 - 700, false)] {
        assert_eq!(fits(&limits, fields, bytes), room, "{fields} {bytes}");
    }
}

#[test]
fn a_request_to_the_collector_says_nothing_but_that_it_is_not_recorded() {
    let mut request = tonic::Request::new(());
    request.metadata_mut().insert("authorization", "secret".parse().unwrap());
    let request = export::plain(request).unwrap();
    let said: Vec<_> = request.metadata().clone().into_headers().into_iter().collect();
    let [(Some(name), value)] = &said[..] else { panic!("{said:?}") };
    let trace = Trace::of(&HeaderMap::from_iter([(name.clone(), value.clone())]));
    assert!(trace.is_some_and(|trace| !trace.is_sampled()), "{said:?}");
}

#[test]
fn only_a_changed_share_is_taken_up_while_it_runs() {
    let spans = spans(0.0);
    let changed = |sample, service: Option<&str>| Tracing {
        sample,
        service: service.map(ToOwned::to_owned),
        ..spans.config.clone()
    };
    assert!(spans.take_up(&changed(1.0, None)));
    assert!(begin_under(&spans, None).is_some());
    assert!(!spans.take_up(&changed(0.0, Some("other"))));
    assert!(begin_under(&spans, None).is_none());
}

#[test]
fn both_forms_of_a_head_say_the_same_of_a_span_and_lose_nothing_else() {
    let sampled = format!("00-{TRACE}-{CALLER}-01");
    for (value, state) in [(Some(&sampled), Some("a=b")), (None, None)] {
        let trace = value.and_then(|value| caller(value));
        let span = begin_under(&spans(1.0), trace.as_ref()).unwrap();
        let said = value.map_or("invalid", String::as_str);
        let lines = [("host", "a"), ("TraceParent", said), ("tracestate", "a=b"), ("x-traceparent", "kept")];
        let mut head = Buffer::default();
        head.push(b"GET /traceparent:x HTTP/1.1\r\n");
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            convert::line(name.as_bytes(), value.as_bytes(), &mut head);
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("replaced"));
            headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        head.push(b"\r\n");
        span.announce(&mut headers);
        span.announce_in(&mut head);
        let own = span.trace().as_str();
        assert_eq!(headers.get(STATE).map(|state| state.to_str().unwrap()), state);
        assert_eq!(headers.get_all(PARENT).iter().collect::<Vec<_>>(), [own]);
        let state = state.map(|state| format!("tracestate: {state}\r\n")).unwrap_or_default();
        let expected = format!(
            "GET /traceparent:x HTTP/1.1\r\nhost: a\r\n{state}x-traceparent: kept\r\ntraceparent: {own}\r\n\r\n"
        );
        assert_eq!(String::from_utf8_lossy(head.bytes()), expected);
    }
}
