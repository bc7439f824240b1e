"""Where a run takes place: directories, ports, certificates, backends, and a pair while it runs."""

import contextlib
import dataclasses
import http.client
import itertools
import os
import pathlib
import shutil
import socket
import subprocess
import time

from lib.processes import LOAD_CPU, PAIR_CPU, Failure, Processes, output

READY = 30.0
"""Seconds that a pair may take from its start to its first answer."""


@dataclasses.dataclass
class Settings:
    """How long and how much is measured."""

    seconds: int
    """Of one point."""
    storm: int
    """Of the time in which a thousand connections may be opened before they are measured."""
    idle_connections: int
    bulk_bytes: int
    streams: int
    events: int


@dataclasses.dataclass
class Pair:
    """Two sidecars that run."""

    a: subprocess.Popen
    b: subprocess.Popen
    listen: str
    """Where A takes plain connections."""
    mesh: str
    """Where B takes TLS."""
    tls: str | None = None
    """What a client shows to B, as `load --tls` takes it; None if B does not take HTTP/1.1 connections."""


class Ground:
    """A directory on tmpfs with certificates, the backend's files, and what pairs write."""

    def __init__(self, directory: pathlib.Path, processes: Processes, tools: pathlib.Path, countersign: pathlib.Path,
                 configs: pathlib.Path):
        self.directory = directory
        self.processes = processes
        self.tools = tools
        self.countersign = countersign
        self.configs = configs
        self.svids = directory / "svids"
        self.client_tls = ",".join(str(self.svids / name) for name in ["client.pem", "client.key", "ca.pem"])
        # Below the ephemeral ports, or a connection of the load takes one before its listener does.
        self.ports = itertools.cycle(range(20000 + os.getpid() % 5000, 32000))
        output([tools / "svids", "--out", self.svids])
        for side in ["client", "server"]:
            # HAProxy reads chain and key from one file.
            both = (self.svids / f"{side}.pem").read_text() + (self.svids / f"{side}.key").read_text()
            (self.svids / f"{side}.both").write_text(both)

    def address(self):
        """An address on loopback on which nothing listens."""
        for port in self.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", port))
                    return f"127.0.0.1:{port}"
        raise Failure("no port is free")

    def config(self, pair, name, text):
        """Writes a configuration file of a pair, and keeps a copy beside the results. Returns its path."""
        directory = self.directory / pair
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(text)
        kept = self.configs / pair / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(text.replace(str(self.directory), "/DIRECTORY"))
        return directory / name

    def sidecar(self, name, arguments):
        """Starts one side of a pair, where pairs run."""
        return self.processes.start(name, arguments, PAIR_CPU)

    @contextlib.contextmanager
    def pair(self, peer, backend):
        """The pair of `peer` before `backend`, from its first answer on."""
        before = list(self.processes.running)
        try:
            pair = peer.start(self, backend)
            self.answers(pair.listen)
            yield pair
            self.processes.alive()
        finally:
            self.processes.stop([process for process in self.processes.running if process not in before])
            shutil.rmtree(self.directory / peer.name, ignore_errors=True)

    def answers(self, address):
        """Waits until a GET of / is answered with 200."""
        end, why = time.monotonic() + READY, None
        while time.monotonic() < end:
            self.processes.alive()
            connection = http.client.HTTPConnection(address, timeout=2)
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                if response.status == 200:
                    return
                why = f"status {response.status}"
            except (OSError, http.client.HTTPException) as error:
                why = repr(error)
            finally:
                connection.close()
            time.sleep(0.02)
        raise Failure(f"{address} did not answer within {READY:.0f} s: {why}")

    def start_backend(self, kind):
        """Starts `stream` or `sink` of the backend tool. Returns its address."""
        address = self.address()
        self.processes.start(f"backend-{kind}", [self.tools / "backend", kind, "--listen", address], LOAD_CPU)
        self.answers(address)
        return address

    def start_nginx(self, bulk_bytes):
        """Starts the backend of most scenarios: nginx with a body of 1 KiB and one of `bulk_bytes`."""
        address, directory = self.address(), self.directory / "backend"
        (directory / "www").mkdir(parents=True)
        (directory / "www/index.html").write_bytes(b"x" * 1024)
        with open(directory / "www/bulk", "wb") as bulk:
            bulk.truncate(bulk_bytes)
        # nginx runs its worker as another user if it is started by root.
        for path in [self.directory, directory, directory / "www"]:
            path.chmod(0o755)
        path = self.config("backend", "nginx.conf", NGINX.format(address=address, directory=directory))
        self.processes.start("backend-nginx", ["nginx", "-p", directory, "-c", path], LOAD_CPU)
        self.answers(address)
        return address


NGINX = """\
# The backend: never what is waited for.
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log error;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    sendfile on;
    open_file_cache max=16;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    server {{
        listen {address} backlog=4096;
        root {directory}/www;
    }}
}}
"""
