use super::*;

fn map(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    map
}

fn left(mut headers: HeaderMap, sanitize: fn(&mut HeaderMap)) -> Vec<String> {
    sanitize(&mut headers);
    let mut left: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    left.sort();
    left
}

#[test]
fn headers_for_this_hop_are_removed_and_others_stay() {
    let headers = map(&[
        ("connection", "keep-alive, X-Private"),
        ("connection", "x-other"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("http2-settings", "AAMAAABk"),
        ("x-private", "1"),
        ("x-private", "2"),
        ("x-other", "3"),
        ("host", "a"),
        ("x-kept", "4"),
        ("set_by_app", "5"),
    ]);
    assert_eq!(left(headers.clone(), sanitize_request), ["host: a", "set_by_app: 5", "x-kept: 4"]);
    assert_eq!(left(headers.clone(), sanitize_response), ["host: a", "set_by_app: 5", "x-kept: 4"]);
    assert_eq!(left(headers, remove_hop_by_hop), ["host: a", "set_by_app: 5", "x-kept: 4"]);
}

#[test]
fn connection_cannot_take_away_what_others_rely_on() {
    let headers = [
        ("authorization", "x"),
        ("content-length", "5"),
        ("content-type", "x"),
        ("cookie", "x"),
        ("host", "a"),
        ("traceparent", "x"),
        ("x-forwarded-for", "x"),
        ("x-request-id", "x"),
    ];
    let names: Vec<_> = headers.iter().map(|(name, _)| name.to_uppercase()).collect();
    let mut map = map(&headers);
    map.insert(CONNECTION, HeaderValue::try_from(names.join(" , ")).unwrap());
    let kept: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(left(map, sanitize_request), kept);
}

#[test]
fn te_keeps_only_trailers() {
    assert_eq!(left(map(&[("te", "gzip, Trailers")]), sanitize_request), ["te: trailers"]);
    assert_eq!(left(map(&[("te", "trailers"), ("connection", "te")]), sanitize_request), ["te: trailers"]);
    assert_eq!(left(map(&[("te", "gzip")]), sanitize_request), [""; 0]);
}

#[test]
fn claimed_identities_are_removed_in_every_spelling() {
    let claims = [
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
        "X-Forwarded_Client-Cert",
        "x-countersign-fault",
        "x_countersign_decision",
        "X-Countersign_anything",
        "x-envoy-original-path",
        "X_Envoy_Internal",
        "l5d-client-id",
        "L5D_Client_Id",
        "proxy",
    ];
    let mut headers: Vec<_> = claims.iter().map(|name| (*name, "spiffe://a/b")).collect();
    headers.extend(headers.clone());
    headers.push(("x-forwarded-for", "1.2.3.4"));
    headers.push(("x-countersignature", "1"));
    assert_eq!(left(map(&headers), sanitize_request), ["x-countersignature: 1", "x-forwarded-for: 1.2.3.4"]);
    assert_eq!(left(map(&headers[..24]), sanitize_trailers), [""; 0]);
}

#[test]
fn an_application_cannot_fake_what_we_say_of_a_request() {
    let headers = [("x-countersign-fault", "policy"), ("X_Countersign_Decision", "1"), ("x-envoy-upstream", "1")];
    assert_eq!(left(map(&headers), sanitize_response), ["x-envoy-upstream: 1"]);
    assert_eq!(left(map(&headers[..1]), remove_hop_by_hop), ["x-countersign-fault: policy"]);
}

#[test]
fn trailers_hold_no_framing_routing_or_rights() {
    let trailers = map(&[
        ("grpc-status", "0"),
        ("x-checksum", "1"),
        ("content-length", "5"),
        ("transfer_encoding", "chunked"),
        ("host", "b"),
        ("authorization", "x"),
        ("set-cookie", "x"),
        ("connection", "x-checksum"),
        ("te", "trailers"),
        ("content-type", "x"),
    ]);
    assert_eq!(left(trailers, sanitize_trailers), ["grpc-status: 0", "x-checksum: 1"]);
}

#[test]
fn what_is_no_text_in_connection_hides_no_name_beside_it() {
    let mut headers = map(&[("x-private", "1"), ("x-kept", "2")]);
    headers.insert(CONNECTION, HeaderValue::from_bytes(b"\xff, x-private").unwrap());
    assert_eq!(left(headers, sanitize_request), ["x-kept: 2"]);
}
