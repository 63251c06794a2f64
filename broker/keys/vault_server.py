"""A Vault or OpenBao server: calls with a login, bounded in time, size and tries.

Only what the broker needs is here, on urllib3: a general client would read the environment and the
home folder, and would follow a redirect with the token in its hand. Nothing is logged; no message has
a token, a secret id or a key, and none repeats what the server said.

**Source**: the HTTP API of HashiCorp Vault (``developer.hashicorp.com/vault/api-docs``) and of OpenBao
(``openbao.org/api-docs``): status codes, ``auth/approle/login``.
"""

from __future__ import annotations

import math
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import stamina
import urllib3

from broker.canonical import Json, canonical_bytes, parse_json_object
from broker.errors import BrokerError, ConfigurationError, InternalError, Unavailable
from broker.keys.private import read_private

RELOGIN_SECONDS: Final = 5.0
"""A refused token is replaced at most once in this time: a wrong policy does not become a flood of logins."""
_CONNECT_SECONDS: Final = 3.0
_MAX_ANSWER: Final = 1 << 20
_WORD: Final = re.compile(r"[!-~]+")
"""What may become a header."""
_BUSY: Final = frozenset({412, 429, 472, 473})
"""Behind its leader; over a quota; a standby. As with every 5xx (sealed is 503), the next try may do."""


class Refused(Unavailable):
    """The server does not let the broker do this: a bad login, or a policy without that path."""


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A token that somebody else gets and renews, an agent for example.

    Attributes:
        path: Its file, of mode 0600. It is read again when the server refuses the token.
    """

    path: Path


@dataclass(frozen=True, kw_only=True)
class AppRole:
    """The AppRole method: an id, and a secret id that can be used any number of times.

    Attributes:
        role_id: The role's id.
        secret_id_file: File of the secret id, of mode 0600. It is read again for each login.
        mount: Where the method is mounted.
    """

    role_id: str = field(repr=False)
    secret_id_file: Path
    mount: str = "approle"


Login = TokenFile | AppRole


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server said, below 500.

    Attributes:
        status: HTTP status: 200, 204, 400, 404 or 405.
        data: Member ``data`` of its JSON, empty if there is none.
    """

    status: int
    data: Json = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class _Session:
    token: str = field(repr=False)
    until: float


