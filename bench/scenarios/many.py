"""1,000 connections in a closed loop: whether a pair holds what it can do, and whether anybody starves."""

from lib.kernel import Meter
from lib.load import wrk

NAME = "many"
TITLE = "Many: 1,000 busy connections, closed loop"
COLUMNS = [
    ("rps", "requests/s", 0),
    ("cpu_us", "CPU µs/request, A+B", 1),
    ("timeouts", "time-outs (2 s)", 0),
    ("errors", "other errors", 0),
]
CONNECTIONS = 1000


def measure(ground, peer, backends, settings):
    """A warm-up, in which a pair that has HTTP/1.1 between its sides makes a thousand connections, then the
    measurement."""
    with ground.pair(peer, backends.static()) as pair:
        wrk(pair.listen, CONNECTIONS, settings.storm)
        with Meter(pair) as meter:
            done = wrk(pair.listen, CONNECTIONS, settings.seconds)
    return {
        "rps": done["requests"] / done["seconds"],
        "cpu_us": meter.both / done["requests"] * 1e6 if done["requests"] else None,
        "timeouts": done["timeout"],
        "errors": done["broken"] + done["status"],
    }
