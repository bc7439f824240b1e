use std::time::Duration;

use countersign_config::Document;
use countersign_identity::TrustDomain;

use crate::config::{Config, Limits, Times};

fn read(text: &str) -> Result<Config, String> {
    let document = Document::parse("sidecar.yaml", text).unwrap();
    let domain = TrustDomain::new("a.example").unwrap();
    document.decode(|root| Config::read(&root.table()?, &domain)).map_err(|problems| problems.to_string())
}

fn inbound(protocol: &str, more: &str) -> String {
    format!("inbound:\n- {{ name: a, listen: 0.0.0.0:1, app: 127.0.0.1:2, protocol: {protocol}, {more} }}\n")
}

fn outbound(protocol: &str, more: &str) -> String {
    format!("outbound:\n- {{ name: a, listen: 127.0.0.1:1, to: b:1, identity: /b, protocol: {protocol}, {more} }}\n")
}

fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

#[test]
fn a_listener_has_the_limits_of_the_file_but_for_its_own_and_a_route_those_of_its_listener() {
    let config = read(
        "limits: { connections: 7, first_byte: 20s, idle: 30s }\n\
         inbound:\n\
         - name: a\n  listen: 0.0.0.0:1\n  app: 127.0.0.1:2\n  protocol: http\n\
         \x20 limits: { idle: 40s, streams: 3, total: 2h }\n\
         \x20 routes: [{ paths: /a, limits: { idle: never } }, { name: b, methods: GET, paths: [/b, /c], limits: { total: never } }]\n\
         - { name: b, listen: 0.0.0.0:2, app: 127.0.0.1:2, protocol: tcp, limits: { idle: never } }\n",
    )
    .unwrap();
    let [a, b] = &config.inbound[..] else { panic!("two listeners") };
    let times = Times { first_byte: seconds(20), idle: seconds(40), total: seconds(7200) };
    assert_eq!(a.limits, Limits { connections: 7, streams: 3, times, ..Limits::default() });
    assert_eq!(a.routes[0].times, Times { idle: None, ..times });
    assert_eq!(a.routes[1].times, Times { total: None, ..times });
    assert_eq!((a.routes[0].name.as_deref(), a.routes[1].name.as_deref()), (None, Some("b")));
    let times = Times { first_byte: seconds(20), idle: None, total: None };
    assert_eq!(b.limits, Limits { connections: 7, times, ..Limits::default() });
    assert_eq!(config.limits.times.total, None);
}

#[test]
fn a_limit_that_would_do_nothing_is_refused_with_the_place_where_it_belongs() {
    for (text, expected) in [
        (outbound("http", "limits: { requests: 5 }"), "outbound[0].limits.requests: bounds what an inbound listener"),
        (inbound("tcp", "limits: { first_byte: 5s }"), "inbound[0].limits.first_byte: bounds requests, and of tcp"),
        (inbound("tcp", "limits: { total: 5s }"), "inbound[0].limits.total: bounds requests"),
        (outbound("tcp", "limits: { head: 5s }"), "outbound[0].limits.head: bounds requests"),
        (inbound("http", "routes: [{ paths: /a, limits: { connect: 5s } }]"), "write it in limits beside routes"),
        (
            inbound("http", "routes: [{ paths: /a, limits: { streams: 5 } }]"),
            "routes[0].limits.streams: bounds a whole",
        ),
        (
            inbound("tcp", "routes: [{ paths: /a }]"),
            "routes: routes are told apart by paths, and of tcp nothing is known",
        ),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.starts_with("sidecar.yaml:2: ") && error.contains(expected), "{expected:?} is not in\n{error}");
    }
    for late in
        ["limits: { first_byte: 30m, total: 1m }", "routes: [{ paths: /a, limits: { first_byte: 1m, total: 60s } }]"]
    {
        let error = read(&inbound("http", late)).unwrap_err();
        assert!(error.contains("limits.first_byte: would never be reached"), "{error}");
    }
    read(&inbound("http", "limits: { first_byte: never, total: 1m }")).unwrap();
    read(&inbound("http", "limits: { first_byte: 1h }, routes: [{ paths: /a, limits: { total: 1m } }]")).unwrap();
    read(&inbound("http", "limits: { requests: 5 }")).unwrap();
    read(&inbound("tcp", "limits: { connections: 5, handshake: 5s, connect: 5s, idle: 5s }")).unwrap();
}

