"""The server of gRPC's interoperability tests, with grpcio.

    interop_server.py PORT

It is what doc/interop-test-descriptions.md of grpc/grpc asks of a server, for the calls in interop.proto. For tests that
look at what it saw, it prints `cancelled StreamingOutputCall` if such a call was over before it was answered, and tells
the time that a call has left as initial metadata, `x-time-left-ms`.
"""

import os
import sys
import threading
import time
from concurrent import futures

import grpc

sys.path.insert(0, os.path.dirname(__file__))
messages, services = grpc.protos_and_services("interop.proto")

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class TestService(services.TestServiceServicer):
    def EmptyCall(self, request, context):
        echo_metadata(context)
        return messages.Empty()

    def UnaryCall(self, request, context):
        echo_metadata(context)
        echo_status(request, context)
        return messages.SimpleResponse(payload=zeros(request.response_size))

    def StreamingOutputCall(self, request, context):
        answered = threading.Event()

        def over():
            if not answered.is_set():
                print("cancelled StreamingOutputCall", flush=True)

        context.add_callback(over)
        echo_metadata(context)
        yield from responses(request)
        answered.set()

    def StreamingInputCall(self, requests, context):
        size = sum(len(request.payload.body) for request in requests)
        return messages.StreamingInputCallResponse(aggregated_payload_size=size)

    def FullDuplexCall(self, requests, context):
        echo_metadata(context)
        for request in requests:
            echo_status(request, context)
            yield from responses(request)


def responses(request):
    for parameters in request.response_parameters:
        time.sleep(parameters.interval_us / 1e6)
        yield messages.StreamingOutputCallResponse(payload=zeros(parameters.size))


def zeros(size):
    return messages.Payload(body=bytes(size))


def echo_metadata(context):
    received = dict(context.invocation_metadata())
    initial = [(INITIAL, received[INITIAL])] if INITIAL in received else []
    left = context.time_remaining()
    if left is not None and left < 3600:
        initial.append(("x-time-left-ms", str(int(left * 1000))))
    # Only if there are any: a call without initial metadata may be answered with trailers alone.
    if initial:
        context.send_initial_metadata(initial)
    if TRAILING in received:
        context.set_trailing_metadata([(TRAILING, received[TRAILING])])


def echo_status(request, context):
    if request.response_status.code:
        context.abort(CODES[request.response_status.code], request.response_status.message)


if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=[("grpc.so_reuseport", 0)])
    services.add_TestServiceServicer_to_server(TestService(), server)
    server.add_insecure_port("127.0.0.1:" + sys.argv[1])
    server.start()
    server.wait_for_termination()
