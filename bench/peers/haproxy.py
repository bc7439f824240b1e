"""HAProxy of Debian, with HTTP/2 or HTTP/1.1 between the sides."""

import re

from lib.ground import Pair
from lib.processes import output


class HAProxy:
    """One thread each. `http-no-delay`, or events of a stream are held for up to 200 ms."""

    scenarios = None

    def __init__(self, between):
        self.between = between
        self.name = f"haproxy-{between}"
        self.title = f"HAProxy, {between} between"

    def version(self, ground):
        """As it says itself."""
        return re.search(r"version (\S+)", output(["haproxy", "-v"]))[1]

    def start(self, ground, backend):
        """Starts both sides."""
        listen, mesh, svids = ground.address(), ground.address(), ground.svids
        offered, taken = ("h2", "h2,http/1.1") if self.between == "h2" else ("http/1.1", "http/1.1")
        tls = f"ca-file {svids}/ca.pem verify required ssl-min-ver TLSv1.3"
        sides = {
            "b": CONFIG.format(
                bind=f"{mesh} ssl crt {svids}/server.both {tls} alpn {taken}", server=f"{backend}",
            ),
            "a": CONFIG.format(
                bind=listen, server=f"{mesh} ssl crt {svids}/client.both {tls} alpn {offered}",
            ),
        }
        started = {}
        for side, text in sides.items():
            path = ground.config(self.name, f"{side}.cfg", text)
            started[side] = ground.sidecar(f"{self.name}-{side}", ["haproxy", "-db", "-f", path])
        return Pair(a=started["a"], b=started["b"], listen=listen, mesh=mesh, tls=ground.client_tls)


CONFIG = """\
global
    nbthread 1
    maxconn 9500

defaults
    mode http
    option http-no-delay
    http-reuse always
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h

frontend in
    bind {bind}
    default_backend out

backend out
    server out {server}
"""
