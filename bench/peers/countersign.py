"""Countersign with everything on: an authority, a policy of 100 rules, metrics, guard, identity headers.

Identities come from a real authority by join tokens. In a `sidecar` the agent is in the process that is measured; in
the split pair the agent is a process of its own, and the proxy alone is measured.
"""

import time
import urllib.error
import urllib.request

from lib.ground import READY, Pair
from lib.processes import LOAD_CPU, Failure, output

RULES = 100


class Countersign:
    """Two sidecars, or two proxies beside their agents."""

    scenarios = None

    def __init__(self, split=False):
        self.split = split
        self.name = "countersign-split" if split else "countersign"
        self.title = "Countersign, agent apart" if split else "Countersign"

    def version(self, ground):
        """As it says itself."""
        return output([ground.countersign, "--version"]).split()[-1]

    def start(self, ground, backend):
        """Starts authority, agents and sidecars."""
        self.start_authority(ground)
        listen, mesh = ground.address(), ground.address()
        lines = self.data_path(listen, mesh, backend)
        started = {name: self.start_side(ground, name, data_path) for name, data_path in lines.items()}
        svid = ground.directory / self.name / "svid"
        output([ground.tools / "svids", "--out", svid, "--workload-api", f"unix://{svid.parent}/client.sock"])
        tls = ",".join(str(svid / name) for name in ["client.pem", "client.key", "ca.pem"])
        return Pair(a=started["client"], b=started["server"], listen=listen, mesh=mesh, tls=tls)

    def data_path(self, listen, mesh, backend):
        """What each side's file says of its listener."""
        return {
            "server": f"inbound:\n  - {{ name: in, listen: {mesh}, app: {backend}, protocol: http }}\n",
            "client": f"outbound:\n  - {{ name: out, listen: {listen}, to: \"{mesh}\", "
                      "identity: /ns/bench/sa/server, protocol: http }\n",
        }

    def start_authority(self, ground):
        """Makes an authority with its registrations and the policy, and starts it."""
        directory = ground.directory / self.name / "ca"
        directory.parent.mkdir()
        self.authority, admin = ground.address(), ground.address()
        output([ground.countersign, "ca", "init", "--trust-domain", "bench.example", "--directory", directory,
                "--listen", self.authority])
        registered = "".join(
            f"  - {{ id: /ns/bench/sa/{name}, attest: {{ join_token: {{}} }} }}\n" for name in ["client", "server"]
        )
        (directory / "workloads.yaml").write_text(f"workloads:\n{registered}")
        (directory / "policy.yaml").write_text(policy())
        kept = [line for line in (directory / "ca.yaml").read_text().splitlines() if not line.startswith("admin:")]
        (directory / "ca.yaml").write_text("\n".join([*kept, f"admin: {{ listen: {admin} }}", ""]))
        ground.config(self.name, "policy.yaml", policy())
        ground.processes.start(
            f"{self.name}-ca", [ground.countersign, "ca", "run", "-c", directory / "ca.yaml"], LOAD_CPU)
        ready(ground, admin)

    def start_side(self, ground, service, data_path, of=None):
        """Starts a sidecar of `service`, or an agent and its proxy; returns what is measured. `of` tells apart those of one
        service."""
        name = of or service
        directory, admin = ground.directory / self.name, ground.address()
        ca = directory / "ca"
        create = ["ca", "token", "create", "-c", ca / "ca.yaml", "--service", f"bench/{service}"]
        token = output([ground.countersign, *create])
        (directory / f"{name}.token").write_text(token.strip())
        domain = "trust_domain: bench.example\n"
        identity = (
            f"identity:\n  authority: \"{self.authority}\"\n  bundle: {ca}/bundle.pem\n"
            f"  attest: {{ join_token_file: {directory}/{name}.token }}\n  socket: {directory}/{name}.sock\n"
        )
        served = data_path + LIMITS + f"admin: {{ listen: {admin} }}\n"
        if self.split:
            own = f"admin: {{ listen: {ground.address()} }}\n"
            agent = ground.config(self.name, f"{name}-agent.yaml", domain + identity + own)
            ground.processes.start(
                f"{self.name}-{name}-agent", [ground.countersign, "agent", "-c", agent], LOAD_CPU)
            identity = f"identity: {{ workload_api: unix://{directory}/{name}.sock }}\n"
        path = ground.config(self.name, f"{name}.yaml", domain + identity + served)
        kind = "proxy" if self.split else "sidecar"
        process = ground.sidecar(f"{self.name}-{name}", [ground.countersign, kind, "-c", path])
        ready(ground, admin)
        return process


def policy():
    """A hundred rules about one service, each of which could have been the one: other callers, other paths of the same
    caller, and every tenth a denial. The one that lets the load pass is in the middle."""
    rules = []
    for number in range(RULES):
        caller = "client" if number % 2 else f"other-{number}"
        allow = f"allow: {{ methods: [GET, POST], paths: [\"/v{number}/**\", /health-{number}] }}"
        if number == RULES // 2:
            caller, allow = "client", "allow: { methods: [GET, POST], paths: [/, /bulk] }"
        elif number % 10 == 0:
            caller, allow = "client", f"deny: {{ paths: [\"/v{number}/admin/**\"] }}"
        rules.append(f"  - {{ name: rule {number}, from: /ns/bench/sa/{caller}, to: /ns/bench/sa/server, {allow} }}\n")
    return "version: 1\ntrust_domain: bench.example\nrules:\n" + "".join(rules)


def ready(ground, admin):
    """Waits until the admin endpoint says so."""
    end, why = time.monotonic() + READY, None
    while time.monotonic() < end:
        ground.processes.alive()
        try:
            with urllib.request.urlopen(f"http://{admin}/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError) as error:
            why = error
        time.sleep(0.02)
    raise Failure(f"{admin} was not ready within {READY:.0f} s: {why}")


# One client makes all of the load here, and one caller may have a quarter of these.
LIMITS = "limits: { connections: 40000, requests: 16000 }\n"
