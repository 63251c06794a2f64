"""The access token: fetched with the enrolled key, kept until shortly before it expires.

What is kept in ``token.json`` (mode 0600) is worth nothing without the profile's key, to which the token
is bound; a file that is damaged, old, or of another key or server is ignored and replaced.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from broker.canonical import Json, canonical_bytes
from broker.client import private_files
from broker.client.settings import TOKEN, Profile
from broker.errors import ConfigurationError, Unreachable
from broker.identity import token
from broker.jose import PrivateKey
from broker.ports import Clock

SCHEMA: Final = "broker/token-cache/v1"
JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
MARGIN: Final = 30
"""Seconds before its expiry from which a token is no longer used."""
FULL_SCOPE: Final[tuple[Mapping[str, Any], ...]] = (
    {"type": "artifact_access", "actions": ["describe", "read", "publish"], "identifier": "*"},
    {"type": "ledger_access", "actions": ["search", "read", "prove"]},
    {"type": "administration", "actions": ["principals", "policies", "revocations", "keys"]},
)
"""What a person's own session asks for: everything that policy lets them do. Jobs mint narrower ones."""

Form = Callable[[PrivateKey, int, str], Mapping[str, str]]
"""Makes the form of a token request from (key, now in milliseconds, fresh id)."""


class TokenStore:
    """The current access token of a profile, shared by threads and, through its file, by processes."""

    def __init__(self, profile: Profile, *, clock: Clock, fetch: Callable[[Form], Json]) -> None:
        self._profile = profile
        self._clock = clock
        self._fetch = fetch
        self._lock = threading.Lock()
        self._held: Json | None = None
        self._dead: str | None = None

    def get(self) -> str:
        """A token with at least 30 s to live.

        Raises:
            BrokerError: The server issues none.
        """
        with self._lock:
            held = self._held or self._read()
            if held is None or not self._fresh(held):
                held = self._renew()
            self._held = held
            return str(held["access_token"])

    def forget(self) -> None:
        """The server does not accept the current token: the next :meth:`get` fetches another."""
        with self._lock:
            self._dead = None if self._held is None else self._held["access_token"]
            self._held = None

    def _fresh(self, held: Json) -> bool:
        left = int(held["expires_at"]) - self._clock.now()
        return held["access_token"] != self._dead and left > MARGIN * 1000

    def _renew(self) -> Json:
        asked_at = self._clock.now()
        found = self._fetch(self._form)
        text, seconds = found.get("access_token"), found.get("expires_in")
        if not isinstance(text, str) or type(seconds) is not int or found.get("token_type") != "DPoP":
            raise Unreachable("the server's answer is not an access token")
        held = {**self._binding(), "access_token": text, "expires_at": asked_at + seconds * 1000}
        private_files.write_file(self._profile.folder / TOKEN, canonical_bytes(held))
        return held

    def _form(self, key: PrivateKey, now: int, jti: str) -> Mapping[str, str]:
        assertion = token.build_assertion(
            key=key, principal=self._profile.principal, issuer=self._profile.issuer, now=now, jti=jti
        )
        details = json.dumps([dict(detail) for detail in FULL_SCOPE])
        return {"grant_type": JWT_BEARER, "assertion": assertion, "authorization_details": details}

    def _binding(self) -> Json:
        profile = self._profile
        return {
            "schema": SCHEMA,
            "server": profile.server,
            "principal": profile.principal,
            "jkt": profile.key.jkt,
        }

    def _read(self) -> Json | None:
        try:
            data = private_files.find_file(self._profile.folder / TOKEN, private=True)
            found = None if data is None else json.loads(data)
        except (ConfigurationError, ValueError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("access_token"), str):
            return None
        if type(found.get("expires_at")) is not int:
            return None
        ours = all(found.get(name) == value for name, value in self._binding().items())
        return found if ours else None
