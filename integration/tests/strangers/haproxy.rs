//! HAProxy of Debian.

use countersign_integration::{Process, peers};

use crate::{Place, Speaks};

pub(crate) async fn client(place: &Place<'_>, speaks: Speaks) -> Process {
    let Place { listen, to, .. } = place;
    let tls = tls(place, speaks);
    let sections = format!(
        "frontend in\n    bind {listen}\n    default_backend out\nbackend out\n    server out {to} {tls} \
         sni str(server.test.example) verifyhost server.test.example"
    );
    peers::haproxy(&place.directory, &sections, *listen).await
}

pub(crate) async fn server(place: &Place<'_>, speaks: Speaks) -> Process {
    let Place { listen, to, .. } = place;
    let tls = tls(place, speaks);
    // 0: the certificate was there and was verified.
    let sections = format!(
        "frontend in\n    bind {listen} {tls}\n    http-request set-header X-Verified %[ssl_c_used]-%[ssl_c_verify]\n    \
         default_backend out\nbackend out\n    server out {to}"
    );
    peers::haproxy(&place.directory, &sections, *listen).await
}

/// As [`client`], for bytes of which it knows nothing.
pub(crate) async fn client_of_bytes(place: &Place<'_>) -> Process {
    let Place { listen, to, .. } = place;
    let tls = tls(place, Speaks::Unsaid);
    let sections = format!(
        "listen in\n    mode tcp\n    bind {listen}\n    server out {to} {tls} sni str(server.test.example) \
         verifyhost server.test.example"
    );
    peers::haproxy(&place.directory, &sections, *listen).await
}

/// As [`server`], for bytes of which it knows nothing.
pub(crate) async fn server_of_bytes(place: &Place<'_>) -> Process {
    let Place { listen, to, .. } = place;
    let tls = tls(place, Speaks::Unsaid);
    let sections = format!("listen in\n    mode tcp\n    bind {listen} {tls}\n    server out {to}");
    peers::haproxy(&place.directory, &sections, *listen).await
}

fn tls(place: &Place<'_>, speaks: Speaks) -> String {
    let (both, bundle) = (place.svid.both(), place.svid.bundle());
    let alpn = match speaks {
        Speaks::Http1 => "alpn http/1.1",
        Speaks::Http2 => "alpn h2",
        Speaks::Both => "alpn h2,http/1.1",
        Speaks::Unsaid => "",
    };
    format!("ssl crt {both} ca-file {bundle} verify required ssl-min-ver TLSv1.3 {alpn}")
}
