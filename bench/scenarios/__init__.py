"""What is measured, in the order in which each round takes it.

A scenario is a module with NAME, TITLE, COLUMNS (key, heading, number of decimals) and `measure(ground, peer,
backends, settings)`, which starts the pair anew and returns a value for each key, or none where a pair has none.
"""

from scenarios import bulk, busy, handshakes, idle, many, open_loop, stream

SCENARIOS = [busy, open_loop, idle, handshakes, bulk, many, stream]
