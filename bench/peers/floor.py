"""The floors: the least that could do the job, from bench/tools."""

from lib.ground import Pair


class Floor:
    """One kind of the `floor` tool on both sides."""

    def __init__(self, kind, buffer="8k"):
        large = buffer != "8k"
        self.kind, self.buffer = kind, buffer
        self.name = f"floor-{kind}" + (f"-{buffer}" if large else "")
        self.title = f"floor {kind}" + (f", {buffer.removesuffix('k')} KiB buffers" if large else "")
        # Larger buffers change what bulk costs, and the memory of a connection for the worse.
        self.scenarios = ["bulk"] if large else None

    def version(self, ground):
        """The floors are of this repository."""
        return "this repository"

    def start(self, ground, backend):
        """Starts both sides."""
        listen, mesh = ground.address(), ground.address()
        sides = {"b": ("server", mesh, backend), "a": ("client", listen, mesh)}
        started = {}
        for side, (svid, address, to) in sides.items():
            files = ["--cert", ground.svids / f"{svid}.pem", "--key", ground.svids / f"{svid}.key"]
            command = [ground.tools / "floor", self.kind, "--side", side, "--listen", address, "--to", to, *files,
                       "--ca", ground.svids / "ca.pem", "--buffer", self.buffer]
            ground.config(self.name, f"{side}.sh", " ".join(map(str, ["floor", *command[1:]])) + "\n")
            started[side] = ground.sidecar(f"{self.name}-{side}", command)
        # Side b of h2 speaks nothing else, and the load that dials it speaks HTTP/1.1.
        tls = None if self.kind == "h2" else ground.client_tls
        return Pair(a=started["a"], b=started["b"], listen=listen, mesh=mesh, tls=tls)
