"""A WebSocket server, with the websockets library: it does what each message tells it to.

    server.py PORT

`parts` asks for the parts of the next message as they came, `close CODE REASON` for an end from this side, `ping DATA`
for a ping, of which it tells when the pong came, `fragments` for a message in three parts. Everything else is echoed. At
`/held` it answers with the number of connections there are. Of each end it prints `closed CODE REASON`.
"""

import asyncio
import json
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

MOST = 64 << 20
held = set()


async def serve_one(connection):
    held.add(connection)
    try:
        while True:
            await answer(connection, await connection.recv())
    except ConnectionClosed:
        print("closed", connection.close_code, connection.close_reason, flush=True)
    finally:
        held.discard(connection)


async def answer(connection, message):
    command, _, rest = message.partition(" ") if isinstance(message, str) else ("", "", "")
    if connection.request.path == "/held":
        await connection.send(str(len(held)))
    elif command == "parts":
        await connection.send(json.dumps([part async for part in connection.recv_streaming()]))
    elif command == "close":
        code, _, reason = rest.partition(" ")
        await connection.close(int(code), reason)
    elif command == "ping":
        await (await connection.ping(rest))
        await connection.send("pong " + rest)
    elif command == "fragments":
        await connection.send(["one ", "two ", "three"])
    else:
        await connection.send(message)


async def main():
    # As many may come at once, over one connection before the app.
    options = {"max_size": MOST, "ping_interval": None, "subprotocols": ["test.v1"], "backlog": 1024}
    async with serve(serve_one, "127.0.0.1", int(sys.argv[1]), **options) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