#[test]
fn no_limit_of_time_is_below_a_second_and_none_at_all_is_a_word() {
    for bad in ["0", "0s", "10ms", "999ms", "8days", "1000y", "-1s", "off", "Never", "5", "''", "[1s]"] {
        for (key, place) in [("idle", "inbound[0].limits"), ("total", "inbound[0].routes[0].limits")] {
            let more = match key {
                "idle" => format!("limits: {{ idle: {bad} }}"),
                _ => format!("routes: [{{ paths: /a, limits: {{ total: {bad} }} }}]"),
            };
            let error = read(&inbound("http", &more)).unwrap_err();
            assert!(error.starts_with(&format!("sidecar.yaml:2: {place}.{key}: ")), "{bad}: {error}");
        }
    }
    let error = read("limits: { first_byte: 0s }").unwrap_err();
    assert_eq!(error, "sidecar.yaml:1: limits.first_byte: \"0s\" is out of range; from 1s to 7days, or never");
    assert!(read("limits: { head: never }").unwrap_err().contains("limits.head: \"never\" is not a duration"));
    read("limits: { head: 10ms, first_byte: 1s, idle: never, total: 7days }").unwrap();
}

#[test]
fn routes_are_as_rules_have_them_and_each_mistake_is_named() {
    for (route, expected) in [
        ("{}", "routes[0]: key \"paths\" is missing"),
        ("{ paths: [] }", "routes[0].paths: must have at least one path"),
        ("{ paths: api }", "\"api\" must begin with \"/\""),
        ("{ paths: /a%2Fb }", "patterns hold no percent-encoded forms"),
        ("{ paths: /a, methods: get }", "must be in upper case: GET"),
        ("{ paths: /a, name: a b }", "routes[0].name: must be at most 63 letters"),
        ("{ paths: /a, limit: {} }", "unknown key \"limit\"; did you mean \"limits\"?"),
        ("{ paths: /a, limits: { idel: 1s } }", "unknown key \"idel\"; did you mean \"idle\"?"),
        (
            "{ paths: /a, name: x }, { paths: /b, name: x }",
            "the name \"x\" was given to inbound[0].routes[0].name already",
        ),
        (
            "{ paths: '/**' }, { paths: /b, methods: GET }",
            "routes[1]: no request takes this route: inbound[0].routes[0]",
        ),
        ("{ paths: /a, methods: [PUT, GET] }, { paths: /a, methods: GET }", "no request takes this route"),
        ("{ paths: /a }, { paths: /b }, { paths: [/a, /b] }", "routes[2]: no request takes this route"),
        ("{ paths: '/a/**' }, { paths: /a/b, limits: { total: 9s } }", "routes[1]: no request takes this route"),
        ("{ paths: '/a/**' }, { paths: /a }", "no request takes this route"),
        ("{ paths: '/a/**' }, { paths: ['/a/b/**', '/a/*/c'] }", "no request takes this route"),
        ("{ paths: '/a/*/c' }, { paths: /a/b/c }", "no request takes this route"),
    ] {
        let error = read(&inbound("http", &format!("routes: [{route}]"))).unwrap_err();
        assert!(error.contains(expected), "{expected:?} is not in\n{error}");
    }
    for fine in [
        "",
        "{ paths: /a, methods: GET }, { paths: /a }",
        "{ paths: /a }, { paths: [/a, /b] }",
        "{ paths: '/a/**' }, { paths: '/**' }",
        "{ paths: '/a/**' }, { paths: [/ab, '/ab/**'] }",
        "{ paths: '/a/**', methods: GET }, { paths: /a/b }",
        "{ paths: '/a/*' }, { paths: '/a/**' }",
        "{ paths: '/*/b' }, { paths: '/a/*' }",
    ] {
        read(&inbound("grpc", &format!("routes: [{fine}]"))).unwrap();
    }
    let many = vec!["{ paths: /a }"; 1001].join(", ");
    assert!(
        read(&inbound("http", &format!("routes: [{many}]"))).unwrap_err().contains("has 1001 routes; the limit is")
    );
    let error = read(&inbound("http", "routes: [{ paths: a, limits: { connect: 1s, total: 0s } }]")).unwrap_err();
    assert_eq!(error.lines().count(), 3, "all at once: {error}");
}
