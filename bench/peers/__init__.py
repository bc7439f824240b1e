"""The pairs, in the order in which each round takes them. Each writes its recommended configuration."""

from peers.countersign import Countersign
from peers.envoy import Envoy
from peers.floor import Floor
from peers.haproxy import HAProxy
from peers.nginx import Nginx

PAIRS = [
    Floor("l4"),
    Floor("raw"),
    Floor("h1"),
    Floor("h2"),
    Floor("l4", buffer="64k"),
    HAProxy("h2"),
    HAProxy("h1"),
    Nginx(),
    Envoy("h2"),
    Envoy("h1"),
    Countersign(),
    Countersign(split=True),
]
