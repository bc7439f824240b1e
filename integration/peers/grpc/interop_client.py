"""The client of gRPC's interoperability tests, with grpcio, and a few cases of our own.

    interop_client.py HOST:PORT CASE...

A case has the name that doc/interop-test-descriptions.md of grpc/grpc gives it, and does what is written there; all share
one channel. `ok NAME` is printed for each that holds.
"""

import json
import os
import queue
import sys

import grpc

sys.path.insert(0, os.path.dirname(__file__))
messages, services = grpc.protos_and_services("interop.proto")

REQUEST_SIZES = (27182, 8, 1828, 45904)
RESPONSE_SIZES = (31415, 9, 2653, 58979)
INITIAL = ("x-grpc-test-echo-initial", "test_initial_metadata_value")
TRAILING = ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")
TIMEOUT = 20
OPTIONS = [("grpc.enable_http_proxy", 0)]


def empty_unary(stub):
    assert stub.EmptyCall(messages.Empty(), timeout=TIMEOUT) == messages.Empty()


def large_unary(stub):
    assert stub.UnaryCall(large(), timeout=TIMEOUT).payload.body == bytes(314159)


def client_streaming(stub):
    requests = (messages.StreamingInputCallRequest(payload=zeros(size)) for size in REQUEST_SIZES)
    assert stub.StreamingInputCall(requests, timeout=TIMEOUT).aggregated_payload_size == 74922


def server_streaming(stub):
    request = messages.StreamingOutputCallRequest(response_parameters=map(sized, RESPONSE_SIZES))
    bodies = [response.payload.body for response in stub.StreamingOutputCall(request, timeout=TIMEOUT)]
    assert bodies == [bytes(size) for size in RESPONSE_SIZES]


def ping_pong(stub):
    with Pipe() as pipe:
        call = stub.FullDuplexCall(pipe, timeout=TIMEOUT)
        for request_size, response_size in zip(REQUEST_SIZES, RESPONSE_SIZES):
            pipe.send(duplex(request_size, response_size))
            assert next(call).payload.body == bytes(response_size)
    assert list(call) == [] and call.code() == grpc.StatusCode.OK


def empty_stream(stub):
    call = stub.FullDuplexCall(iter(()), timeout=TIMEOUT)
    assert list(call) == [] and call.code() == grpc.StatusCode.OK


def timeout_on_sleeping_server(stub):
    with Pipe() as pipe:
        pipe.send(messages.StreamingOutputCallRequest(payload=zeros(27182)))
        fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: list(stub.FullDuplexCall(pipe, timeout=0.001)))


def cancel_after_begin(stub):
    with Pipe() as pipe:
        call = stub.StreamingInputCall.future(pipe, timeout=TIMEOUT)
        call.cancel()
        assert call.cancelled() and call.code() == grpc.StatusCode.CANCELLED


def cancel_after_first_response(stub):
    with Pipe() as pipe:
        call = stub.FullDuplexCall(pipe, timeout=TIMEOUT)
        pipe.send(duplex(27182, 31415))
        assert next(call).payload.body == bytes(31415)
        call.cancel()
        fails(grpc.StatusCode.CANCELLED, lambda: next(call))


def status_code_and_message(stub):
    echoes_status(stub, "test status message")


def special_status_message(stub):
    status = messages.EchoStatus(code=2, message=SPECIAL)
    fails(grpc.StatusCode.UNKNOWN, lambda: stub.UnaryCall(messages.SimpleRequest(response_status=status)), SPECIAL)


def unimplemented_method(stub):
    fails(grpc.StatusCode.UNIMPLEMENTED, lambda: stub.UnimplementedCall(messages.Empty(), timeout=TIMEOUT))


def unimplemented_service(stub):
    other = services.UnimplementedServiceStub(stub.channel)
    fails(grpc.StatusCode.UNIMPLEMENTED, lambda: other.UnimplementedCall(messages.Empty(), timeout=TIMEOUT))


def custom_metadata(stub):
    _, call = stub.UnaryCall.with_call(large(), metadata=[INITIAL, TRAILING], timeout=TIMEOUT)
    assert INITIAL in call.initial_metadata() and TRAILING in call.trailing_metadata()
    requests = iter([duplex(271828, 314159)])
    call = stub.FullDuplexCall(requests, metadata=[INITIAL, TRAILING], timeout=TIMEOUT)
    assert [len(response.payload.body) for response in call] == [314159]
    assert INITIAL in call.initial_metadata() and TRAILING in call.trailing_metadata()


