"""Mutual TLS connections at B, full and resumed, each with one request: what one costs."""

from lib.kernel import cpu
from lib.load import load
from lib.processes import Failure

NAME = "handshakes"
TITLE = "Handshakes: mutual TLS connections at B, with one request each"
COLUMNS = [
    ("full_us", "full, CPU µs at B", 0),
    ("full_per_cpu_second", "per CPU second", 0),
    ("resumed_us", "resumed, CPU µs at B", 0),
    ("resumed_per_cpu_second", "per CPU second", 0),
    ("group", "key exchange", None),
    ("failed", "failed", 0),
]


def measure(ground, peer, backends, settings):
    """Full handshakes, then resumed ones. None of a pair whose B does not take HTTP/1.1."""
    with ground.pair(peer, backends.static()) as pair:
        if not pair.tls:
            return None
        # The first handshake of a process seeds its random numbers, which takes 100 ms with some libraries.
        handshakes(ground, pair, "no", 0.2)
        full = handshakes(ground, pair, "no", settings.seconds)
        resumed = handshakes(ground, pair, "yes", settings.seconds)
    if not full["full"]:
        raise Failure(f"no handshake: {full['error']}")
    found = {"group": full["group"], "failed": full["failed"] + resumed["failed"]}
    found |= {"full_us": full["cpu"] / full["full"] * 1e6, "full_per_cpu_second": full["full"] / full["cpu"]}
    # A pair that does not resume makes full handshakes here, which must not pass for resumed ones.
    if resumed["resumed"] > 10 * resumed["full"]:
        count = resumed["resumed"] + resumed["full"]
        found |= {"resumed_us": resumed["cpu"] / count * 1e6, "resumed_per_cpu_second": count / resumed["cpu"]}
    return found


def handshakes(ground, pair, resume, seconds):
    """One run of the load, with the CPU seconds of B."""
    before = cpu(pair.b.pid)
    done = load(ground, "handshakes", "--to", pair.mesh, "--seconds", seconds, "--resume", resume, "--parallel", 8,
                "--tls", pair.tls, limit=seconds + 30)
    return done | {"cpu": cpu(pair.b.pid) - before}
