"""A WebSocket client against server.py: `ok NAME` for each case that holds.

client.py URL
"""

import asyncio
import json
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

SERVER = sys.argv[1]
TIMEOUT = 20
CONNECTIONS = 200


def opened(path="/", **more):
    # The server takes the second, and nobody who knows none.
    more["subprotocols"] = ["other.v1", "test.v1"]
    return connect(SERVER + path, proxy=None, max_size=64 << 20, ping_interval=None, **more)


async def text_and_binary():
    async with opened() as connection:
        for message in ["text, caf\u00e9 \U0001f608", "", b"\x00\xff binary", b"", "x" * 65536, os.urandom(65537)]:
            await connection.send(message)
            assert await connection.recv() == message


async def sixteen_megabytes():
    message = os.urandom(16 << 20)
    for compression in ["deflate", None]:
        async with opened(compression=compression) as connection:
            await connection.send(message)
            assert await connection.recv() == message


async def extensions_and_subprotocols_are_agreed():
    async with opened() as connection:
        assert connection.subprotocol == "test.v1"
        assert "permessage-deflate" in connection.response.headers["Sec-WebSocket-Extensions"]


async def fragments_up_and_down():
    async with opened() as connection:
        parts = ["first ", "second ", "third"]
        await connection.send("parts")
        await connection.send(parts)
        received = json.loads(await connection.recv())
        # The library ends a fragmented message with an empty frame.
        assert [part for part in received if part] == parts and len(received) >= 3, received
        await connection.send("fragments")
        received = [part async for part in connection.recv_streaming()]
        assert [part for part in received if part] == ["one ", "two ", "three"], received


async def pings_both_ways():
    async with opened() as connection:
        for data in ["", "from the client", "x" * 125]:
            await (await connection.ping(data))
        await connection.send("ping from the server")
        assert await connection.recv() == "pong from the server"


async def close_codes_from_the_client():
    for code, reason in CLOSES:
        async with opened() as connection:
            await connection.close(code, reason)
        # What the server echoed in its closing frame.
        assert (connection.close_code, connection.close_reason) == (code, reason), connection.close_code


async def close_codes_from_the_server():
    for code, reason in CLOSES:
        async with opened() as connection:
            await connection.send(f"close {code} {reason}")
            try:
                await connection.recv()
            except ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (code, reason), closed
            else:
                raise AssertionError("a message instead of the end")


async def two_hundred_at_once():
    connections = await asyncio.gather(*(opened("/held") for _ in range(CONNECTIONS)))
    await asyncio.gather(*(connection.send("how many?") for connection in connections))
    counts = await asyncio.gather(*(connection.recv() for connection in connections))
    assert counts == [str(CONNECTIONS)] * CONNECTIONS, counts
    await asyncio.gather(*(connection.close() for connection in connections))


CLOSES = [(1000, ""), (1000, "done"), (1001, "going away"), (4000, "of our own"), (4999, "last, caf\u00e9")]

CASES = [
    text_and_binary,
    sixteen_megabytes,
    extensions_and_subprotocols_are_agreed,
    fragments_up_and_down,
    pings_both_ways,
    close_codes_from_the_client,
    close_codes_from_the_server,
    two_hundred_at_once,
]


async def main():
    for case in CASES:
        async with asyncio.timeout(TIMEOUT):
            await case()
        print("ok", case.__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
