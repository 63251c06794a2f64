"""Narrower tokens: what a launcher hands to each rank of a job, and the profile that a rank starts with.

A minted token covers what its parent covers and its own scope says, both; it is bound to one key, ends no
later than its parent, and what is opened with it counts against every ceiling above it (I07).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from broker import limits
from broker.canonical import Json, drop_absent, format_time, parse_b64url
from broker.client import private_files, workload
from broker.client.session import Session
from broker.client.settings import CONFIG, KEY, Profile, config_text, load_profile
from broker.client.tokens import (
    ACCESS_TOKEN_TYPE,
    JOB_SCOPE,
    JWT_TYPE,
    check_answer,
    current_subject,
    exchange_form,
    refused_subject,
)
from broker.errors import (
    ConfigurationError,
    IntegrityFailure,
    InvalidGrant,
    InvalidRequest,
    InvalidSubjectToken,
    MalformedRequest,
    Unreachable,
    UsageError,
)
from broker.identity import scope
from broker.jose import PrivateKey

USUAL_TTL: Final = 10 * 60
"""Seconds that a token lives at least when nobody says how long, if its parent can be renewed."""


@dataclass(frozen=True, kw_only=True)
class Minted:
    """A token that was minted.

    Attributes:
        text: The token; of use only with its key.
        id: ``t_...``.
        principal: Whom it speaks for: the minter's principal.
        jkt: Thumbprint of the key that may use it.
        expires: Milliseconds since 1970.
        details: The scope that was asked for, as ``authorization_details``.
    """

    text: str = field(repr=False)
    id: str
    principal: str
    jkt: str
    expires: int
    details: Sequence[Json]

    def as_json(self) -> Json:
        """All of it as a program is told, the token included."""
        return {
            "token": self.text,
            "id": self.id,
            "principal": self.principal,
            "jkt": self.jkt,
            "expires_at": format_time(self.expires),
            "authorization_details": [dict(detail) for detail in self.details],
        }


def scope_details(
    identifiers: Sequence[str],
    *,
    paths: Sequence[str] | None = None,
    max_bytes: int | None = None,
    purpose: str | None = None,
    actions: Sequence[str] = ("describe", "read"),
) -> list[Json]:
    """The ``authorization_details`` of a scope, one for each identifier.

    Raises:
        InvalidRequest: One of them is not valid, or there is none.
    """
    shared = drop_absent(
        {"paths": None if not paths else list(paths), "max_bytes": max_bytes, "purpose": purpose}
    )
    named = [identifier.removeprefix("broker://") for identifier in identifiers]
    details = [
        {"type": scope.ARTIFACT, "actions": list(actions), "identifier": identifier, **shared}
        for identifier in named
    ]
    try:
        scope.parse_details(details)
    except InvalidRequest as exc:
        raise InvalidRequest("the scope is not valid", why=exc.why or exc.what) from exc
    return details


def mint(
    session: Session, details: Sequence[Json], *, ttl: int | None = None, for_key: str | None = None
) -> Minted:
    """Exchange the session's own token for a narrower one.

    Args:
        session: Its key must be the one that its token is bound to.
        details: See :func:`scope_details`.
        ttl: Seconds; None for as long as the session's token lives, ten minutes or more if it can be.
        for_key: Thumbprint of the holder's key; None for the session's own.

    Raises:
        InvalidRequest: ``ttl`` or ``for_key`` is out of range.
        IntegrityFailure: The server answered with a token for another key.
        Denied: Policy, or whose key it is, is against it. Recorded.
        InvalidGrant, InvalidSubjectToken: The session's own token is not good for it.
    """
    if ttl is not None and not 1 <= ttl <= limits.ACCESS_TOKEN_TTL:
        raise InvalidRequest(f"a token lives for 1 to {limits.ACCESS_TOKEN_TTL} seconds")
    holder = session.jkt if for_key is None else _thumbprint(for_key)
    more = {"cnf_jkt": holder} | ({} if ttl is None else {"expires_in": str(ttl)})

    def form(key: PrivateKey, now: int, jti: str) -> Mapping[str, str]:
        del key, now, jti
        # A child ends with its parent at the latest, so the parent should have that long to live. One
        # that was fetched within the last minute is not fetched again for that.
        left = min(ttl or USUAL_TTL, limits.ACCESS_TOKEN_TTL - 60)
        return exchange_form(session.access_token(left), ACCESS_TOKEN_TYPE, details, **more)

    try:
        found = session.exchange(form)
    except (InvalidGrant, InvalidSubjectToken):
        # The remembered token may have been revoked since; another one is tried once.
        session.forget_token()
        found = session.exchange(form)
    return _parse_minted(found, holder, details)


def _thumbprint(text: str) -> str:
    try:
        parse_b64url(text, size=32)
    except MalformedRequest as exc:
        raise InvalidRequest(
            "a key is named by its thumbprint", why="43 characters", next="broker token key --out FILE"
        ) from exc
    return text


def _parse_minted(found: Json, holder: str, details: Sequence[Json]) -> Minted:
    text, _ = check_answer(found)
    try:
        token = workload.parse_job_token(text)
    except MalformedRequest as exc:
        raise Unreachable("the server's answer is not an access token") from exc
    claims: Mapping[str, Any] = token.claims
    if claims.get("cnf") != {"jkt": holder} or token.expires is None:
        raise IntegrityFailure("the server minted a token for another key than it was asked for")
    return Minted(
        text=text,
        id=str(claims.get("jti")),
        principal=str(claims.get("sub")),
        jkt=holder,
        expires=token.expires,
        details=tuple(details),
    )


def exchange(session: Session, profile: Profile, identifiers: Sequence[str]) -> Json:
    """One token for a workload's identity, as the server answers it.

    Raises:
        UsageError: The profile is not that of a workload.
        ConfigurationError: Nothing can be written here, so the key would end with this process.
    """
    source = profile.source
    if source is None or source.minted:
        raise UsageError(
            "this is not a workload: there is no identity to exchange",
            next="name its token with --token-file or BROKER_TOKEN_FILE",
        )
    if profile.state is None:
        raise ConfigurationError(
            "the token's key would be gone with this command",
            why="there is no folder that could keep it for the next one",
            next="set XDG_RUNTIME_DIR to a private folder that can be written",
        )
    details = scope_details(identifiers, actions=_ALL) if identifiers else JOB_SCOPE

    def form(key: PrivateKey, now: int, jti: str) -> Mapping[str, str]:
        del key, jti
        subject = current_subject(source, audience=profile.issuer, now=now)
        return exchange_form(subject.text, JWT_TYPE, details)

    current_subject(source, audience=profile.issuer, now=session.clock.now())
    try:
        found = session.exchange(form)
    except InvalidSubjectToken as exc:
        raise refused_subject(source, exc) from exc
    check_answer(found)
    return found


_ALL = ("describe", "read", "publish")


# -- the profile of a rank ------------------------------------------------------------------------------


def rank_key(folder: Path) -> PrivateKey:
    """The key of a rank's profile; it is made, with the folder (mode 0700), if it is not there.

    Raises:
        ConfigurationError: The folder is an enrolled profile, or cannot be written.
    """
    check_rank_folder(folder)
    return workload.find_key(folder / KEY) or workload.make_key(folder / KEY)


def check_rank_folder(folder: Path) -> None:
    """The folder exists (it is made, mode 0700), is the caller's alone, and is not an enrolled profile.

    Raises:
        ConfigurationError: It is one, cannot be made, or another user could put a profile in its place.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as exc:
        raise ConfigurationError(f"cannot make the folder {folder}", why=exc.strerror) from exc
    # A rank believes whatever server and log its config.toml names: nobody else may write there.
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"the folder {folder} is another user's, or others may write there",
            next="name a folder that is not there yet: it is made for you alone",
        )
    if (folder / CONFIG).exists() and load_profile(folder).principal:
        raise ConfigurationError(
            f"{folder} is the profile of an enrolled key", next="choose another folder for the rank"
        )


def write_rank(folder: Path, profile: Profile, minted: Minted) -> None:
    """Write or renew a rank's profile: its token, and the minter's server and log.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    text = config_text(replace(profile, principal=""))
    private_files.write_file(folder / CONFIG, text.encode(), mode=0o644)
    # The token comes last: whoever waits for it finds everything else in place.
    private_files.write_file(folder / workload.TOKEN, minted.text.encode("ascii") + b"\n")
