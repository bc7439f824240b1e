"""Python requests against echo_server.js: each case in its own function, `ok NAME` for each that holds.

requests_client.py URL
"""

import gzip
import os
import sys

import requests

TIMEOUT = 20


def get(session, url):
    answer = session.get(url + "/seen/x", timeout=TIMEOUT)
    assert (answer.status_code, answer.json()["method"]) == (200, "GET"), answer.text


def post(session, url):
    body = os.urandom(1_000_003)
    assert session.post(url + "/echo", data=body, timeout=TIMEOUT).content == body


def head(session, url):
    answer = session.head(url + "/gzip", timeout=TIMEOUT)
    assert answer.status_code == 200 and int(answer.headers["content-length"]) > 0 and answer.content == b""


def missing(session, url):
    answer = session.get(url + "/missing", timeout=TIMEOUT)
    assert (answer.status_code, answer.text) == (404, "missing\n")


def many_on_one_connection(session, url):
    for number in range(100):
        body = b"%d" % number
        assert session.post(url + "/echo", data=body, timeout=TIMEOUT).content == body
    pools = session.get_adapter(url).poolmanager.pools
    connections = [pools[key].num_connections for key in pools.keys()]
    assert connections == [1], connections


def upload_without_length(session, url):
    body = os.urandom(1_000_003)
    chunks = (body[at : at + 10_007] for at in range(0, len(body), 10_007))
    assert session.post(url + "/echo", data=chunks, timeout=TIMEOUT).content == body


def large_header(session, url):
    cookie = "big=" + "c" * 8192
    seen = session.get(url + "/seen/x", headers={"cookie": cookie}, timeout=TIMEOUT).json()
    assert cookie in seen["headers"]
    assert session.get(url + "/cookie", timeout=TIMEOUT).cookies["big"] == "c" * 8192
    session.cookies.clear()


def gzip_untouched(session, url):
    answer = session.get(url + "/gzip", stream=True, timeout=TIMEOUT)
    raw = answer.raw.read(decode_content=False)
    assert answer.headers["content-encoding"] == "gzip" and len(raw) == int(answer.headers["content-length"])
    assert gzip.decompress(raw) == b"compressed once\n" * 64


def target_untouched(session, url):
    # Written out, for requests itself rewrites some targets.
    target = "/seen/caf%C3%A9/%E2%98%83?a=%2F..&b=c+d&&e=%C3%A9"
    assert session.get(url + target, timeout=TIMEOUT).json()["target"] == target


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

if __name__ == "__main__":
    with requests.Session() as session:
        session.trust_env = False
        for case in CASES:
            case(session, sys.argv[1])
            print("ok", case.__name__, flush=True)
