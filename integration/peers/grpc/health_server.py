"""A service of gRPC with the official health service beside it (grpcio-health-checking).

    health_server.py PORT

It answers `/test.Named/Name` with its port, `/grpc.health.v1.Health/Check` by how it does: SERVING, from SIGUSR1 on
NOT_SERVING, from SIGUSR2 on SERVING again, for all of it and for the service `test.Named`.
"""

import signal
import sys
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

PORT = sys.argv[1]

server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=[("grpc.so_reuseport", 0)])
states = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(states, server)
named = grpc.unary_unary_rpc_method_handler(lambda request, context: PORT.encode())
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Named", {"Name": named}),))


def say(status):
    for service in ("", "test.Named"):
        states.set(service, status)


say(health_pb2.HealthCheckResponse.SERVING)
server.add_insecure_port("127.0.0.1:" + PORT)
server.start()

NEXT = {
    signal.SIGUSR1: health_pb2.HealthCheckResponse.NOT_SERVING,
    signal.SIGUSR2: health_pb2.HealthCheckResponse.SERVING,
}
signal.pthread_sigmask(signal.SIG_BLOCK, NEXT)
while True:
    say(NEXT[signal.sigwait(NEXT)])
