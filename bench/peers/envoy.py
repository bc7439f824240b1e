"""Envoy from PyPI, with HTTP/2 or HTTP/1.1 between the sides.

As its manual advises for measurements ("How do I benchmark Envoy?"): one worker, no request IDs, no dynamic
statistics, circuit breakers out of the way.
"""

import glob
import json
import os
import pathlib
import re

from lib.ground import Pair
from lib.processes import Failure, output

CACHE = pathlib.Path(os.environ.get("COUNTERSIGN_CACHE", pathlib.Path.home() / ".cache/countersign"))
TYPES = "type.googleapis.com/envoy.extensions"
IDENTITY = "spiffe://bench.example/ns/bench/sa"


def executable():
    """Envoy's own executable: its wrapper in bin/ would be measured too."""
    for path in glob.glob(f"{CACHE}/bench-venv/lib/python3*/site-packages/envoy*/**/envoy", recursive=True):
        with open(path, "rb") as file:
            if file.read(4) == b"\x7fELF":
                return path
    raise Failure(f"no Envoy in {CACHE}/bench-venv: run bench/setup")


class Envoy:
    """One worker thread each."""

    scenarios = None

    def __init__(self, between):
        self.between = between
        self.name = f"envoy-{between}"
        self.title = f"Envoy, {between} between"

    def version(self, ground):
        """As it says itself."""
        return re.search(r"version: \w+/([^/]+)", output([executable(), "--version"]))[1]

    def start(self, ground, backend):
        """Starts both sides."""
        listen, mesh = ground.address(), ground.address()
        h2 = self.between == "h2"
        server = tls(ground.svids, "server", "client", ["h2", "http/1.1"] if h2 else ["http/1.1"])
        client = tls(ground.svids, "client", "server", ["h2"] if h2 else ["http/1.1"])
        down = transport("DownstreamTlsContext", require_client_certificate=True, common_tls_context=server)
        up = transport("UpstreamTlsContext", common_tls_context=client)
        sides = {
            "b": config(listener(mesh, down), cluster(backend)),
            "a": config(listener(listen), cluster(mesh, up, http2=h2)),
        }
        started = {}
        for side, text in sides.items():
            path = ground.config(self.name, f"{side}.json", json.dumps(text, indent=2) + "\n")
            command = [executable(), "--concurrency", 1, "--disable-hot-restart", "--log-level", "error", "-c", path]
            started[side] = ground.sidecar(f"{self.name}-{side}", command)
        return Pair(a=started["a"], b=started["b"], listen=listen, mesh=mesh, tls=ground.client_tls)


def config(listening, leading):
    """One listener that leads to one cluster."""
    return {"static_resources": {"listeners": [listening], "clusters": [leading]}}


def socket_address(address):
    """An address as Envoy writes it."""
    host, port = address.split(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def listener(address, transport_socket=None):
    """Takes HTTP/1.1, and HTTP/2 if the handshake agreed on it."""
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "out", "timeout": "0s"}}]
    router = {"@type": f"{TYPES}.filters.http.router.v3.Router", "dynamic_stats": False}
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "generate_request_id": False,
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    if transport_socket:
        chain["transport_socket"] = transport_socket
    return {"name": "in", "address": socket_address(address), "tcp_backlog_size": 4096, "filter_chains": [chain]}


def cluster(address, transport_socket=None, *, http2=False):
    """Leads to one address, in one version of HTTP."""
    endpoint = {"endpoint": {"address": socket_address(address)}}
    limits = ["max_connections", "max_pending_requests", "max_requests", "max_retries"]
    version = "http2_protocol_options" if http2 else "http_protocol_options"
    options = f"{TYPES}.upstreams.http.v3.HttpProtocolOptions"
    leading = {
        "name": "out",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "out", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, 100_000)]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options, "explicit_http_config": {version: {}},
            }
        },
    }
    if transport_socket:
        leading["transport_socket"] = transport_socket
    return leading


def transport(kind, **context):
    """A transport socket with TLS."""
    context["@type"] = f"{TYPES}.transport_sockets.tls.v3.{kind}"
    return {"name": "tls", "typed_config": context}


def tls(svids, own, other, alpn):
    """TLS 1.3 alone, an SVID shown, the other's SPIFFE ID required."""
    uri = {"san_type": "URI", "matcher": {"exact": f"{IDENTITY}/{other}"}}
    files = {"certificate_chain": f"{svids}/{own}.pem", "private_key": f"{svids}/{own}.key"}
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{key: {"filename": path} for key, path in files.items()}],
        "validation_context": {"trusted_ca": {"filename": f"{svids}/ca.pem"}, "match_typed_subject_alt_names": [uri]},
        "alpn_protocols": alpn,
    }
