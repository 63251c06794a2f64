"""Connections that stay open are spread over the server's processes."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import psutil

from tests.e2e.running import Stack

CONNECTIONS = 8


def test_connections_are_spread_over_the_workers(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack("--workers", "2")
    netloc = urlsplit(stack.ready["url"]).netloc
    opened = [http.client.HTTPConnection(netloc, timeout=20) for _ in range(CONNECTIONS)]
    try:
        for each in opened:
            each.request("GET", "/livez")
            answer = each.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
        ours = {each.sock.getsockname()[1] for each in opened}
        holders = Counter(
            worker.pid
            for worker in psutil.Process(stack.ready["pid"]).children(recursive=True)
            for each in worker.net_connections(kind="tcp")
            if each.raddr and each.raddr.port in ours
        )
    finally:
        for each in opened:
            each.close()
    assert sum(holders.values()) == CONNECTIONS
    # Whoever has more lets the other one go first, for some milliseconds.
    assert len(holders) == 2
