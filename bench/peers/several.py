"""Balancers before several endpoints. The peers are one process without TLS, which is to their advantage; Countersign is
a sidecar, and one more beside each endpoint."""

import json

from peers import envoy, haproxy
from peers.countersign import Countersign


class Countersigned(Countersign):
    """A caller's sidecar, and one beside each endpoint."""

    def __init__(self, balance):
        super().__init__()
        self.balance = balance
        self.name, self.title = f"several-{balance}", f"Countersign, {balance}"

    def start(self, ground, addresses):
        """Returns where the caller's sidecar listens."""
        self.start_authority(ground)
        reached = []
        for number, address in enumerate(addresses):
            mesh = ground.address()
            inbound = f"inbound:\n  - {{ name: in, listen: {mesh}, app: {address}, protocol: http }}\n"
            self.start_side(ground, "server", inbound, of=f"server-{number}")
            reached.append(f'"{mesh}"')
        listen = ground.address()
        self.start_side(
            ground, "client",
            f"outbound:\n  - {{ name: out, listen: {listen}, to: [{', '.join(reached)}], identity: /ns/bench/sa/server, "
            f"protocol: http, balance: {self.balance} }}\n")
        return listen


class HAProxied:
    """HAProxy, with one of its algorithms."""

    def __init__(self, balance):
        self.balance = balance
        self.name, self.title = f"several-haproxy-{balance}", f"HAProxy, {balance}"

    def start(self, ground, addresses):
        """Returns where it listens."""
        listen = ground.address()
        text = haproxy.CONFIG.format(bind=listen, server=addresses[0])
        text += "".join(f"    server out-{number} {address}\n" for number, address in enumerate(addresses[1:]))
        path = ground.config(self.name, "haproxy.cfg", f"{text}    balance {self.balance}\n")
        ground.sidecar(self.name, ["haproxy", "-db", "-f", path])
        return listen


class Envoyed:
    """Envoy, with one of its policies."""

    def __init__(self, policy):
        self.policy = policy
        self.name, self.title = f"several-envoy-{policy.lower()}", f"Envoy, {policy}"

    def start(self, ground, addresses):
        """Returns where it listens."""
        listen = ground.address()
        leading = envoy.cluster(addresses[0]) | {"lb_policy": self.policy}
        endpoints = [{"endpoint": {"address": envoy.socket_address(address)}} for address in addresses]
        leading["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
        text = json.dumps(envoy.config(envoy.listener(listen), leading), indent=2) + "\n"
        path = ground.config(self.name, "envoy.json", text)
        command = [envoy.executable(), "--concurrency", 1, "--disable-hot-restart", "--log-level", "error", "-c", path]
        ground.sidecar(self.name, command)
        return listen


SEVERAL = [
    Countersigned("peak_ewma"),
    Countersigned("least_request"),
    Countersigned("round_robin"),
    HAProxied("leastconn"),
    HAProxied("roundrobin"),
    Envoyed("LEAST_REQUEST"),
    Envoyed("ROUND_ROBIN"),
]
