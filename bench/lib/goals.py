"""The goals of the data path, and whether a run met them."""

import dataclasses

from lib.rounds import median, values

HTTP_PEERS = ["haproxy-h2", "haproxy-h1", "nginx", "envoy-h2", "envoy-h1"]


@dataclasses.dataclass
class Bound:
    """A limit: a number, or `factor` times the best of some pairs in the same round, and `plus`."""

    absolute: float | None = None
    pairs: list[str] = dataclasses.field(default_factory=list)
    factor: float = 1.0
    plus: float = 0.0
    text: str = ""

    def of_round(self, results, goal, number):
        """The limit in one round; None if one of the pairs has no value: the best of some is not the best."""
        if self.absolute is not None:
            return self.absolute
        found = [values(results, pair, goal.scenario, goal.key) for pair in self.pairs]
        found = [rounds[number] if number < len(rounds) else None for rounds in found]
        if None in found:
            return None
        return self.factor * (max(found) if goal.at_least else min(found)) + self.plus


@dataclasses.dataclass
class Goal:
    """What one figure should be: `first` for sure, `beyond` as far as it goes."""

    what: str
    scenario: str
    key: str
    first: list[Bound]
    beyond: list[Bound] = dataclasses.field(default_factory=list)
    at_least: bool = False
    decimals: int = 1


def judge(results, ours, goal, bound):
    """(the limit's median, met) over the rounds that have both values; None if there is none. It is met if the median
    of the distances, taken within each round, is on the right side."""
    pairs = []
    for number, value in enumerate(values(results, ours, goal.scenario, goal.key)):
        limit = bound.of_round(results, goal, number)
        if value is not None and limit is not None:
            pairs.append((value, limit))
    if not pairs:
        return None
    distance = median([value - limit for value, limit in pairs])
    met = distance >= 0 if goal.at_least else distance <= 0
    return median([limit for _, limit in pairs]), met


def added(rate, quantile):
    """The goal of an added latency."""
    return Goal(f"added {quantile} at {rate:,} req/s, µs", "open", f"added_{quantile}_{rate}",
                [Bound(pairs=HTTP_PEERS, text="the best L7 peer")], decimals=0)


GOALS = [
    Goal("CPU per request, busy, A+B, µs", "busy", "cpu_us",
         [Bound(pairs=["haproxy-h2"], text="HAProxy h2"),
          Bound(pairs=["envoy-h2"], factor=0.35, text="0.35 × Envoy h2")],
         [Bound(pairs=["floor-l4"], factor=1.2, text="1.2 × floor l4")]),
    Goal("CPU per request at 1,000 req/s, A+B, µs", "open", "cpu_us_1000",
         [Bound(pairs=["nginx", "haproxy-h1", "haproxy-h2"], factor=0.9, text="0.9 × the best of nginx and HAProxy")],
         [Bound(pairs=["floor-raw"], factor=1.1, text="1.1 × floor raw")]),
    *(added(rate, quantile) for rate in [1000, 4000] for quantile in ["p50", "p99"]),
    *(Goal(f"idle memory of the proxy, {side.upper()}, RSS MiB", "idle", f"{side}_rss_mib", [Bound(8.0, text="8 MiB")],
           [Bound(pairs=["floor-l4"], plus=1.0, text="floor l4 + 1 MiB")]) for side in ["a", "b"]),
    Goal("memory per idle plain connection, KiB", "idle", "plain_kib", [Bound(6.0, text="6 KiB")],
         [Bound(1.0, text="1 KiB")]),
    Goal("memory per idle mTLS connection, KiB", "idle", "mtls_kib", [Bound(26.0, text="26 KiB")],
         [Bound(10.0, text="10 KiB")]),
    Goal("full mTLS connection, CPU µs at B", "handshakes", "full_us",
         [Bound(600.0, text="600 µs"), Bound(pairs=["envoy-h2", "envoy-h1"], factor=0.6, text="0.6 × Envoy")],
         [Bound(pairs=["floor-l4"], text="floor l4")], decimals=0),
    *(Goal(f"bulk {direction}, GB/s", "bulk", f"{direction}_gb_s",
           [Bound(pairs=["envoy-h1"], factor=1.3, text="1.3 × Envoy h1")],
           [Bound(pairs=["floor-l4-64k"], text="floor l4 with large buffers")], at_least=True, decimals=2)
      for direction in ["down", "up"]),
    Goal("1,000 busy connections, req/s", "many", "rps",
         [Bound(pairs=["haproxy-h2"], factor=1.8, text="1.8 × HAProxy h2")], at_least=True, decimals=0),
    Goal("1,000 busy connections, time-outs", "many", "timeouts", [Bound(0.0, text="0")], decimals=0),
    Goal("stream: first event, p50 µs", "stream", "first_p50_us",
         [Bound(pairs=["floor-h1"], factor=1.1, text="1.1 × floor h1")], decimals=0),
    Goal("stream: delay of an event, p50 µs", "stream", "delay_p50_us",
         [Bound(pairs=["floor-h1"], factor=1.1, text="1.1 × floor h1")], decimals=0),
]
NOT_MEASURED = "Goals beside Linkerd (0.35 × its CPU per request) and ztunnel are not judged: neither has a package."
