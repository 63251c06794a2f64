"""I17, reviewed: strangers with junk tokens do not hold the server's threads while an issuer is slow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from broker import limits
from broker.discovery import IssuerKeys
from broker.errors import Unavailable
from broker.model import ACTIVE, Issuer

NOW = 1_800_000_000_000


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """An issuer that says nothing to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_I17_a_slow_issuer_holds_a_few_requests_and_no_more(silent: socket.socket) -> None:
    source, url = IssuerKeys(), f"http://127.0.0.1:{silent.getsockname()[1]}"
    row = Issuer(name="ci", url=url, kind="oidc", audience="us", mapping="{}", status=ACTIVE, created=0)
    told: list[str] = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        # Issuers share the seats: several slow ones hold no more than one does.
        with pytest.raises(Unavailable) as caught:
            source.keys(replace(row, name=f"ci-{number % 2}"), "junk", now=NOW)
        with lock:
            told.append(caught.value.why or "")

    extra = 6
    with ThreadPoolExecutor(limits.ISSUER_WAITERS + extra) as pool:
        began = time.monotonic()
        asked = [pool.submit(ask, number) for number in range(limits.ISSUER_WAITERS + extra)]
        _until(lambda: len(told) >= extra)
        early, took = len(told), time.monotonic() - began
        assert not all(one.done() for one in asked)
        for _ in range(2):
            silent.accept()[0].close()
    for one in asked:
        one.result()
    assert early == extra
    assert took < 4
    assert set(told[:extra]) == {"it has not answered yet"}