# ---- not among the official ones ----


def the_deadline_reaches_the_server(stub):
    _, call = stub.EmptyCall.with_call(messages.Empty(), timeout=15)
    left = int(dict(call.initial_metadata())["x-time-left-ms"])
    # grpcio rounds up what it sends; wire_client.js says exactly what it sends.
    assert 5_000 < left <= 15_200, left


def a_thousand_calls_on_one_channel(stub):
    request = messages.SimpleRequest(response_size=1000, payload=zeros(1000))
    calls = [stub.UnaryCall.future(request, timeout=TIMEOUT) for _ in range(1000)]
    assert all(call.result().payload.body == bytes(1000) for call in calls)


def cancel_while_the_server_streams(stub):
    # A minute of responses.
    parameters = [messages.ResponseParameters(size=10, interval_us=100_000)] * 600
    call = stub.StreamingOutputCall(messages.StreamingOutputCallRequest(response_parameters=parameters))
    assert next(call).payload.body == bytes(10)
    call.cancel()
    fails(grpc.StatusCode.CANCELLED, lambda: next(call))


def all_codes_pass(stub):
    for code in grpc.StatusCode:
        if code != grpc.StatusCode.OK:
            status = messages.EchoStatus(code=code.value[0], message=code.name)
            fails(code, lambda: stub.UnaryCall(messages.SimpleRequest(response_status=status)), code.name)


def denied(stub):
    fails(grpc.StatusCode.PERMISSION_DENIED, lambda: stub.UnaryCall(large(), timeout=TIMEOUT))


def unavailable(stub):
    fails(grpc.StatusCode.UNAVAILABLE, lambda: stub.EmptyCall(messages.Empty(), timeout=TIMEOUT))


def over_the_rate(stub):
    # Three pass at once, and then one every two seconds.
    for _ in range(3):
        stub.EmptyCall(messages.Empty(), timeout=TIMEOUT)
    fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: stub.EmptyCall(messages.Empty(), timeout=TIMEOUT))


def comes_again_when_it_was_told_to(stub):
    # By its own patience it would have given up after 40 ms.
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    with grpc.insecure_channel(sys.argv[1], options=[*OPTIONS, ("grpc.service_config", config)]) as channel:
        patient = services.TestServiceStub(channel)
        for _ in range(2):
            patient.EmptyCall(messages.Empty(), timeout=TIMEOUT)


SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


class Pipe:
    """Requests that are sent one by one; the call half-closes when the block ends."""

    def __init__(self):
        self._requests = queue.SimpleQueue()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._requests.put(None)

    def __iter__(self):
        return self

    def __next__(self):
        request = self._requests.get()
        if request is None:
            raise StopIteration
        return request

    def send(self, request):
        self._requests.put(request)


def zeros(size):
    return messages.Payload(body=bytes(size))


def sized(size):
    return messages.ResponseParameters(size=size)


def large():
    return messages.SimpleRequest(response_size=314159, payload=zeros(271828))


def duplex(request_size, response_size):
    parameters = [sized(response_size)]
    return messages.StreamingOutputCallRequest(response_parameters=parameters, payload=zeros(request_size))


def echoes_status(stub, message):
    status = messages.EchoStatus(code=2, message=message)
    fails(grpc.StatusCode.UNKNOWN, lambda: stub.UnaryCall(messages.SimpleRequest(response_status=status)), message)
    requests = iter([messages.StreamingOutputCallRequest(response_status=status)])
    fails(grpc.StatusCode.UNKNOWN, lambda: list(stub.FullDuplexCall(requests, timeout=TIMEOUT)), message)


def fails(code, call, message=None):
    try:
        answer = call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert message is None or error.details() == message, repr(error.details())
    else:
        raise AssertionError(f"answered {answer!r:.200} instead of {code}")


def main():
    with grpc.insecure_channel(sys.argv[1], options=OPTIONS) as channel:
        stub = services.TestServiceStub(channel)
        stub.channel = channel
        for name in sys.argv[2:]:
            globals()[name](stub)
            print("ok", name, flush=True)


if __name__ == "__main__":
    main()
