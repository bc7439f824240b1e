"""What the run was made on."""

import datetime
import os
import pathlib
import platform
import re
import subprocess
import time


def describe(root):
    """Machine, kernel, compiler, commit and date."""
    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = int(re.search(r"^MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)[1])
    release = pathlib.Path("/etc/os-release").read_text()
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{os.cpu_count()} × {cpu[1] if cpu else platform.machine()}",
        "memory": f"{memory / 2**20:.0f} GiB",
        "system": f"{system[1] if system else 'unknown'}, Linux {platform.release()}",
        "rustc": said(["rustc", "--version"], root),
        "commit": said(["git", "describe", "--always", "--dirty", "--abbrev=12"], root),
        "CPUs busy before the start": f"{busy():.0%}",
    }


def busy():
    """What share of the CPUs others take, over one second."""
    def times():
        total = pathlib.Path("/proc/stat").read_text().splitlines()[0]
        user, nice, system, idle, wait, *rest = map(int, total.split()[1:])
        return user + nice + system + sum(rest[:3]), idle + wait

    busy_before, idle_before = times()
    time.sleep(1)
    busy_after, idle_after = times()
    return (busy_after - busy_before) / max(busy_after - busy_before + idle_after - idle_before, 1)


def said(command, directory):
    """The first line that a command prints."""
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0]
