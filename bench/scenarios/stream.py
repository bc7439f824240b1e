"""Server-sent events: how long the first takes, and how much later than it was sent each arrives."""

from lib.load import load

NAME = "stream"
TITLE = "Stream: server-sent events, one each 10 ms"
COLUMNS = [
    ("first_p50_us", "first event, p50 µs", 0),
    ("delay_p50_us", "delay of an event, p50 µs", 0),
    ("delay_p99_us", "p99 µs", 0),
]


def measure(ground, peer, backends, settings):
    """Some streams, one after the other, on connections of their own."""
    with ground.pair(peer, backends.stream()) as pair:
        done = load(ground, "stream", "--url", f"http://{pair.listen}/", "--streams", settings.streams, "--events",
                    settings.events, limit=30 + settings.streams * settings.events * 0.05)
    return {
        "first_p50_us": done["first"]["p50"],
        "delay_p50_us": done["delay"]["p50"],
        "delay_p99_us": done["delay"]["p99"],
    }
