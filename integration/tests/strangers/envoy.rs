//! Envoy, which knows SPIFFE IDs: it verifies the URI of the other side's certificate.

use countersign_integration::{Process, peers};
use serde_json::{Value, json};

use crate::{Place, Speaks};

/// It takes `other` for its server, and nobody else.
pub(crate) async fn client(place: &Place<'_>, speaks: Speaks, other: &str) -> Process {
    let context = json!({ "common_tls_context": tls(place, speaks, other) });
    let listener = listener(place, Speaks::Both, None);
    let cluster = cluster(place, speaks, Some(transport("UpstreamTlsContext", context)));
    peers::envoy(&place.directory, &bootstrap(listener, cluster), place.listen).await
}

/// It takes `other` for a client, and nobody else. What is behind it speaks `app`.
pub(crate) async fn server(place: &Place<'_>, speaks: Speaks, app: Speaks, other: &str) -> Process {
    let context = json!({ "require_client_certificate": true, "common_tls_context": tls(place, speaks, other) });
    let listener = listener(place, speaks, Some(transport("DownstreamTlsContext", context)));
    let cluster = cluster(place, app, None);
    peers::envoy(&place.directory, &bootstrap(listener, cluster), place.listen).await
}

fn bootstrap(listener: Value, cluster: Value) -> Value {
    json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } })
}

fn listener(place: &Place<'_>, speaks: Speaks, transport_socket: Option<Value>) -> Value {
    let codec = match speaks {
        Speaks::Http1 => "HTTP1",
        Speaks::Http2 => "HTTP2",
        Speaks::Both | Speaks::Unsaid => "AUTO",
    };
    let mut manager = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "codec_type": codec,
        "generate_request_id": false,
        "http_protocol_options": { "enable_trailers": true },
        "http2_protocol_options": { "allow_connect": true },
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "out", "timeout": "0s" } }],
        }] },
        "http_filters": [{
            "name": "router",
            "typed_config": { "@type": format!("{TYPES}.filters.http.router.v3.Router") },
        }],
    });
    let mut chain = json!({});
    if let Some(transport_socket) = transport_socket {
        chain["transport_socket"] = transport_socket;
        // It tells what is behind it who called.
        manager["forward_client_cert_details"] = json!("SANITIZE_SET");
        manager["set_current_client_cert_details"] = json!({ "uri": true });
    }
    chain["filters"] = json!([{ "name": "http", "typed_config": manager }]);
    json!({ "name": "in", "address": address(place.listen), "filter_chains": [chain] })
}

fn cluster(place: &Place<'_>, speaks: Speaks, transport_socket: Option<Value>) -> Value {
    let version = if speaks == Speaks::Http2 {
        json!({ "http2_protocol_options": { "allow_connect": true } })
    } else {
        json!({ "http_protocol_options": { "enable_trailers": true } })
    };
    let mut cluster = json!({
        "name": "out",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "out",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(place.to) } }] }],
        },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": version,
        } },
    });
    if let Some(transport_socket) = transport_socket {
        cluster["transport_socket"] = transport_socket;
    }
    cluster
}

fn transport(kind: &str, mut context: Value) -> Value {
    context["@type"] = json!(format!("{TYPES}.transport_sockets.tls.v3.{kind}"));
    json!({ "name": "tls", "typed_config": context })
}

fn tls(place: &Place<'_>, speaks: Speaks, other: &str) -> Value {
    let alpn = match speaks {
        Speaks::Http1 => json!(["http/1.1"]),
        Speaks::Http2 => json!(["h2"]),
        Speaks::Both => json!(["h2", "http/1.1"]),
        Speaks::Unsaid => json!([]),
    };
    json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": { "filename": place.svid.chain() },
            "private_key": { "filename": place.svid.key() },
        }],
        "validation_context": {
            "trusted_ca": { "filename": place.svid.bundle() },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": other } }],
        },
        "alpn_protocols": alpn,
    })
}

fn address(address: std::net::SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

const TYPES: &str = "type.googleapis.com/envoy.extensions";
