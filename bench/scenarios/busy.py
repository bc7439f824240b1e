"""32 connections in a closed loop: what a request costs while there is always another."""

from lib.kernel import Meter
from lib.load import wrk
from lib.processes import Failure

NAME = "busy"
TITLE = "Busy: 32 connections, closed loop"
COLUMNS = [
    ("cpu_us", "CPU µs/request, A+B", 1),
    ("cpu_a_us", "A", 1),
    ("cpu_b_us", "B", 1),
    ("rps", "requests/s", 0),
    ("errors", "errors", 0),
]
CONNECTIONS = 32


def measure(ground, peer, backends, settings):
    """One second to warm up, then the measurement."""
    with ground.pair(peer, backends.static()) as pair:
        wrk(pair.listen, CONNECTIONS, 1)
        with Meter(pair) as meter:
            done = wrk(pair.listen, CONNECTIONS, settings.seconds)
    requests = done["requests"]
    if not requests:
        raise Failure("no request was answered")
    return {
        "cpu_us": meter.both / requests * 1e6,
        "cpu_a_us": meter.a / requests * 1e6,
        "cpu_b_us": meter.b / requests * 1e6,
        "rps": done["requests"] / done["seconds"],
        "errors": done["broken"] + done["status"] + done["timeout"],
    }
