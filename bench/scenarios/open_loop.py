"""Requests on a fixed schedule: what a request costs at a low rate, and how much later its answer comes than from the
backend itself, measured just before."""

from lib.kernel import Meter
from lib.load import load

RATES = [1000, 4000]
CONNECTIONS = 32
DISTURBED = 0.05
"""The share of requests to the backend alone that may leave late; with more there are no latencies in that round."""
QUANTILES = {"p50": "p50", "p99": "p99", "p999": "p99.9"}

NAME = "open"
TITLE = "Open loop: 1,000 and 4,000 requests/s on schedule"
COLUMNS = [
    column
    for rate in RATES
    for column in [
        (f"cpu_us_{rate}", f"CPU µs/request, A+B, at {rate:,}/s", 0),
        *((f"added_{key}_{rate}", f"added {quantile} µs", 0) for key, quantile in QUANTILES.items()),
        (f"failed_{rate}", "failed", 0),
        (f"late_{rate}", "sent late", 0),
        (f"direct_late_{rate}", "without the pair", 0),
    ]
]


def measure(ground, peer, backends, settings):
    """For each rate, the backend alone and then the pair."""
    found = {}
    backend = backends.static()
    with ground.pair(peer, backend) as pair:
        for rate in RATES:
            direct = scheduled(ground, backend, rate, settings)
            with Meter(pair) as meter:
                through = scheduled(ground, pair.listen, rate, settings)
            # Each connection was used once before the schedule began.
            found[f"cpu_us_{rate}"] = meter.both / (through["sent"] + CONNECTIONS) * 1e6
            found[f"failed_{rate}"] = through["failed"]
            found[f"late_{rate}"] = through["late"]
            found[f"direct_late_{rate}"] = direct["late"]
            # Without the pair nothing waits: if requests left late then, others had the load's CPU.
            if direct["late"] > DISTURBED * direct["sent"]:
                continue
            for key, quantile in QUANTILES.items():
                found[f"added_{key}_{rate}"] = through[quantile] - direct[quantile]
                found[f"direct_{key}_{rate}"] = direct[quantile]
    return found


def scheduled(ground, address, rate, settings):
    """One run of the schedule."""
    seconds = settings.seconds
    return load(ground, "open", "--url", f"http://{address}/", "--rate", rate, "--seconds", seconds, "--connections",
                CONNECTIONS, limit=seconds + 30)
