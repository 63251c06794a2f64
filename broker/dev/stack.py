"""``broker dev``: the whole broker on one machine, in the foreground, under one directory.

An object store and an HTTP server as children, both on loopback, supervised from here. A second start
finds everything again. What ends this process ends the children too, whatever it was.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import broker
from broker import jose
from broker.canonical import Json, parse_json_object
from broker.client.private_files import find_file, write_file
from broker.client.settings import CONFIG, KEY, Profile, config_text
from broker.config import CONFIG_VARIABLE, PREFIX, load_settings
from broker.dev.child import start_child, stop_child
from broker.dev.seaweed import BUCKET, Seaweed
from broker.dev.state import SETTINGS, SETTINGS_WRITTEN, DevState, load_state, write_settings
from broker.errors import ConfigurationError, Unavailable
from broker.keys.local import KeyPaths, create_missing_keys
from broker.runtime import SystemClock, SystemEntropy

READY: Final = "ready.json"
LOCK: Final = "lock"
ADMIN: Final = "admin"
DEFAULT_WORKERS: Final = 2
START_SECONDS: Final = 60.0
PORT_SECONDS: Final = 12.0
"""How long a port may stay taken: children of a stack that was killed are still draining."""
SERVER_STOP_SECONDS: Final = 11.0
STORE_STOP_SECONDS: Final = 3.0
"""Together with the server's: below the 15 seconds in which a stop is promised."""
_POLL_SECONDS: Final = 0.1


class StopRequestedError(BaseException):
    """SIGTERM or SIGINT arrived. Not an ``Exception``: nothing on the way may take it for a failure."""


def run_dev(
    home: Path, *, port: int | None = None, workers: int = DEFAULT_WORKERS, database_url: str | None = None
) -> None:
    """Run the stack in ``home`` until SIGTERM or SIGINT; call it from the main thread of a process.

    When requests are accepted ``home/ready.json`` is there, and the same line is on stdout. Returns
    within 15 seconds of the signal, with nothing left running and no acknowledged data lost.

    Args:
        home: Directory of everything; made with mode 0700.
        port: Port of the HTTP server; else the one of the first start, else a free one.
        workers: Server processes.
        database_url: PostgreSQL instead of SQLite in ``home``; chosen at the first start.

    Raises:
        ConfigurationError: Another stack runs in ``home``, a port is taken, or a file is damaged.
        Unavailable: A child does not start, or ended by itself.
    """
    home = _open_home(home)
    with _lock(home), _stop_on_signals() as stop:
        (home / READY).unlink(missing_ok=True)
        stack = _Stack(home, stop)
        try:
            stack.start(port=port, workers=workers, database_url=database_url)
            stack.watch()
        except StopRequestedError:
            return
        finally:
            stop.heeded = False
            stack.stop()


def _open_home(home: Path) -> Path:
    home = home.expanduser().absolute()
    if "?" in str(home):
        raise ConfigurationError("the home folder's path has a question mark", why="a database URL cannot")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"the folder {home} cannot be made", why=exc.strerror) from exc
    return home


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Hold ``home`` against another stack; the kernel lets go when this process ends."""
    fd = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise ConfigurationError(
            f"another broker dev runs in {home}", next="stop it, or choose another --home"
        ) from exc
    finally:
        os.close(fd)


class _Stop:
    """Whether somebody asked for the end.

    It is remembered, because a raise alone can be lost: Python ignores exceptions in some callbacks
    (after a fork, in a finalizer).
    """

    def __init__(self) -> None:
        self.heeded = True
        self._asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise StopRequestedError for the first one that is heeded."""
        del number, frame
        if self.heeded and not self._asked:
            self._asked = True
            raise StopRequestedError

    def check(self) -> None:
        """Raise StopRequestedError when a signal was heeded before."""
        if self._asked:
            raise StopRequestedError


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stack:
    def __init__(self, home: Path, stop: _Stop) -> None:
        self._home, self._stop = home, stop
        self._clock, self._entropy = SystemClock(), SystemEntropy()
        self._store: Seaweed | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, *, port: int | None, workers: int, database_url: str | None) -> None:
        home = self._home
        state = load_state(home, port=port, database_url=database_url, entropy=self._entropy)
        for each in (state.port, *state.store_ports.values()):
            _await_free(each)
        now = self._clock.now()
        create_missing_keys(KeyPaths.in_folder(home / "keys"), dev=True, entropy=self._entropy, now=now)
        write_settings(home, state, workers=workers)
        _adopt_settings(home)
        self._store = Seaweed(state.store(home))
        self._store.start(self._entropy)
        profile = _prepare_database(home)
        self._store.wait_ready()
        self._stop.check()
        self._server = _start_server(home)
        _await_ready(state.port, self._server, self._log, self._stop)
        self._stop.check()
        line = json.dumps(_ready(home, state, profile), separators=(",", ":"))
        write_file(home / READY, line.encode() + b"\n", mode=0o644)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def watch(self) -> None:
        """Return never: raises when a child ends, or when the stack is told to stop."""
        while True:
            self._stop.check()
            if self._server is None or self._server.poll() is not None:
                raise Unavailable("the HTTP server ended by itself", why=f"see {self._log}")
            if self._store is None or self._store.pid is None:
                raise Unavailable("the object store ended by itself", why=f"see {self._home}/store/log/out")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """The server first, so that what it has under way still finds its store."""
        with suppress(OSError):
            (self._home / READY).unlink(missing_ok=True)
        if self._server is not None:
            stop_child(self._server, timeout=SERVER_STOP_SECONDS)
        if self._store is not None:
            self._store.stop(timeout=STORE_STOP_SECONDS)

    @property
    def _log(self) -> Path:
        return self._home / "server.log"


