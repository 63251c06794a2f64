"""The access token: fetched with an enrolled key or a workload's identity, or minted by a launcher.

What is fetched is kept until shortly before it expires, in ``token.json`` (mode 0600) where something can
be kept. It is worth nothing without the key, to which it is bound; a file that is damaged, old, or of
another key or server is ignored and replaced. A minted token is read from its file whenever that changes,
and is never replaced from here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from broker.canonical import Json, canonical_bytes, format_time
from broker.client import private_files
from broker.client.settings import TOKEN, Profile
from broker.client.workload import JobSource, JobToken, parse_job_token
from broker.errors import (
    ConfigurationError,
    InvalidSubjectToken,
    InvalidToken,
    MalformedRequest,
    Unreachable,
)
from broker.identity import token
from broker.jose import PrivateKey
from broker.ports import Clock

SCHEMA: Final = "broker/token-cache/v1"
JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a name
JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
MARGIN: Final = 30
"""Seconds before its expiry from which a token is no longer used."""
FULL_SCOPE: Final[tuple[Mapping[str, Any], ...]] = (
    {"type": "artifact_access", "actions": ["describe", "read", "publish"], "identifier": "*"},
    {"type": "ledger_access", "actions": ["search", "read", "prove"]},
    {"type": "administration", "actions": ["principals", "policies", "revocations", "keys"]},
)
"""What a person's own session asks for: everything that policy lets them do. Jobs mint narrower ones."""
JOB_SCOPE: Final = FULL_SCOPE[:1]
"""What a workload's session asks for: artifacts, as far as policy lets it."""

Form = Callable[[PrivateKey, int, str], Mapping[str, str]]
"""Makes the form of a token request from (key, now in milliseconds, fresh id)."""


class Tokens(Protocol):
    """The current access token of a session, shared by its threads."""

    @property
    def principal(self) -> str:
        """Whose token it is. Raises as :meth:`get`."""

    def get(self, left: int = MARGIN) -> str:
        """A token that is good for at least ``left`` seconds more, as far as one can be had.

        Raises:
            BrokerError: There is none.
        """

    def forget(self, text: str, why: str | None = None) -> None:
        """The server does not accept this token: :meth:`get` has another one, or raises."""


def open_tokens(profile: Profile, *, clock: Clock, fetch: Callable[[Form], Json]) -> Tokens:
    """The tokens of a profile.

    Raises:
        ConfigurationError: It is a job's, and there is no token.
    """
    if profile.source is not None and profile.source.minted:
        return MintedTokens(profile, profile.source, clock=clock)
    return TokenStore(profile, clock=clock, fetch=fetch)


def exchange_form(
    subject: str, subject_type: str, details: Sequence[Mapping[str, Any]], **more: str
) -> dict[str, str]:
    """The form of a token exchange. Source: RFC 8693 section 2.1, RFC 9396 section 3."""
    return {
        "grant_type": TOKEN_EXCHANGE,
        "subject_token": subject,
        "subject_token_type": subject_type,
        "authorization_details": json.dumps([dict(detail) for detail in details]),
        **more,
    }


def check_answer(found: Json) -> tuple[str, int]:
    """(token, seconds that it lives) of a token endpoint's answer.

    Raises:
        Unreachable: It is not such an answer.
    """
    text, seconds = found.get("access_token"), found.get("expires_in")
    if not isinstance(text, str) or type(seconds) is not int or found.get("token_type") != "DPoP":
        raise Unreachable("the server's answer is not an access token")
    return text, seconds


