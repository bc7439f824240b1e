use countersign_config::Document;

use super::*;
use crate::guard::Paths;

fn read(text: &str) -> Result<Config, String> {
    let document = Document::parse("/etc/dir/sidecar.yaml", text).unwrap();
    let domain = TrustDomain::new("a.example").unwrap();
    document.decode(|root| Config::read(&root.table()?, &domain)).map_err(|problems| problems.to_string())
}

const INBOUND: &str = "inbound:\n- { name: a, listen: 0.0.0.0:15443, app: 127.0.0.1:80, protocol: http }\n";

#[test]
fn an_empty_file_is_a_sidecar_with_defaults() {
    let config = read("{}").unwrap();
    assert_eq!(config.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(config.policy, PolicyFrom::Authority);
    assert_eq!(config.limits, Limits::default());
    assert!(config.inbound.is_empty() && !config.access_log);
}

#[test]
fn every_key_is_read() {
    let config = read(
        "inbound:\n- { name: a, listen: 0.0.0.0:15443, app: localhost:80, protocol: grpc, paths: encoded }\n\
         outbound:\n- { name: b, listen: 127.0.0.1:1, to: [b:15443, '[::1]:2'], identity: /ns/b, protocol: tcp }\n\
         policy: policy.yaml\nadmin: { listen: 127.0.0.1:9 }\ndrain: { grace: 5s, idle: 2s }\naccess_log: true\n\
         limits: { connections: 5, requests: 7, idle: 1h }\n",
    )
    .unwrap();
    assert_eq!(config.policy, PolicyFrom::File("/etc/dir/policy.yaml".into()));
    assert_eq!(config.outbound[0].to[0], Address::Name("b".into(), 15443));
    assert_eq!(config.outbound[0].identity.to_string(), "spiffe://a.example/ns/b");
    assert_eq!((config.inbound[0].paths, config.outbound[0].paths), (Paths::Encoded, Paths::Strict));
    assert_eq!(config.drain, Drain { grace: Duration::from_secs(5), idle: Some(Duration::from_secs(2)) });
    assert_eq!(config.limits.requests, 7);
    assert_eq!((config.limits.connections, config.limits.times.idle), (5, Some(Duration::from_secs(3600))));
}

#[test]
fn how_another_process_takes_over_is_read_and_bounded() {
    let takeover = |text: &str| read(&format!("takeover: {{ {text} }}\n")).map(|config| config.takeover);
    assert_eq!(read("{}").unwrap().takeover, None);
    let read = takeover("socket: take.sock, within: 5s").unwrap().unwrap();
    assert_eq!((read.socket, read.within), ("/etc/dir/take.sock".into(), Duration::from_secs(5)));
    assert_eq!(takeover("socket: /run/take.sock").unwrap().unwrap().within, Duration::from_secs(60));
    for (wrong, key) in [
        ("", "socket"),
        ("socket: /run/take.sock, within: 0s", "takeover.within"),
        ("socket: /run/take.sock, within: 1h", "takeover.within"),
        ("sockt: /run/take.sock", "sockt"),
    ] {
        let error = takeover(wrong).unwrap_err();
        assert!(error.contains("sidecar.yaml:1:") && error.contains(key), "{wrong}: {error}");
    }
    assert!(takeover(&format!("socket: /run/{}", "a".repeat(100))).unwrap_err().contains("at most 90 bytes"));
}

#[test]
fn a_name_or_an_address_given_twice_is_reported_where_it_is_given_again() {
    let error = read(&format!(
        "{INBOUND}outbound:\n- {{ name: a, listen: 127.0.0.1:15443, to: b:1, identity: /b, protocol: http }}\n\
         - {{ name: c, listen: 127.0.0.1:15000, to: b:1, identity: /b, protocol: http }}\n"
    ))
    .unwrap_err();
    assert!(
        error.contains("dir/sidecar.yaml:4: outbound[0].name: the name \"a\" was given to inbound[0].name"),
        "{error}"
    );
    assert!(error.contains("dir/sidecar.yaml:4: outbound[0].listen: 127.0.0.1:15443 is taken"), "{error}");
    assert!(error.contains("outbound[1].listen"), "the admin endpoint's default address: {error}");
}

#[test]
fn the_plain_side_stays_on_this_host_unless_allowed() {
    let outbound = "outbound:\n- { name: a, listen: 0.0.0.0:1, to: b:1, identity: /b, protocol: http";
    assert!(read(&format!("{outbound} }}")).unwrap_err().contains("open to other hosts"));
    read(&format!("{outbound}, allow_remote: true }}")).unwrap();
    let inbound = "inbound:\n- { name: a, listen: 0.0.0.0:1, app: 10.0.0.1:1, protocol: http }";
    assert!(read(inbound).unwrap_err().contains("is not on this host"));
    assert!(read("admin: { listen: 0.0.0.0:1 }").unwrap_err().contains("no sign-in"));
}

#[test]
fn paths_are_of_http_alone() {
    let outbound =
        "outbound:\n- { name: a, listen: 127.0.0.1:1, to: b:1, identity: /b, protocol: tcp, paths: encoded }";
    assert!(read(outbound).unwrap_err().contains("of tcp nothing is known"));
    let error = read(&INBOUND.replace("http", "http, paths: loose")).unwrap_err();
    assert!(error.contains("\"loose\" is not one of strict, encoded"), "{error}");
}

#[test]
fn a_proxy_header_is_taken_from_named_networks_and_sent_over_connections_that_are_not_shared() {
    let inbound = |more: &str| format!("inbound:\n- {{ name: a, listen: 0.0.0.0:1, app: 127.0.0.1:2, {more} }}\n");
    let accept = |from: &str| inbound(&format!("protocol: http, accept_proxy_protocol: {{ {from} }}"));
    let config = read(&accept("from: [10.0.0.0/8, 192.0.2.7, '2001:db8::/32']")).unwrap();
    let accepts = config.inbound[0].accept_proxy_protocol.as_ref().unwrap();
    for (address, is_from) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("192.0.2.7", true),
        ("192.0.2.8", false),
        ("2001:db8::1", true),
    ] {
        assert_eq!(accepts.from(address.parse().unwrap()), is_from, "{address}");
    }
    assert!(accepts.others_are_refused());
    let direct = read(&accept("from: 10.0.0.1, others: direct")).unwrap();
    assert!(!direct.inbound[0].accept_proxy_protocol.as_ref().unwrap().others_are_refused());
    for (from, problem) in [
        ("from: []", "names no address"),
        ("from: 10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("from: lb.internal", "neither an IP address nor a network"),
        ("others: direct", "key \"from\" is missing"),
        ("from: 10.0.0.1, others: maybe", "is not one of refuse, direct"),
    ] {
        let error = read(&accept(from)).unwrap_err();
        assert!(error.contains(problem), "{problem:?} is not in\n{error}");
    }
    assert!(read(&inbound("protocol: tcp, send_proxy_protocol: v2")).unwrap().inbound[0].send_proxy_protocol);
    for protocol in ["http", "grpc"] {
        let error = read(&inbound(&format!("protocol: {protocol}, send_proxy_protocol: v2"))).unwrap_err();
        assert!(error.contains("shared by callers unless protocol is tcp"), "{error}");
    }
    assert!(read(&inbound("protocol: tcp, send_proxy_protocol: v1")).unwrap_err().contains("is not one of v2"));
}

#[test]
fn every_mistake_is_named_in_one_run() {
    let error = read(
        "inbound:\n- { nam: a, listen: nowhere, app: b, protocol: htp }\n\
         outbound:\n- { name: 'b c', listen: 127.0.0.1:1, to: srv://b:1, identity: ns/b, protocol: postgres }\n\
         limits: { connections: 0 }\n",
    )
    .unwrap_err();
    for expected in [
        "unknown key \"nam\"; did you mean \"name\"?",
        "inbound[0].listen",
        "inbound[0].app",
        "\"htp\" is not one of http, grpc, tcp; did you mean \"http\"?",
        "outbound[0].name",
        "srv:// takes a DNS name and no port",
        "neither a SPIFFE ID nor a path",
        "tcp carries it as it is",
        "limits.connections",
    ] {
        assert!(error.contains(expected), "{expected:?} is not in\n{error}");
    }
}

#[test]
fn addresses_that_cannot_be_dialled_are_refused() {
    for text in ["a", "a:0", "a:70000", "10.0.0.256:1", "a b:1", "::1:80", "[::1]:0", ":1", "a..b:1"] {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
    for text in ["srv://", "srv://a:1", "srv://a/b", "srv://a..b"] {
        assert_eq!(text.parse::<Address>(), Err(AddressError::Srv), "{text}");
    }
    for text in ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1", "224.0.0.1:1", "[ff02::1]:1", "255.255.255.255:1"] {
        assert_eq!(text.parse::<Address>(), Err(AddressError::Nowhere), "{text}");
    }
    assert_eq!("[fe80::1]:1".parse::<Address>(), Err(AddressError::Zone));
    let names = ["a:1", "a.b.:1", "a_b-c:1", "srv://_mesh._tcp.a.b", "srv://web.service.test."];
    for text in ["1.2.3.4:1", "[::1]:1", "[fe80::1%2]:1", "169.254.20.10:1"].into_iter().chain(names) {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
    }
}

#[test]
fn srv_records_are_for_upstreams_alone() {
    let app =
        "inbound:\n- { name: a, listen: 0.0.0.0:1, app: 'srv://_a._tcp.b', protocol: http, allow_remote: true }\n";
    assert!(read(app).unwrap_err().contains("the app is one address: write host:port"));
    let tracing = "tracing: { endpoint: 'http://srv://_a._tcp.b', allow_remote: true }";
    assert!(read(tracing).unwrap_err().contains("must be http://host:port"));
}

#[test]
fn dns_servers_are_addresses_with_the_port_of_dns_unless_given() {
    let servers = |servers: &str| read(&format!("dns: {{ servers: {servers} }}"));
    let given = servers("[10.0.0.53, '127.0.0.1:5353', '::1', '[::1]:5353']").unwrap().dns.unwrap().servers;
    let given: Vec<_> = given.iter().map(ToString::to_string).collect();
    assert_eq!(given, ["10.0.0.53:53", "127.0.0.1:5353", "[::1]:53", "[::1]:5353"]);
    assert_eq!(servers("10.0.0.53").unwrap().dns.unwrap().servers.len(), 1);
    for (written, said) in [
        ("[]", "names no server"),
        ("dns.internal", "is not the address of a DNS server"),
        ("'10.0.0.53:0'", "is not the address of one server"),
        ("[0.0.0.0]", "is not the address of one server"),
        ("'[fe80::1%1]:53'", "the zone of an address is not taken"),
        ("[1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4, 1.1.1.5, 1.1.1.6, 1.1.1.7, 1.1.1.8, 1.1.1.9]", "at most 8"),
    ] {
        let error = servers(written).unwrap_err();
        assert!(error.contains("dns.servers") && error.contains(said), "{written}: {error}");
    }
    let error = read("dns: { sever: 10.0.0.53 }").unwrap_err();
    assert!(error.contains("key \"servers\" is missing") && error.contains("unknown key \"sever\""), "{error}");
    assert_eq!(read("{}").unwrap().dns, None);
}

#[test]
fn spans_need_a_collector_on_this_host_unless_allowed() {
    let read = |tracing: &str| read(&format!("tracing: {{ {tracing} }}"));
    let tracing = read("endpoint: 'http://localhost:4317/', service: shop").unwrap().tracing.unwrap();
    assert_eq!((tracing.endpoint, tracing.sample), (Address::Name("localhost".into(), 4317), 0.01));
    assert_eq!(tracing.service.as_deref(), Some("shop"));
    let error = read("endpoint: 'http://collector:4317'").unwrap_err();
    assert!(error.contains("dir/sidecar.yaml:1: tracing.endpoint: collector:4317 is not on this host"), "{error}");
    read("endpoint: 'http://collector:4317', allow_remote: true").unwrap();
}

#[test]
fn a_collector_is_http_with_host_and_port_and_nothing_else() {
    for (endpoint, said) in [
        ("127.0.0.1:4317", "must be http://host:port of a collector"),
        ("grpc://127.0.0.1:4317", "must be http://host:port of a collector"),
        ("https://127.0.0.1:4317", "https is not taken"),
        ("http://127.0.0.1", "with a port"),
        ("http://127.0.0.1:0", "with a port"),
        ("http://me:secret@127.0.0.1:4317", "without user, path and query"),
        ("http://127.0.0.1:4317/v1/traces", "without user, path and query"),
        ("http://127.0.0.1:4317?a=b", "without user, path and query"),
        ("http://127.0.0.1:4317//", "without user, path and query"),
    ] {
        let error = read(&format!("tracing: {{ endpoint: '{endpoint}' }}")).unwrap_err();
        assert!(error.contains("tracing.endpoint: ") && error.contains(said), "{endpoint}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for sample in ["-0.1", "1.1", "NaN", "inf", "often", "1%"] {
        let error = read(&format!("tracing: {{ endpoint: 'http://[::1]:4317', sample: {sample} }}")).unwrap_err();
        assert!(error.contains("tracing.sample: must be a number from 0"), "{sample}: {error}");
    }
    let error = read("tracing: { sampel: 1, service: '' }").unwrap_err();
    for said in ["key \"endpoint\" is missing", "did you mean \"sample\"?", "tracing.service: has no value"] {
        assert!(error.contains(said), "{error}");
    }
}

/// What is wrong with an outbound listener that says `more`.
fn outbound(protocol: &str, more: &str) -> Result<Config, String> {
    read(&format!(
        "outbound:\n- {{ name: a, listen: 127.0.0.1:1, to: [b:1, c:1], identity: /b, protocol: {protocol}, {more} }}\n"
    ))
}

#[test]
fn endpoints_are_spread_over_ejected_and_asked_by_default_as_is_best_for_most() {
    let of = |protocol| outbound(protocol, "allow_remote: false");
    let http = &of("http").unwrap().outbound[0];
    assert_eq!((http.balance, &http.check), (Balance::PeakEwma, &None));
    assert_eq!((http.ejection, &http.retry), (Ejection::default(), &Retry::default()));
    assert_eq!(of("tcp").unwrap().outbound[0].balance, Balance::LeastConnections);
}

#[test]
fn what_is_said_of_endpoints_is_read() {
    let config = outbound(
        "http",
        "balance: least_request, ejection: { failures: off, behind_percent: 10, backoff: 2s, longest: 1m }, \
         check: { http: /healthz, interval: 5s, timeout: 1s, unhealthy: 2, healthy: 3 }, \
         retry: { attempts: 2, methods: [GET, POST], statuses: [502, 503], body_bytes: 1000, budget_percent: 5 }",
    );
    let outbound = config.unwrap().outbound.remove(0);
    let seconds = Duration::from_secs;
    assert_eq!(outbound.balance, Balance::LeastRequest);
    let ejection = Ejection { failures: None, behind: Some(10), backoff: seconds(2), longest: seconds(60) };
    assert_eq!(outbound.ejection, ejection);
    let (ask, interval, timeout) = (Ask::Http("/healthz".into()), seconds(5), seconds(1));
    assert_eq!(outbound.check, Some(Check { ask, interval, timeout, unhealthy: 2, healthy: 3 }));
    assert_eq!((outbound.retry.attempts, outbound.retry.body_bytes, outbound.retry.budget_percent), (2, 1000, 5));
    assert_eq!(outbound.retry.statuses, [502, 503]);
}

#[test]
fn a_mirror_is_read_with_what_routes_say_of_it() {
    let config = outbound(
        "http",
        "mirror: { percent: 5, to: [d:1, e:2] }, \
         routes: [{ paths: /a, mirror: { percent: 0 } }, { paths: /b }]",
    );
    let mut read = config.unwrap().outbound.remove(0);
    let mirror = read.mirror.take().unwrap();
    assert_eq!((mirror.percent, mirror.to.len(), mirror.body_bytes), (5, 2, 65_536));
    assert_eq!((mirror.identity, mirror.requests, mirror.timeout), (read.identity, 100, Duration::from_secs(60)));
    assert_eq!(read.routes.iter().map(|route| route.mirror).collect::<Vec<_>>(), [Some(0), None]);
    let config = outbound(
        "grpc",
        "mirror: { percent: 100, to: 'srv://_a._tcp.b', identity: /shadow, body_bytes: 0, requests: 7, timeout: 5s }",
    );
    let mirror = config.unwrap().outbound.remove(0).mirror.unwrap();
    assert_eq!(mirror.identity.to_string(), "spiffe://a.example/shadow");
    assert_eq!((mirror.body_bytes, mirror.requests, mirror.timeout), (0, 7, Duration::from_secs(5)));
    assert_eq!(outbound("http", "allow_remote: true").unwrap().outbound[0].mirror, None);
}

#[test]
fn what_makes_no_sense_of_endpoints_is_refused_with_the_mend() {
    for (protocol, more, says) in [
        ("http", "balance: fastest", "\"fastest\" is not one of peak_ewma, least_request"),
        ("tcp", "balance: peak_ewma", "write least_connections or round_robin"),
        ("http", "balance: least_connections", "write least_request"),
        ("http", "ejection: { failures: 0 }", "ejection.failures"),
        ("http", "ejection: { backoff: 10s, longest: 1s }", "is shorter than the backoff"),
        ("http", "ejection: never", "\"never\" is not one of off"),
        ("http", "check: { interval: 1s }", "must have one of the keys http, grpc, connect"),
        ("http", "check: { http: health }", "is no path like /health"),
        ("http", "check: { grpc: all }", "write http: /path"),
        ("grpc", "check: { http: /health }", "write grpc: all"),
        ("tcp", "check: { http: /health }", "write connect: true"),
        ("tcp", "check: { connect: false }", "is true, or not written at all"),
        ("http", "check: { http: /health, interval: 0s }", "check.interval"),
        ("http", "retry: { attempts: 0 }", "retry.attempts"),
        ("http", "retry: { attempts: 1000000 }", "retry.attempts"),
        ("http", "retry: { statuses: [200] }", "retry.statuses[0]"),
        ("http", "retry: { methods: [get] }", "methods are written like GET"),
        ("http", "retry: { body: 1 }", "unknown key"),
        ("tcp", "retry: off", "no requests are known"),
        ("http", "split: [{ percent: 60, to: d:1 }, { percent: 41, to: e:1 }]", "takes 101 of a hundred requests"),
        ("http", "split: [{ percent: 0, to: d:1 }]", "split[0].percent"),
        ("http", "split: [{ percent: 5 }]", "split[0]"),
        ("http", "mirror: { to: d:1 }", "key \"percent\" is missing"),
        ("http", "mirror: { percent: 5 }", "key \"to\" is missing"),
        ("http", "mirror: { percent: 101, to: d:1 }", "mirror.percent"),
        ("http", "mirror: { percent: 5, to: [] }", "names no address"),
        ("http", "mirror: { percent: 5, to: d:1, body_bytes: 2000000 }", "mirror.body_bytes"),
        ("http", "mirror: { percent: 5, to: d:1, requests: 0 }", "mirror.requests"),
        ("http", "mirror: { percent: 5, to: d:1, timeout: 0s }", "mirror.timeout"),
        ("http", "mirror: { percent: 5, to: d:1, methods: [GET] }", "unknown key"),
        ("tcp", "mirror: { percent: 5, to: d:1 }", "no requests are known"),
        ("http", "routes: [{ paths: /a, mirror: { percent: 5 } }]", "the listener has no mirror"),
        ("http", "mirror: { percent: 5, to: d:1 }, routes: [{ paths: /a, mirror: {} }]", "routes[0].mirror"),
    ] {
        let error = outbound(protocol, more).unwrap_err();
        assert!(error.contains(says) && error.contains("sidecar.yaml:2"), "{more}: {error}");
    }
}
