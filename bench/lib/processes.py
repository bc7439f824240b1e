"""Processes that are pinned, logged and ended, whatever happens to the measurements."""

import os
import pathlib
import signal
import subprocess
import time

PAIR_CPU = 0
"""Where both sidecars of a pair run: what is compared is what they cost together."""
LOAD_CPU = 1
"""Where load and backend run, so that they take nothing from the pair."""


class Failure(Exception):
    """A measurement that could not be made. It is recorded, and the run goes on."""


class Processes:
    """The processes of a run. Leaving the context ends each of them."""

    def __init__(self, logs: pathlib.Path):
        self.logs = logs
        self.running: list[subprocess.Popen] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(self.running)

    def start(self, name, arguments, cpu, **streams):
        """Starts a process on `cpu`; its output goes to NAME.log unless `streams` says otherwise."""
        with open(self.logs / f"{name}.log", "wb") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | streams
            # A session of its own: ^C reaches this program only, which then ends the process in order. If this
            # program is killed, the kernel ends it.
            process = subprocess.Popen(pinned(arguments, cpu), start_new_session=True, **streams)
        process.name = name
        self.running.append(process)
        return process

    def stop(self, processes):
        """Ends processes: in order first, at once for those that drain, then by force."""
        ending = list(processes)
        for wait, number in [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGKILL)]:
            for process in ending:
                if process.poll() is None:
                    # The whole session: nginx and the like have workers.
                    os.killpg(process.pid, number)
            end = time.monotonic() + wait
            while time.monotonic() < end and any(process.poll() is None for process in ending):
                time.sleep(0.01)
        for process in ending:
            self.running.remove(process)

    def alive(self):
        """Raises if a process ended by itself, with the end of its log."""
        for process in self.running:
            if process.poll() is not None:
                log = (self.logs / f"{process.name}.log").read_text(errors="replace")
                raise Failure(f"{process.name} ended with {process.returncode}: {log[-1000:]}")


def pinned(arguments, cpu):
    """A command line that runs on one CPU and does not outlive this program."""
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", str(cpu), *map(str, arguments)]


def output(arguments, cpu=LOAD_CPU, limit=60.0):
    """What a command prints; a failure if it fails, or takes longer than `limit` seconds."""
    try:
        done = subprocess.run(pinned(arguments, cpu), capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"{arguments[0]} took more than {limit:.0f} s") from None
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, arguments[:2]))} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout
