"""Python httpx against echo_server.js, in HTTP/1.1 or in HTTP/2 by prior knowledge: `ok NAME` for each case that holds.

httpx_client.py URL 1.1|2
"""

import asyncio
import gzip
import os
import sys

import httpx

SERVER = sys.argv[1]
VERSION = sys.argv[2]


async def get(client):
    answer = await client.get("/seen/x")
    assert answer.http_version == "HTTP/" + VERSION, answer.http_version
    assert (answer.status_code, answer.json()["method"]) == (200, "GET"), answer.text


async def post(client):
    body = os.urandom(1_000_003)
    assert (await client.post("/echo", content=body)).content == body


async def head(client):
    answer = await client.head("/gzip")
    assert answer.status_code == 200 and int(answer.headers["content-length"]) > 0 and answer.content == b""


async def missing(client):
    answer = await client.get("/missing")
    assert (answer.status_code, answer.text) == (404, "missing\n")


async def many_on_one_connection(client):
    bodies = [b"%d" % number for number in range(200)]
    if VERSION == "2":
        answers = await asyncio.gather(*(client.post("/echo", content=body) for body in bodies))
    else:
        answers = [await client.post("/echo", content=body) for body in bodies]
    assert [answer.content for answer in answers] == bodies
    streams = {id(answer.extensions["network_stream"].get_extra_info("socket")) for answer in answers}
    assert len(streams) == 1, f"{len(streams)} connections"


async def upload_without_length(client):
    body = os.urandom(1_000_003)

    async def chunks():
        for at in range(0, len(body), 10_007):
            yield body[at : at + 10_007]

    assert (await client.post("/echo", content=chunks())).content == body


async def large_header(client):
    cookie = "big=" + "c" * 8192
    seen = (await client.get("/seen/x", headers={"cookie": cookie})).json()
    assert cookie in seen["headers"]
    assert (await client.get("/cookie")).cookies["big"] == "c" * 8192
    client.cookies.clear()


async def gzip_untouched(client):
    async with client.stream("GET", "/gzip") as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip" and len(raw) == int(answer.headers["content-length"])
    assert gzip.decompress(raw) == b"compressed once\n" * 64


async def target_untouched(client):
    target = "/seen/caf%C3%A9/%E2%98%83?a=%2F..&b=c+d&&e=%C3%A9"
    assert (await client.get(target)).json()["target"] == target


CASES = [
    get,
    post,
    head,
    missing,
    many_on_one_connection,
    upload_without_length,
    large_header,
    gzip_untouched,
    target_untouched,
]


async def main():
    http2 = VERSION == "2"
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        base_url=SERVER, http1=not http2, http2=http2, timeout=20, limits=limits, trust_env=False
    ) as client:
        for case in CASES:
            await case(client)
            print("ok", case.__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
