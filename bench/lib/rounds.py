"""The rounds: each takes every pair through every scenario, so that the machine's drift meets all of them alike."""

import statistics
import sys
import time

from lib.processes import Failure


class Backends:
    """The backends, each started when it is first needed."""

    def __init__(self, ground, bulk_bytes):
        self.ground, self.bulk_bytes = ground, bulk_bytes
        self.addresses = {}

    def static(self):
        """nginx."""
        return self.once("static", lambda: self.ground.start_nginx(self.bulk_bytes))

    def stream(self):
        """Server-sent events."""
        return self.once("stream", lambda: self.ground.start_backend("stream"))

    def sink(self):
        """Reads what is posted."""
        return self.once("sink", lambda: self.ground.start_backend("sink"))

    def once(self, name, start):
        """The address of a backend that runs by now."""
        if name not in self.addresses:
            self.addresses[name] = start()
        return self.addresses[name]


def run(ground, pairs, scenarios, rounds, settings):
    """All rounds. Returns {pair: {scenario: [value of a round, ...]}}; a value is a dictionary, its `error` says why a
    measurement failed, and None that the pair has none."""
    backends = Backends(ground, settings.bulk_bytes)
    # Outside of each pair's life, or they would end with the first that needs them.
    for scenario_backend in [backends.static, backends.stream, backends.sink]:
        scenario_backend()
    results = {pair.name: {scenario.NAME: [] for scenario in scenarios} for pair in pairs}
    for number in range(1, rounds + 1):
        for pair in pairs:
            for scenario in scenarios:
                if pair.scenarios is not None and scenario.NAME not in pair.scenarios:
                    results[pair.name][scenario.NAME].append(None)
                    continue
                started = time.monotonic()
                try:
                    value = scenario.measure(ground, pair, backends, settings)
                except (Failure, OSError) as failure:
                    value = {"error": str(failure)}
                results[pair.name][scenario.NAME].append(value)
                said = "none" if value is None else ", ".join(f"{key} {shown(found)}" for key, found in value.items())
                seconds = time.monotonic() - started
                print(f"round {number}/{rounds}  {pair.name}  {scenario.NAME} ({seconds:.1f} s)  {said}",
                      file=sys.stderr, flush=True)
    return results


def shown(value):
    """A number for the eye."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def values(results, pair, scenario, key):
    """What each round found for a key, in order; None for a round that found none."""
    rounds = results.get(pair, {}).get(scenario, [])
    return [value.get(key) if value else None for value in rounds]


def median(found):
    """The median of the rounds that found something; None if there is none. Of words, the last."""
    found = [value for value in found if value is not None]
    if not found:
        return None
    return statistics.median(found) if all(isinstance(value, (int, float)) for value in found) else found[-1]


def spread(found):
    """How far the rounds are apart: the largest value divided by the smallest."""
    found = [value for value in found if value is not None]
    return max(found) / min(found) if found and min(found) > 0 else None


def ratio(results, pair, base, scenario, key):
    """The median over the rounds of one pair's value divided by another's of the same round."""
    both = zip(values(results, pair, scenario, key), values(results, base, scenario, key), strict=False)
    return median([ours / theirs for ours, theirs in both if ours is not None and theirs])