class VaultServer:
    """One server; safe to share between threads. Nothing is sent before the first :meth:`call`.

    Args:
        url: Base URL without a path.
        login: How the broker proves who it is.
        namespace: Of every call, the login's included.
        ca_file: PEM file of the authorities that may vouch for its certificate; the system's if None.
        timeout: Seconds that it may be silent in one try.
        attempts: Tries of one call in all, up to a second apart.

    Raises:
        ConfigurationError: ``ca_file`` cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        login: Login,
        namespace: str | None = None,
        ca_file: Path | None = None,
        timeout: float = 5.0,
        attempts: int = 3,
    ) -> None:
        self.url: Final = url
        self._login = login
        self._attempts = attempts
        self._headers = {"Accept": "application/json", "X-Vault-Request": "true"}
        if namespace is not None:
            self._headers["X-Vault-Namespace"] = namespace
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=min(timeout, _CONNECT_SECONDS), read=timeout),
            retries=False,
            ssl_context=_tls(ca_file),
        )
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._replaced_at = -math.inf

    def __repr__(self) -> str:
        return f"VaultServer({self.url!r}, login={type(self._login).__name__})"

    def close(self) -> None:
        """Close the connections. The login's token is left to expire: it may be an agent's."""
        self._pool.clear()

    def call(self, method: str, path: str, body: Mapping[str, str] | None = None) -> Answer:
        """One authenticated call; the same call again must be harmless.

        Args:
            method: GET or POST.
            path: Below ``/v1/``; of characters that need no escaping.
            body: Members of the JSON that is sent.

        Raises:
            Refused: Not allowed, also with a new login.
            Unavailable: No answer after all tries, a redirect, or not the JSON of such a server.
            ConfigurationError: The file of the token or secret id is not usable.
        """
        session = self._logged_in()
        status, found = self._send(method, path, body, token=session.token)
        if status == 403 and (fresh := self._replace(session)) is not None:
            status, found = self._send(method, path, body, token=fresh.token)
        if status == 403:
            raise Refused("Vault refuses the broker", why=f"its login does not allow {method} {path}")
        data = found.get("data")
        return Answer(status=status, data=data if isinstance(data, dict) else {})

    # -- the login ------------------------------------------------------------------------------------------

    def _logged_in(self) -> _Session:
        with self._lock:
            if self._session is None or time.monotonic() >= self._session.until:
                self._session = self._log_in()
            return self._session

    def _replace(self, refused: _Session) -> _Session | None:
        """A session after ``refused``, or None when there is no other one to be had now."""
        with self._lock:
            if self._session is not refused:
                return self._session
            if time.monotonic() - self._replaced_at < RELOGIN_SECONDS:
                return None
            self._replaced_at = time.monotonic()
            self._session = self._log_in()
            return None if self._session.token == refused.token else self._session

    def _log_in(self) -> _Session:
        if isinstance(self._login, TokenFile):
            return _Session(token=_read_word(self._login.path, "token file"), until=math.inf)
        secret_id = _read_word(self._login.secret_id_file, "secret id file")
        body = {"role_id": self._login.role_id, "secret_id": secret_id}
        status, found = self._send("POST", f"auth/{self._login.mount}/login", body)
        if status != 200:
            raise Refused("Vault refuses the broker's login", why=f"AppRole answered {status}")
        return _parse_session(found)

    # -- one call -------------------------------------------------------------------------------------------

    def _send(
        self, method: str, path: str, body: Mapping[str, str] | None, *, token: str | None = None
    ) -> tuple[int, Json]:
        headers = self._headers if token is None else {**self._headers, "X-Vault-Token": token}
        data = None if body is None else canonical_bytes(dict(body))
        # A block, not a decorated function: its arguments would be part of the log line of a retry (I11).
        for attempt in stamina.retry_context(
            on=Unavailable,
            attempts=self._attempts,
            timeout=None,
            wait_initial=0.1,
            wait_max=1.0,
            wait_jitter=0.1,
        ):
            with attempt:
                return self._send_once(method, f"{self.url}/v1/{path}", headers, data)
        raise InternalError("a call ended without an outcome")

    def _send_once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Json]:
        try:
            # A redirect would take the token to a host that nobody configured.
            answer = self._pool.request(
                method, url, headers=headers, body=body, redirect=False, preload_content=False
            )
            data = answer.read(_MAX_ANSWER, decode_content=False)
            # The second read finds out that more would come, or that the answer was cut off.
            if answer.read(1, decode_content=False):
                answer.close()
                raise Unavailable("Vault does not answer", why="what came is too large")
            answer.release_conn()
        except urllib3.exceptions.HTTPError as exc:
            raise Unavailable("Vault does not answer", why=type(exc).__name__) from exc
        status = answer.status
        if status >= 500 or status in _BUSY or 300 <= status < 400:
            raise Unavailable("Vault does not answer", why=f"it answered {status}")
        return status, _parse(data)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """Verifies certificate and host name. Source: RFC 9325."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as exc:
        raise ConfigurationError(
            f"the authorities in {ca_file} cannot be read", why=type(exc).__name__
        ) from exc


def _parse(data: bytes) -> Json:
    if not data:
        return {}
    try:
        return parse_json_object(data)
    except BrokerError as exc:
        raise Unavailable("Vault does not answer", why="what came is not its JSON") from exc


def _parse_session(found: Json) -> _Session:
    auth = found.get("auth")
    token = auth.get("client_token") if isinstance(auth, dict) else None
    seconds = auth.get("lease_duration") if isinstance(auth, dict) else None
    if not isinstance(token, str) or not _WORD.fullmatch(token) or not isinstance(seconds, int):
        raise Unavailable("Vault does not answer", why="its answer to the login has no token")
    # Zero: a token that does not expire. Otherwise a new login comes well before the end.
    until = time.monotonic() + seconds * 2 / 3 if seconds else math.inf
    return _Session(token=token, until=until)


def _read_word(path: Path, what: str) -> str:
    text = read_private(path, what).decode("ascii", "replace").strip()
    if not _WORD.fullmatch(text):
        raise ConfigurationError(f"the {what} {path} does not hold one word")
    return text
