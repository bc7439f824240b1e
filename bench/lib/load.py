"""Load, by wrk and by our own tool, from the load's CPU."""

import json
import pathlib

from lib.processes import Failure, output

SUMMARY = pathlib.Path(__file__).with_name("wrk.lua")


def wrk(address, connections, seconds):
    """A closed loop: each connection sends its next request when the last was answered."""
    arguments = ["wrk", "--threads", 1, "--connections", connections, "--duration", f"{seconds}s", "--timeout", "2s"]
    printed = output([*arguments, "--script", SUMMARY, f"http://{address}/"], limit=seconds + 30)
    return parsed(printed)


def load(ground, kind, *arguments, limit):
    """A run of `load`: the JSON that it prints."""
    return parsed(output([ground.tools / "load", kind, *arguments], limit=limit))


def parsed(printed):
    """The JSON in the last line of what a program printed."""
    try:
        return json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        raise Failure(f"no JSON at the end of {printed[-500:]!r}") from None
