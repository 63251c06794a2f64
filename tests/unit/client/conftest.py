"""A running broker for the client's tests: real services and routes over HTTP, and a store over HTTP."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from broker.client import settings
from broker.client.sdk import Client
from broker.web.app import create_app
from tests.unit.client.store_server import HttpStore
from tests.world import URL, Person, World

MIB = 2**20


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: object) -> None:
        pass


class Stack:
    """A world behind HTTP, and profiles for its people."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir()
        self.world = World(home)
        self.store = HttpStore()
        self.server = make_server("127.0.0.1", 0, self._app, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.apply(
            store=self.store,
            presigner=self.store,
            store_hosts=(self.store.host,),
            public_urls=(self.url, URL),
            **changes,
        )
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def apply(self, **changes: object) -> None:
        """Change the house's settings under the running server."""
        self.world.store = self.store  # type: ignore[assignment]
        self._wsgi = create_app(self.world.with_settings(**changes))

    def _app(self, environ: object, start: object) -> object:
        return self._wsgi(environ, start)  # type: ignore[arg-type]

    def profile(self, who: Person, name: str) -> settings.Profile:
        profile = settings.Profile(
            folder=self.folder / name,
            server=self.url,
            principal=who.id,
            issuer=URL,
            origin=self.world.house.log.origin,
            vkey=self.world.house.log.vkey,
            store_hosts=(self.store.host,),
        )
        settings.save_profile(profile, who.key)
        return profile

    def client(self, who: Person, name: str) -> Client:
        return Client(self.profile(who, name))

    def add(self, id: str, *, roles: tuple[str, ...] = ("engineer",), groups: tuple[str, ...] = ()) -> Client:
        return self.client(self.world.add(id, roles=roles, groups=groups), id.replace(":", "-"))

    def add_without_login(self, id: str) -> Client:
        """A principal whose key is enrolled over HTTP: nothing was asked for in its name yet."""
        admin = Client(self.profile(self.world.admin, "admin"))
        made = admin.admin.add_principal(id)
        return Client.login(self.url, made["enrolment_code"], folder=self.folder / id)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.store.stop()
        self.world.ledger.close()


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A broker of the test's own, for tests that change it for good."""
    _forget_environment(monkeypatch)
    made = Stack(tmp_path)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A broker for all tests of a module: they bring principals and versions of their own."""
    made = Stack(tmp_path_factory.mktemp("stack"))
    yield made
    made.stop()


def restored(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A shared broker as it was: its store's objects, faults and settings."""
    _forget_environment(monkeypatch)
    house, host, objects = stack.world.house, stack.store.host, dict(stack.store.objects)
    stack.store.gets.clear()
    stack.store.puts.clear()
    stack.store.faults = deque()
    stack.store.on_get = None
    yield stack
    stack.store.host, stack.store.objects = host, {**stack.store.objects, **objects}
    stack.apply(**vars(house))


def _forget_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BROKER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def publisher(stack: Stack) -> Client:
    return stack.add(f"pia{next(_NUMBER)}", roles=("publisher", "engineer"), groups=("acme",))


@pytest.fixture
def reader(stack: Stack, publisher: Client) -> Client:
    del publisher
    return stack.add(f"ana{next(_NUMBER)}", groups=("acme",))


_NUMBER = itertools.count()


def make_tree(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and ".broker" not in p.relative_to(root).parts
    }