def _adopt_settings(home: Path) -> None:
    """Make ``broker.toml`` this process's settings, and its children's; the environment may add to them."""
    for name in list(os.environ):
        setting = name.removeprefix(PREFIX).lower().partition("__")[0]
        if name.startswith(PREFIX) and setting in SETTINGS_WRITTEN:
            del os.environ[name]
    os.environ[CONFIG_VARIABLE] = str(home / SETTINGS)


def _prepare_database(home: Path) -> Profile:
    """Migrate, begin the log, add the administrator, and write its profile. Each step may run again.

    Crash here: the key is in the profile before it is bound, so the next start binds or finds the same.
    """
    from broker import wiring

    settings = load_settings()
    wiring.migrate_and_found(settings)
    folder = home / "profiles" / ADMIN
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = find_file(folder / KEY, private=True)
    key = jose.PrivateKey.generate() if held is None else jose.PrivateKey.from_jwk(parse_json_object(held))
    if held is None:
        write_file(folder / KEY, json.dumps(key.to_jwk()).encode() + b"\n")
    seeded = wiring.seed_admin(settings, key)
    profile = Profile(
        folder=folder,
        server=seeded["server"],
        principal=seeded["principal"],
        issuer=seeded["issuer"],
        origin=seeded["log"]["origin"],
        vkey=seeded["log"]["vkey"],
        store_hosts=tuple(seeded["store_hosts"]),
    )
    write_file(folder / CONFIG, config_text(profile).encode(), mode=0o644)
    # What would keep the server from starting is said here, in full, instead of in its log.
    wiring.check_start(settings)
    return profile


def _start_server(home: Path) -> subprocess.Popen[bytes]:
    # -P and our own place in front: a folder named "broker" where somebody stands is not this program.
    place = str(Path(broker.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
    return start_child(
        [sys.executable, "-P", "-m", "broker.web.server"],
        env={**os.environ, "PYTHONPATH": path},
        log=home / "server.log",
    )


def _await_free(port: int) -> None:
    """Wait until nobody listens on a loopback port.

    Raises:
        ConfigurationError: Somebody does, for longer than a stack needs to end.
    """
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return
            except OSError as exc:
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"port {port} is taken by another program",
                        why="a stack keeps its ports, so that enrolled profiles stay valid",
                        next="stop that program (for the HTTP server's port: or give another --port)",
                    ) from exc
        time.sleep(_POLL_SECONDS)


def _await_ready(port: int, server: subprocess.Popen[bytes], log: Path, stop: _Stop) -> None:
    """Return once the server answers a real request that it is ready.

    Raises:
        Unavailable: It ended, or is not ready in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(port):
        stop.check()
        if server.poll() is not None:
            raise Unavailable("the HTTP server does not start", why=f"see {log}")
        if time.monotonic() > deadline:
            raise Unavailable("the HTTP server does not get ready", why=f"see {log}")
        time.sleep(_POLL_SECONDS)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ready(home: Path, state: DevState, profile: Profile) -> Json:
    """What ``ready.json`` says: no secret, whatever the database's URL holds."""
    url = urlsplit(state.database_url)
    database = state.database_url.removeprefix("sqlite:///")
    if url.scheme != "sqlite":
        database = f"{url.scheme}://{url.hostname or ''}{f':{url.port}' if url.port else ''}{url.path}"
    return {
        "url": state.url,
        "pid": os.getpid(),
        "s3": {"endpoint": state.store(home).endpoint, "bucket": BUCKET},
        "log": {"origin": profile.origin, "vkey": profile.vkey},
        "profiles": str(home / "profiles"),
        "database": database,
    }
