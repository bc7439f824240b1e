"""One large body over one connection, from the backend and to it."""

from lib.kernel import Meter
from lib.load import load

NAME = "bulk"
TITLE = "Bulk: one body over one connection"
COLUMNS = [
    ("down_gb_s", "down, GB/s", 2),
    ("down_cpu_s_per_gb", "CPU s/GB, A+B", 2),
    ("up_gb_s", "up, GB/s", 2),
    ("up_cpu_s_per_gb", "CPU s/GB, A+B", 2),
]


def measure(ground, peer, backends, settings):
    """Down from nginx, up to a backend that reads all before it answers."""
    found = {}
    for direction, backend, path in [("down", backends.static(), "/bulk"), ("up", backends.sink(), "/")]:
        with ground.pair(peer, backend) as pair, Meter(pair) as meter:
            # At 10 MB/s it has failed.
            done = load(ground, "bulk", "--url", f"http://{pair.listen}{path}", "--bytes", settings.bulk_bytes,
                        "--direction", direction, limit=10 + settings.bulk_bytes / 1e7)
        found[f"{direction}_gb_s"] = done["gigabytes_per_second"]
        found[f"{direction}_cpu_s_per_gb"] = meter.both / done["bytes"] * 1e9
    return found
