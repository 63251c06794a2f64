"""A real issuer of workload identities for tests: npm's ``oidc-provider``, on loopback.

It is installed once, from the lock file beside its script, below ``.outside/`` under a name with the
digest of what goes into it. A machine without node and npm skips these tests, and says so; an installation
that fails, fails them.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

import pytest
import urllib3

from tests.outside import HOME, LEFT_OUT, is_left_out

SOURCE = Path(__file__).parent / "oidc_provider"
FILES = ("package.json", "package-lock.json", "issuer.mjs")
COMPLETE = ".complete"
STOP_SECONDS = 10
LINE_SECONDS = 60


@dataclass
class OidcIssuer:
    """The issuer under test. ``url`` is its ``iss``; ``kids`` the keys that it signs with now."""

    url: str
    kids: list[str]
    process: subprocess.Popen[str] = field(repr=False)
    secret: str = field(repr=False)
    log: IO[str] = field(repr=False)

    @property
    def jwks_uri(self) -> str:
        return f"{self.url}/jwks"

    def token(
        self,
        audience: str,
        *,
        claims: Mapping[str, Any] | None = None,
        alg: str = "RS256",
        typ: str = "JWT",
    ) -> str:
        """A token from its token endpoint, for one audience, with these claims laid over its own.

        Without claims ``sub`` is the client's id, ``workload``, and the token is good for ten minutes.
        """
        form = {
            "grant_type": "client_credentials",
            "resource": audience,
            "alg": alg,
            "typ": typ,
            "claims": json.dumps(dict(claims or {})),
        }
        answer = urllib3.request(
            "POST",
            f"{self.url}/token",
            body=urlencode(form),
            headers={
                "Authorization": f"Basic {base64.b64encode(f'workload:{self.secret}'.encode()).decode()}",
                "Content-Type": "application/x-www-form-urlencoded",
            },
            timeout=20,
        )
        assert answer.status == 200, answer.data.decode()
        return str(answer.json()["access_token"])

    def jwks(self) -> dict[str, Any]:
        """Its key set as it publishes it now."""
        found: dict[str, Any] = urllib3.request("GET", self.jwks_uri, timeout=20).json()
        return found

    def rotate(self) -> None:
        """New signing keys; the old ones vanish from its key set."""
        assert self.process.stdin is not None
        self.process.stdin.write("rotate\n")
        self.process.stdin.flush()
        self.kids = _line(self.process, self.log)["kids"]

    def pause(self) -> None:
        """It keeps its port and says nothing any more."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It answers again."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """It is gone; a connection is refused. Stopping it twice is fine."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def _line(process: subprocess.Popen[str], log: IO[str]) -> dict[str, Any]:
    assert process.stdout is not None
    # Each answer is one short line in one write, so nothing of it can be left in a buffer unseen.
    if not select.select([process.stdout], [], [], LINE_SECONDS)[0]:
        process.kill()
        log.seek(0)
        raise AssertionError(f"the issuer said nothing for {LINE_SECONDS} s: {log.read()}")
    line = process.stdout.readline()
    if not line:
        process.wait(STOP_SECONDS)
        log.seek(0)
        raise AssertionError(f"the issuer ended: {log.read()}")
    found: dict[str, Any] = json.loads(line)
    return found


def install() -> Path:
    """The folder with the issuer's script and what it needs, installed if need be.

    Raises:
        CalledProcessError: npm failed. Its output is on stderr.
    """
    if is_left_out():
        pytest.skip(LEFT_OUT)
    if missing := [tool for tool in ("node", "npm") if shutil.which(tool) is None]:
        pytest.skip(f"a real OpenID Connect issuer needs {' and '.join(missing)} on the PATH")
    content = b"\0".join((SOURCE / name).read_bytes() for name in FILES)
    folder = HOME / f"oidc-provider-{hashlib.sha256(content).hexdigest()[:12]}"
    HOME.mkdir(exist_ok=True)
    with open(HOME / "oidc-provider.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / COMPLETE).exists():
            for former in HOME.glob("oidc-provider-*/"):
                shutil.rmtree(former, ignore_errors=True)
            folder.mkdir()
            for name in FILES:
                shutil.copy(SOURCE / name, folder / name)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)
            (folder / COMPLETE).touch()
    return folder


@contextmanager
def running() -> Iterator[OidcIssuer]:
    """An issuer with fresh keys, on a free port of loopback, for the duration of a with-block."""
    script = install() / "issuer.mjs"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["node", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        issuer = OidcIssuer(url="", kids=[], process=process, secret="", log=log)
        try:
            found = _line(process, log)
            issuer.url, issuer.kids, issuer.secret = found["issuer"], found["kids"], found["client_secret"]
            yield issuer
        finally:
            issuer.stop()


@pytest.fixture(scope="module")
def oidc_issuer() -> Iterator[OidcIssuer]:
    """One issuer for a module. A test that stops it, or leaves it paused, takes one of its own."""
    with running() as issuer:
        yield issuer
