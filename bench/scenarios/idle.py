"""Memory: of a pair that has answered once, and of each connection that was used once and is kept.

It is what the processes hold. What the kernel keeps for a socket is not in it, and is the same for each pair.
"""

import contextlib
import json
import select
import subprocess
import time

from lib.kernel import memory
from lib.processes import LOAD_CPU, Failure

NAME = "idle"
TITLE = "Idle: memory at rest and per idle connection"
COLUMNS = [
    ("a_rss_mib", "RSS MiB, A", 1),
    ("b_rss_mib", "B", 1),
    ("a_pss_mib", "PSS MiB, A", 1),
    ("b_pss_mib", "B", 1),
    ("plain_kib", "KiB per plain connection at A", 1),
    ("mtls_kib", "KiB per mTLS connection at B", 1),
    ("unanswered", "unanswered when asked again", 0),
]
WARM = 16
"""Connections that are opened and closed first: as many as `load idle` opens at once."""
LIMIT = 120
"""Seconds in which all connections are open, or were asked."""
REST = 0.5
"""Seconds until what is no longer needed is given back."""


def measure(ground, peer, backends, settings):
    """A pair at rest, then with plain connections at A; a fresh one with mTLS connections at B."""
    connections = settings.idle_connections
    with ground.pair(peer, backends.static()) as pair:
        time.sleep(REST)
        a, b = memory(pair.a.pid), memory(pair.b.pid)
        plain, unanswered = each(ground, pair.a, pair.listen, connections)
    found = {
        "a_rss_mib": a.rss / 1024, "b_rss_mib": b.rss / 1024, "a_pss_mib": a.pss / 1024, "b_pss_mib": b.pss / 1024,
        "plain_kib": plain,
    }
    # Anew, or B would serve from memory that the plain connections made it take.
    with ground.pair(peer, backends.static()) as pair:
        if pair.tls:
            found["mtls_kib"], more = each(ground, pair.b, pair.mesh, connections, "--tls", pair.tls)
            unanswered += more
    return found | {"unanswered": unanswered}


def each(ground, side, address, connections, *tls):
    """KiB of `side` for each connection, and how many did not answer when they were asked again. What a few
    connections leave behind, such as the pool of connections to the next hop, is not counted."""
    with held(ground, address, WARM, *tls):
        pass
    time.sleep(REST)
    before = memory(side.pid).held
    with held(ground, address, connections, *tls) as ask:
        return (memory(side.pid).held - before) / connections, ask()


@contextlib.contextmanager
def held(ground, address, connections, *tls):
    """Idle connections. Gives a function that sends a request on each and returns how many were not answered."""
    command = [ground.tools / "load", "idle", "--to", address, "--connections", connections, *tls]
    client = ground.processes.start(
        "load-idle", command, LOAD_CPU, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        opened = json.loads(read(client))
        if opened["failed"]:
            raise Failure(f"{opened['failed']} of {connections} connections could not be opened: {opened['error']}")
        time.sleep(REST)

        def ask():
            client.stdin.write("ask\n")
            client.stdin.flush()
            return json.loads(read(client))["failed"]

        yield ask
    finally:
        ground.processes.stop([client])
        client.stdin.close()
        client.stdout.close()


def read(client):
    """The next line, of which there is one for each question."""
    ready, _, _ = select.select([client.stdout], [], [], LIMIT)
    line = client.stdout.readline() if ready else ""
    if not line:
        raise Failure("load idle ended" if ready else f"load idle took more than {LIMIT} s")
    return line
