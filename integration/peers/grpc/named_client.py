"""Asks the service of health_server.py for its name.

    named_client.py HOST:PORT COUNT

It prints what each of so many calls was answered, a line each, and ends with 1 at the first that fails.
"""

import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
name = channel.unary_unary("/test.Named/Name")
for _ in range(int(sys.argv[2])):
    print(name(b"", timeout=20).decode())
