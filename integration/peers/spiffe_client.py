"""A SPIFFE client that is not ours: py-spiffe against the Workload API at SPIFFE_ENDPOINT_SOCKET.

    spiffe_client.py x509 [--timeout S]      fetch one X.509 context, print it as one JSON line
    spiffe_client.py watch N [--timeout S]   print one JSON line for each update until N were seen

A line holds spiffe_id, chain_len and trust_domains (of all bundles, sorted); `watch` adds update (from 1) and
serial (of the leaf, hex), so that a test can tell a renewal from a repeat. Nothing secret is printed.
Exit: 0 done, 1 the Workload API failed or the time was up (reason on stderr), 2 usage.
"""

import argparse
import json
import queue
import sys
import time

from spiffe import WorkloadApiClient
from spiffe.errors import PySpiffeError


def main():
    parser = argparse.ArgumentParser(description="py-spiffe as a peer in tests")
    commands = parser.add_subparsers(dest="command", required=True)
    x509_command = commands.add_parser("x509")
    watch_command = commands.add_parser("watch")
    watch_command.add_argument("updates", type=positive)
    for command in (x509_command, watch_command):
        command.add_argument("--timeout", type=float, default=10.0, help="seconds for the whole run")
    arguments = parser.parse_args()

    try:
        # The constructor does not wait: it raises ArgumentError while the socket file does not exist.
        with WorkloadApiClient() as client:
            if arguments.command == "x509":
                emit(describe(client.fetch_x509_context(timeout=arguments.timeout)))
            else:
                watch(client, arguments.updates, arguments.timeout)
    except (PySpiffeError, TimeoutError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def watch(client, updates, timeout):
    # X509Source tells its subscribers only that something changed and shows only the newest, so two quick updates
    # could be seen as one. The stream hands over each of them, the first included.
    arrived = queue.Queue()
    stream = client.stream_x509_contexts(on_success=arrived.put, on_error=arrived.put)
    deadline = time.monotonic() + timeout
    try:
        for update in range(1, updates + 1):
            try:
                item = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"{update - 1} of {updates} updates in {timeout} s") from None
            if isinstance(item, Exception):
                raise item
            emit(describe(item) | {"update": update, "serial": f"{item.default_svid.leaf.serial_number:x}"})
    finally:
        stream.cancel()


def describe(context):
    svid = context.default_svid
    return {
        "spiffe_id": str(svid.spiffe_id),
        "chain_len": len(svid.cert_chain),
        "trust_domains": sorted(bundle.trust_domain.name for bundle in context.x509_bundle_set.bundles),
    }


def emit(record):
    print(json.dumps(record), flush=True)


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
