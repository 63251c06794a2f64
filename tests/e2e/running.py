"""The real thing for tests: ``broker dev`` as a process, and people who use the command line.

Nothing is simulated here: every command is a process, every byte goes through the HTTP server and the
S3 server. What must be waited for is awaited, never slept for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from broker.client.sdk import Client
from broker.client.settings import load_profile

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
PROGRAM = (sys.executable, "-P", "-m", "broker")
START_SECONDS = 90.0
STOP_SECONDS = 15.0
COMMAND_SECONDS = 120.0


def environment(**more: str) -> dict[str, str]:
    """This process's environment without the product's own variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def until(condition: Callable[[], Any], *, what: str, seconds: float = 60.0) -> Any:
    """The first true answer of a condition that is asked again and again."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.002)
    return found


# -- processes ------------------------------------------------------------------------------------------


def children_of(pid: int) -> set[int]:
    """Process ids of all descendants."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.add(child)
            todo.append(child)
    return found


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def command_of(pid: int) -> str:
    """The command line of a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command that has ended."""

    code: int
    data: bytes = field(repr=False)
    """The very bytes of stdout."""
    err: str

    @property
    def out(self) -> str:
        return self.data.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.data)


class Stack:
    """One ``broker dev`` in a home of its own: started, stopped, started again."""

    def __init__(self, home: Path, *options: str, **env: str) -> None:
        self.home = home
        self.options = options
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home.with_name(home.name + ".out")
        self.ready: dict[str, Any] = {}

    def start(self) -> Stack:
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                [*PROGRAM, "dev", "--home", str(self.home), *self.options],
                env=environment(**self.env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(
            lambda: self._is_ready() or self.process.poll() is not None,
            what="ready.json",
            seconds=START_SECONDS,
        )
        assert self._is_ready(), f"the stack did not start: {self.log.read_text()[-2000:]}"
        return self

    def _is_ready(self) -> bool:
        # A stack that was killed leaves its file behind, and the next one takes a moment to remove it.
        with contextlib.suppress(FileNotFoundError):
            self.ready = json.loads((self.home / "ready.json").read_text())
            return self.process is not None and bool(self.ready["pid"] == self.process.pid)
        return False

    def stop(self) -> int:
        """SIGTERM; its exit status. The test fails when it is not gone in the time that is promised."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL for all of it that is left."""
        if self.process is not None and self.process.poll() is None:
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def pids(self) -> set[int]:
        """Its supervisor and everything below."""
        assert self.process is not None
        return {self.process.pid, *children_of(self.process.pid)}

    @property
    def database(self) -> Path:
        return Path(self.ready["database"])

    @property
    def state(self) -> dict[str, Any]:
        """What the stack remembers: among others the store's credentials."""
        found: dict[str, Any] = json.loads((self.home / "dev.json").read_text())
        return found

    # -- people ----------------------------------------------------------------------------------------------

    @property
    def admin(self) -> User:
        return User(name="admin", stack=self)

    def add(self, name: str, *options: str) -> User:
        """A new principal, enrolled: ``stack.add("ana", "--role", "engineer", "--group", "acme")``."""
        made = self.admin.cli("admin", "principal", "add", name, *options, "-o", "json").json()
        user = User(name=name, stack=self, code=made["enrolment_code"])
        user.cli("login", "--server", self.url, "--code", made["enrolment_code"])
        return user

    # -- behind the broker's back ------------------------------------------------------------

    @contextlib.contextmanager
    def s3(self) -> Iterator[Any]:
        """A client of the store with the stack's own credentials."""
        state = self.state
        found = boto3.client(
            "s3",
            endpoint_url=self.ready["s3"]["endpoint"],
            region_name="us-east-1",
            aws_access_key_id=state["access_key"],
            aws_secret_access_key=state["secret_key"],
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )
        with contextlib.closing(found):
            yield found

    @property
    def bucket(self) -> str:
        return str(self.ready["s3"]["bucket"])

    def objects(self) -> dict[str, tuple[int, str]]:
        """Name -> (size, ETag) of every object in the bucket."""
        with self.s3() as s3:
            pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket))
        return {
            item["Key"]: (item["Size"], item["ETag"]) for page in pages for item in page.get("Contents", [])
        }

    def flip(self, name: str, offset: int) -> bytes:
        """Replace an object by one with a flipped bit at ``offset``; returns what it was."""
        with self.s3() as s3:
            was: bytes = s3.get_object(Bucket=self.bucket, Key=name)["Body"].read()
            changed = was[:offset] + bytes([was[offset] ^ 1]) + was[offset + 1 :]
            s3.put_object(Bucket=self.bucket, Key=name, Body=changed)
        return was

    def replace(self, name: str, data: bytes) -> None:
        """Write an object as the store's administrator can."""
        with self.s3() as s3:
            s3.put_object(Bucket=self.bucket, Key=name, Body=data)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement in the database, as its administrator could."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def entries(self) -> list[dict[str, Any]]:
        """Every entry of the ledger in order."""
        return [json.loads(row[0]) for row in self.sql("SELECT entry FROM ledger_entries ORDER BY idx")]

    def size(self) -> int:
        """Entries in the ledger."""
        return int(self.sql("SELECT count(*) FROM ledger_entries")[0][0])


@dataclass
class User:
    """Somebody with a profile on a stack."""

    name: str
    stack: Stack
    code: str = field(default="", repr=False)
    profile: Path = field(init=False)

    def __post_init__(self) -> None:
        self.profile = self.stack.home / "profiles" / self.name

    @property
    def id(self) -> str:
        return f"user:{self.name}"

    def env(self, **more: str) -> dict[str, str]:
        return environment(BROKER_PROFILE_DIR=str(self.profile), NO_COLOR="1", **more)

    def cli(self, *words: object, expect: int = 0, cwd: Path | None = None, **env: str) -> Done:
        """Run ``broker WORDS`` and hold it to its exit status."""
        done = subprocess.run(
            [*PROGRAM, *map(str, words)],
            env=self.env(**env),
            cwd=cwd or self.stack.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
        )
        found = Done(code=done.returncode, data=done.stdout, err=done.stderr.decode("utf-8", "replace"))
        shown = " ".join(map(str, words))
        assert found.code == expect, (
            f"broker {shown}: exit {found.code}, not {expect}\n{found.out}{found.err}"
        )
        return found

    def begin(self, *words: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start ``broker WORDS`` and return at once."""
        return subprocess.Popen(
            [*PROGRAM, *map(str, words)],
            env=self.env(),
            cwd=cwd or self.stack.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """The SDK with this user's profile."""
        with Client(load_profile(self.profile)) as found:
            yield found


# -- files ----------------------------------------------------------------------------------------------


def noise(size: int, seed: int | str = 0) -> bytes:
    """``size`` bytes that no compression or repetition makes smaller; the same for the same seed."""
    return hashlib.shake_128(f"noise {seed}".encode()).digest(size)


def write_tree(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, without the client's own ``.broker``."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != ".broker"
    }


def claimed(dest: Path) -> int:
    """How many extents the state file of a download claims."""
    try:
        return (dest / ".broker" / "state").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def port_of(url: str) -> int:
    """The port in a URL."""
    return urlsplit(url).port or 80
