"""What the kernel counts of a process: time on a CPU and memory, over its threads and its children."""

import dataclasses
import pathlib
import re

PROC = pathlib.Path("/proc")


def family(pid):
    """A process and all that descend from it: HAProxy and nginx work in children."""
    found, left = [], [pid]
    while left:
        pid = left.pop()
        found.append(pid)
        for task in (PROC / str(pid) / "task").iterdir():
            left += map(int, (task / "children").read_text().split())
    return found


def cpu(pid):
    """Seconds that a family has run, user and system. From schedstat, which counts nanoseconds and not ticks."""
    nanoseconds = 0
    for member in family(pid):
        for task in (PROC / str(member) / "task").iterdir():
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


@dataclasses.dataclass
class Memory:
    """KiB of a family."""

    rss: int = 0
    """Counts a page that master and worker share twice."""
    pss: int = 0
    """Counts it once, and of a library that others use too a part."""
    held: int = 0
    """Without files: what was allocated, by the process or in memory that its family shares."""


def memory(pid):
    """What a family holds now."""
    found = Memory()
    for member in family(pid):
        text = (PROC / str(member) / "smaps_rollup").read_text()
        kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        found.rss += kib["Rss"]
        found.pss += kib["Pss"]
        found.held += kib["Pss_Anon"] + kib["Pss_Shmem"]
    return found


class Meter:
    """CPU seconds of each side of a pair between two moments."""

    def __init__(self, pair):
        self.pair = pair

    def __enter__(self):
        self.a, self.b = cpu(self.pair.a.pid), cpu(self.pair.b.pid)
        return self

    def __exit__(self, *_):
        self.a, self.b = cpu(self.pair.a.pid) - self.a, cpu(self.pair.b.pid) - self.b

    @property
    def both(self):
        """Of both sides together."""
        return self.a + self.b
