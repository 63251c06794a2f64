"""Signed requests to the broker: token, proof, retries.

Every request carries a fresh DPoP proof over its method, URL, query and body. A request is sent again
only when that is safe: a read, or a write whose ``request_id`` makes the repetition the same request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlencode

from broker import limits
from broker.canonical import Json, canonical_bytes
from broker.client import wire
from broker.client.settings import Profile
from broker.client.tokens import MARGIN, Form, open_tokens
from broker.errors import (
    BrokerError,
    IntegrityFailure,
    InvalidToken,
    NonceRequired,
    RateLimited,
    RollbackDetected,
    Unavailable,
    Unreachable,
)
from broker.identity import proof
from broker.jose import PrivateKey
from broker.ports import Clock, Entropy
from broker.runtime import SystemClock, SystemEntropy

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
SCHEME: Final = "DPoP "
ATTEMPTS: Final = 5
"""How often a request is sent before it counts as unreachable."""
FIRST_PAUSE: Final = 0.2
"""Seconds before the second attempt; doubled each time, with jitter."""
LONGEST_WAIT: Final = 10
"""Seconds of a Retry-After that are waited for; a longer one is the caller's business."""

Auth = Literal["token", "proof", "none"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request in the form that is signed.

    Attributes:
        path: Decoded; it is sent in its canonical encoding.
        query: Name and value pairs; absent (None) values are left out.
        auth: ``token`` (access token and proof), ``proof`` (proof alone) or ``none``.
    """

    method: str
    path: str
    query: Mapping[str, Any] | None = None
    body: bytes = b""
    content_type: str = JSON
    auth: Auth = "token"
    max_size: int = wire.MAX_ANSWER

    @property
    def raw_query(self) -> str:
        """The query as it is sent and signed."""
        members = {name: value for name, value in (self.query or {}).items() if value is not None}
        return urlencode(members)


class Session:
    """One profile's conversation with its broker. Safe to share between threads."""

    def __init__(
        self,
        *,
        server: str,
        key: PrivateKey,
        profile: Profile | None = None,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        self.server = server
        self.profile = profile
        self.clock = clock or SystemClock()
        self.entropy = entropy or SystemEntropy()
        self._key = key
        self._wire = wire.Wire(server)
        self._nonce: str | None = None
        self._tokens = (
            None if profile is None else open_tokens(profile, clock=self.clock, fetch=self.exchange)
        )
        self._pause = threading.Event()

    @classmethod
    def of(cls, profile: Profile) -> Session:
        """The session of a profile. Raises ConfigurationError when its key or token cannot be read."""
        return cls(server=profile.server, key=profile.key, profile=profile)

    @property
    def jkt(self) -> str:
        """Thumbprint of the key that signs."""
        return self._key.jkt

    @property
    def principal(self) -> str | None:
        """Who is asking, as far as the session knows: None without a profile.

        Raises:
            BrokerError: It is a job's, and the server issues it no token.
        """
        return None if self._tokens is None else self._tokens.principal

    def request_id(self) -> str:
        """A fresh id for one recorded request."""
        return self.entropy.uuid()

    # -- calls ------------------------------------------------------------------------------------------

    def get(
        self, path: str, query: Mapping[str, Any] | None = None, *, max_size: int = wire.MAX_ANSWER
    ) -> Json:
        """A signed GET; the JSON object of its answer."""
        return self.call(Request(method="GET", path=path, query=query, max_size=max_size)).json()

    def write(self, method: str, path: str, body: Json, *, auth: Auth = "token") -> Json:
        """A signed request with a JSON body, in which ``request_id`` makes a retry safe."""
        data = canonical_bytes(body)
        return self.call(Request(method=method, path=path, body=data, auth=auth)).json()

    def get_public(self, path: str) -> wire.Answer:
        """An unsigned GET of something public."""
        return self.call(Request(method="GET", path=path, auth="none"))

    def lines(self, path: str, query: Mapping[str, Any], *, longest: int) -> Iterator[bytes]:
        """The lines of a signed GET as they arrive, without their newline.

        Raises:
            IntegrityFailure: A line is longer than ``longest`` bytes.
            Unreachable: The answer breaks off; what came before was whole lines.
        """
        request = Request(method="GET", path=path, query=query)
        held: list[Iterator[bytes]] = []

        def send(headers: Mapping[str, str]) -> wire.Answer:
            answer, chunks = self._wire.stream(
                "GET", self._raw_path(request), query=request.raw_query, headers=headers, body=b""
            )
            held[:] = [chunks]
            return answer

        self._until_good(lambda: request, send)
        return _split_lines(held[0], longest)

    def call(self, request: Request) -> wire.Answer:
        """Send a request until it is answered, and return the good answer.

        Raises:
            BrokerError: What the server's problem document says.
            Unreachable: No answer after all attempts.
        """
        return self._send(lambda: request)

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    # -- how ----------------------------------------------------------------------------------------------

    def _send(self, make: Callable[[], Request]) -> wire.Answer:
        made: list[Request] = []

        def remade() -> Request:
            made[:] = [make()]
            return made[0]

        def send(headers: Mapping[str, str]) -> wire.Answer:
            [request] = made
            return self._wire.send(
                request.method,
                self._raw_path(request),
                query=request.raw_query,
                headers=headers,
                body=request.body,
                max_size=request.max_size,
            )

        return self._until_good(remade, send)

    def _until_good(
        self, make: Callable[[], Request], send: Callable[[Mapping[str, str]], wire.Answer]
    ) -> wire.Answer:
        failures, excused = 0, set[type[BrokerError]]()
        while True:
            headers: Mapping[str, str] = {}
            try:
                headers = self._headers(make())
                answer = send(headers)
                self._nonce = answer.headers.get("dpop-nonce", self._nonce)
                if 200 <= answer.status < 300:
                    return answer
                raise wire.error_of(answer, now=self.clock.now())
            except (NonceRequired, InvalidToken) as exc:
                # Each of these is forgiven once: the server's nonce is taken over, a new token is fetched.
                if type(exc) in excused:
                    raise
                excused.add(type(exc))
                if isinstance(exc, InvalidToken) and not self._forget_token(headers, exc):
                    raise
            except RollbackDetected:
                raise
            except (Unavailable, RateLimited) as exc:
                failures += 1
                if failures >= ATTEMPTS or not self._wait(failures, exc):
                    raise

    def _wait(self, failures: int, exc: BrokerError) -> bool:
        if isinstance(exc, RateLimited):
            if exc.retry_after > LONGEST_WAIT:
                return False
            self._pause.wait(exc.retry_after)
            return True
        jitter = self.entropy.random_bytes(1)[0] / 255
        self._pause.wait(FIRST_PAUSE * 2 ** (failures - 1) * (0.5 + jitter))
        return True

    def _forget_token(self, headers: Mapping[str, str], exc: BrokerError) -> bool:
        sent = headers.get("Authorization")
        if self._tokens is None or sent is None:
            return False
        self._tokens.forget(sent.removeprefix(SCHEME), exc.what)
        return True

    def _raw_path(self, request: Request) -> str:
        return proof.encode_path(request.path)

    def _headers(self, request: Request) -> dict[str, str]:
        # Made anew for each attempt: a proof works once (I08).
        headers = {"Accept": f"{JSON}, application/problem+json, text/plain"}
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            headers["Content-Type"] = request.content_type
        if request.auth == "none":
            return headers
        token = self.access_token() if request.auth == "token" else None
        if token is not None:
            headers["Authorization"] = f"{SCHEME}{token}"
        headers["DPoP"] = proof.build_proof(
            key=self._key,
            method=request.method,
            url=self._wire.url_of(self._raw_path(request)),
            now=self.clock.now(),
            jti=self.entropy.uuid(),
            body=request.body,
            query=request.raw_query or None,
            access_token=token,
            nonce=self._nonce,
        )
        return headers

    def access_token(self, left: int = MARGIN) -> str:
        """An access token that is valid for a while yet: ``left`` seconds, as far as one can be had.

        Raises:
            BrokerError: The session has no profile, or the server issues none.
        """
        if self._tokens is None:
            raise Unreachable("this session has no profile, so no token")
        return self._tokens.get(left)

    def forget_token(self) -> None:
        """The current access token is not to be used again."""
        if self._tokens is not None:
            self._tokens.forget(self._tokens.get())

    def exchange(self, form: Form) -> Json:
        """One token request under a proof by the session's key, without a token of its own.

        Args:
            form: Makes the body, anew for each attempt: an assertion works once.

        Raises:
            InvalidGrant: The credential is not accepted.
            BrokerError: What the server's answer says.
        """

        def make() -> Request:
            body = urlencode(form(self._key, self.clock.now(), self.entropy.uuid())).encode("ascii")
            return Request(
                method="POST",
                path="/oauth/token",
                body=body,
                content_type=FORM,
                auth="proof",
                max_size=limits.MIB,
            )

        return self._send(make).json()

    def oauth_form(self, path: str, form: Mapping[str, str]) -> Json:
        """A signed form to an OAuth endpoint other than the token endpoint (introspect, revoke)."""
        body = urlencode(form).encode("ascii")
        answer = self.call(Request(method="POST", path=path, body=body, content_type=FORM))
        return answer.json() if answer.body else {}


def _split_lines(chunks: Iterator[bytes], longest: int) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > longest:
            raise IntegrityFailure("a line of the server's answer is longer than any can be")
    if rest:
        yield rest