class TokenStore:
    """Tokens that are fetched: shared by threads and, where there is a file, by processes."""

    def __init__(self, profile: Profile, *, clock: Clock, fetch: Callable[[Form], Json]) -> None:
        self._profile = profile
        self._clock = clock
        self._fetch = fetch
        self._lock = threading.Lock()
        self._held: Json | None = None
        self._dead: str | None = None

    @property
    def principal(self) -> str:
        """The profile's own; a workload's is in the token that it was given."""
        return self._profile.principal or _subject_of(self.get())

    def get(self, left: int = MARGIN) -> str:
        """A token with at least ``left`` seconds to live; one that is fresh has what it has."""
        with self._lock:
            held = self._held or self._read()
            if held is None or not self._fresh(held, left):
                held = self._renew()
            self._held = held
            return str(held["access_token"])

    def forget(self, text: str, why: str | None = None) -> None:
        """The server does not accept this token: :meth:`get` fetches another, unless it has one."""
        del why
        with self._lock:
            self._dead = text
            if self._held is not None and self._held["access_token"] == text:
                self._held = None

    def _fresh(self, held: Json, left: int) -> bool:
        remaining = int(held["expires_at"]) - self._clock.now()
        return held["access_token"] != self._dead and remaining > max(left, MARGIN) * 1000

    def _renew(self) -> Json:
        asked_at = self._clock.now()
        text, seconds = check_answer(self._fetch_any())
        held = {**self._binding(), "access_token": text, "expires_at": asked_at + seconds * 1000}
        if self._profile.state is not None:
            private_files.write_file(self._profile.state / TOKEN, canonical_bytes(held))
        return held

    def _fetch_any(self) -> Json:
        source = self._profile.source
        if source is None:
            return self._fetch(self._assertion_form)

        def form(key: PrivateKey, now: int, jti: str) -> Mapping[str, str]:
            del key, jti
            # Asked for anew at each attempt: the file may have been replaced meanwhile.
            found = current_subject(source, audience=self._profile.issuer, now=now)
            return exchange_form(found.text, JWT_TYPE, JOB_SCOPE)

        # One that has ended by its own words is not sent at all.
        current_subject(source, audience=self._profile.issuer, now=self._clock.now())
        try:
            return self._fetch(form)
        except InvalidSubjectToken as exc:
            raise refused_subject(source, exc) from exc

    def _assertion_form(self, key: PrivateKey, now: int, jti: str) -> Mapping[str, str]:
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
        state = self._profile.state
        try:
            data = None if state is None else private_files.find_file(state / TOKEN, private=True)
            found = None if data is None else json.loads(data)
        except (ConfigurationError, ValueError):
            return None
        if not isinstance(found, dict) or not isinstance(found.get("access_token"), str):
            return None
        if type(found.get("expires_at")) is not int:
            return None
        ours = all(found.get(name) == value for name, value in self._binding().items())
        return found if ours else None


def current_subject(source: JobSource, *, audience: str, now: int) -> JobToken:
    """The workload's own token, if by its own words it has not ended.

    Raises:
        InvalidSubjectToken: It has.
        ConfigurationError, Unreachable: See :meth:`broker.client.workload.JobSource.read`.
    """
    found = source.read(audience=audience, now=now)
    if found.expires is not None and found.expires <= now:
        raise InvalidSubjectToken(
            f"the workload's token in {source.where} has expired",
            why=f"it was good until {format_time(found.expires)}, and nobody replaced it",
            next="see to it that what wrote it (the kubelet, an agent) renews it, then run this again",
        )
    return found


def refused_subject(source: JobSource, exc: InvalidSubjectToken) -> InvalidSubjectToken:
    """The refusal of a workload's token, with the place that it came from."""
    why = f"{exc.what}: {exc.why}" if exc.why else exc.what
    return InvalidSubjectToken(
        f"the workload's token in {source.where} is not accepted",
        why=why,
        next=exc.next,
    )


class MintedTokens:
    """A token that a launcher minted for the key of this profile, read anew when its file changes."""

    def __init__(self, profile: Profile, source: JobSource, *, clock: Clock) -> None:
        self._profile = profile
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._checked: str | None = None
        self._refused: tuple[str, str] | None = None

    @property
    def principal(self) -> str:
        """Whom the token speaks for: the launcher's principal."""
        return _subject_of(self.get())

    def get(self, left: int = MARGIN) -> str:
        """The token that the file holds, to its very end.

        Raises:
            InvalidToken: It has ended, or the server does not accept it, and it was not replaced.
            ConfigurationError: There is none, or it is for another key or server.
        """
        del left
        with self._lock:
            now = self._clock.now()
            found = self._source.read(audience=self._profile.issuer, now=now)
            if found.expires is None or found.expires <= now:
                until = "it names no end" if found.expires is None else f"until {format_time(found.expires)}"
                raise self._unusable("has expired", f"it was good {until}, and nobody replaced it")
            if self._refused is not None and self._refused[0] == found.text:
                raise self._unusable("is not accepted any more", self._refused[1])
            if found.text != self._checked:
                self._check(found)
                self._checked = found.text
            return found.text

    def forget(self, text: str, why: str | None = None) -> None:
        """The server does not accept this token: it is not sent again. Its successor may be here already."""
        with self._lock:
            self._refused = (text, why or "the server refused it")

    def _unusable(self, what: str, why: str) -> InvalidToken:
        return InvalidToken(
            f"the token in {self._source.where} {what}",
            why=why,
            next="whoever started this job mints another into that file (broker token mint --renew)",
        )

    def _check(self, found: JobToken) -> None:
        confirmation = found.claims.get("cnf")
        jkt = confirmation.get("jkt") if isinstance(confirmation, dict) else None
        if jkt != self._profile.key.jkt:
            raise ConfigurationError(
                f"the token in {self._source.where} is for another key than the profile's",
                why=f"the key in {self._profile.folder} is {self._profile.key.jkt}",
                next="mint it for this key: broker token mint --for-key",
            )
        if self._profile.issuer and found.claims.get("iss") != self._profile.issuer:
            raise ConfigurationError(
                f"the token in {self._source.where} is of another broker than the profile's"
            )


def _subject_of(text: str) -> str:
    try:
        return str(parse_job_token(text).claims.get("sub"))
    except MalformedRequest as exc:
        raise Unreachable("the server's answer is not an access token") from exc
