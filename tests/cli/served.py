"""A whole broker behind a real HTTP server in this process, and the command line used against it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from click.testing import CliRunner, Result
from werkzeug.serving import WSGIRequestHandler, make_server

from broker import runtime
from broker.cli.root import cli
from broker.client.settings import Profile, save_profile
from broker.web.app import create_app
from tests.web_server import free_port
from tests.world import URL, Person, World


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        del type, message, args


def run(*words: str, env: Mapping[str, str | None] | None = None, input: str | None = None) -> Result:
    """``broker WORDS`` in this process, with no profile but what ``env`` names."""
    names = ("PROFILE_DIR", "OUTPUT", "URL", "JOBS", "TOKEN_FILE", "LOG_VKEY", "PURPOSE")
    clean: dict[str, str | None] = {f"BROKER_{name}": None for name in names}
    return CliRunner().invoke(cli, list(words), env={**clean, **(env or {})}, input=input)


@dataclass
class Served:
    """The broker under test."""

    world: World
    url: str
    folder: Path

    def profile(self, who: Person) -> Path:
        """A ready client profile of a person of the world."""
        folder = self.folder / "profiles" / who.id.replace(":", "-")
        if not folder.exists():
            log = self.world.house.log
            profile = Profile(
                folder=folder,
                server=self.url,
                principal=who.id,
                issuer=self.world.house.issuer,
                origin=log.origin,
                vkey=log.vkey,
                store_hosts=("127.0.0.1:1",),
            )
            save_profile(profile, who.key)
        return folder

    def run(self, who: Person, *words: str, input: str | None = None) -> Result:
        """``broker WORDS`` as this person."""
        return run(*words, env={"BROKER_PROFILE_DIR": str(self.profile(who))}, input=input)

    def json(self, who: Person, *words: str) -> Any:
        """What ``broker WORDS -o json`` says, when it says it with status 0."""
        done = self.run(who, *words, "-o", "json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A broker of its own, listening on loopback for the duration of a with-block."""
    world = World(folder)
    # The clock of the machine, as the client has it: proofs are fresh for as long as the tests take.
    world.clock.now = runtime.SystemClock().now  # type: ignore[method-assign]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    house = world.with_settings(public_urls=(URL, url))
    server = make_server("127.0.0.1", port, create_app(house), threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    before = structlog.get_config()
    # The server's lines are not for the stdout of the commands that run in the same process.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    try:
        yield Served(world=world, url=url, folder=folder)
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
        structlog.configure(**before)
        world.ledger.close()
