//! nginx of Debian: HTTP/1.1 to what it proxies, HTTP/1.1 or HTTP/2 from who calls.

use countersign_integration::{Process, peers};

use crate::{Place, Speaks};

pub(crate) async fn client(place: &Place<'_>) -> Process {
    let Place { listen, to, svid, .. } = place;
    let (chain, key, bundle) = (svid.chain(), svid.key(), svid.bundle());
    let server = format!(
        "upstream out {{ server {to}; keepalive 8; }}\n\
         server {{\nlisten {listen};\n{BODIES}\nlocation / {{\nproxy_pass https://out;\nproxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\nproxy_set_header Host $http_host;\nproxy_request_buffering off;\nproxy_buffering off;\n\
         proxy_ssl_protocols TLSv1.3;\nproxy_ssl_certificate {chain};\nproxy_ssl_certificate_key {key};\n\
         proxy_ssl_trusted_certificate {bundle};\nproxy_ssl_verify on;\nproxy_ssl_name server.test.example;\n}}\n}}"
    );
    peers::nginx(&place.directory, &server, *listen).await
}

pub(crate) async fn server(place: &Place<'_>, speaks: Speaks) -> Process {
    let Place { listen, to, svid, .. } = place;
    let (chain, key, bundle) = (svid.chain(), svid.key(), svid.bundle());
    let http2 = match speaks {
        Speaks::Http1 => "",
        Speaks::Both => " http2",
        other => panic!("nginx cannot speak {other:?}"),
    };
    let server = format!(
        "server {{\nlisten {listen} ssl{http2};\n{BODIES}\nssl_protocols TLSv1.3;\nssl_certificate {chain};\n\
         ssl_certificate_key {key};\nssl_client_certificate {bundle};\nssl_verify_client on;\nlocation / {{\n\
         proxy_pass http://{to};\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";\nproxy_set_header Host $http_host;\n\
         proxy_set_header X-Verified $ssl_client_verify;\nproxy_request_buffering off;\nproxy_buffering off;\n}}\n}}"
    );
    peers::nginx(&place.directory, &server, *listen).await
}

const BODIES: &str = "client_max_body_size 0;";
