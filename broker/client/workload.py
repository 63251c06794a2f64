"""A job's identity: where its token comes from, and where its processes keep what they share.

A job has no person at the keyboard. What it is comes from a token that somebody else renews: a file (a
Kubernetes service account's, a SPIFFE agent's, or one of the broker's own that a launcher minted for a
rank), or an endpoint of GitHub Actions. The broker pins each such token to the key that exchanged it
first, so the processes of a job on one machine share a key; it is made here, is of use to this job
alone, and never leaves the machine.

Nothing here is verified: the claims that are read only choose files and words. Verifying is the broker's.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlencode, urlsplit

from broker import limits
from broker.canonical import Json, canonical_bytes, parse_b64url, parse_json_object
from broker.client import private_files
from broker.errors import BrokerError, ConfigurationError, MalformedRequest, Unreachable
from broker.jose import PrivateKey

MINTED_TYP: Final = "at+jwt"
"""``typ`` of the broker's own access tokens (RFC 9068): such a token is used as it is."""
KEY: Final = "key.jwk"
TOKEN: Final = "token"  # noqa: S105 - a file name
"""A job's token in its profile; a minted one lies beside the key that it is bound to."""
JOBS: Final = "jobs"
"""Where a profile that can be written keeps what the processes of its jobs share."""
ACTIONS_TIMEOUT: Final = 20.0
"""Seconds for the endpoint of GitHub Actions, connecting and answering each."""
ACTIONS_MARGIN: Final = 60
"""Seconds before its expiry from which a token of GitHub Actions is asked for anew."""
MAX_ACTIONS_ANSWER: Final = 64 * limits.KIB
_CHANGING: Final = frozenset({"exp", "iat", "nbf", "jti", "auth_time", "warnafter"})
"""Claims that differ between the tokens that one job gets; ``warnafter`` is Kubernetes'."""


# -- tokens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JobToken:
    """A token as it was found, and what it says of itself, unverified."""

    text: str = field(repr=False)
    minted: bool
    claims: Json = field(repr=False)

    @property
    def expires(self) -> int | None:
        """Its end in milliseconds since 1970; None when it names none."""
        value = self.claims.get("exp")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**40:
            return None
        return int(value * 1000)


def parse_job_token(text: str) -> JobToken:
    """A compact JWT of anybody's: its claims are read, its signature is not looked at.

    Raises:
        MalformedRequest: It is not one, or is larger than ``limits.MAX_TOKEN``.
    """
    if len(text) > limits.MAX_TOKEN or text.count(".") != 2:
        raise MalformedRequest("the text is not a JWT")
    head, body, _ = text.split(".")
    header, claims = (parse_json_object(parse_b64url(part)) for part in (head, body))
    return JobToken(text=text, minted=header.get("typ") == MINTED_TYP, claims=claims)


class JobSource(Protocol):
    """Where a job's token comes from. Safe to ask from any thread, again and again."""

    @property
    def where(self) -> str:
        """The place in words, for messages."""

    @property
    def minted(self) -> bool:
        """Whether it has the broker's own tokens, for the key that lies in the profile.

        Raises:
            ConfigurationError: There is no token.
        """

    def read(self, *, audience: str, now: int) -> JobToken:
        """The current token.

        Args:
            audience: Whom it must be for, where that can be chosen.
            now: Milliseconds since 1970.

        Raises:
            ConfigurationError: There is none, or what is there is not a token.
            Unreachable: Its giver does not answer.
        """

    def job(self) -> str:
        """What tells this job from others that run as the same user on the same machine."""


class TokenFile:
    """A file that holds a token and is replaced before the token ends.

    Symbolic links are followed: a projected volume is made of them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[tuple[int, ...], JobToken] | None = None
        self._minted: bool | None = None

    def __repr__(self) -> str:
        return f"TokenFile({str(self._path)!r})"

    @property
    def where(self) -> str:
        """Its path."""
        return str(self._path)

    @property
    def minted(self) -> bool:
        """Whether the first token that was found is one of the broker's own."""
        if self._minted is None:
            self._minted = self._read().minted
        return self._minted

    def read(self, *, audience: str, now: int) -> JobToken:
        """The token that the file holds now."""
        del audience, now
        found = self._read()
        if self._minted is None:
            self._minted = found.minted
        elif found.minted != self._minted:
            raise ConfigurationError(
                f"the token in {self._path} is of another kind than before",
                why="one was minted by the broker, the other is a workload identity",
                next="start the job again",
            )
        return found

    def job(self) -> str:
        """What the token says, without what is new in each of them.

        Two jobs may have one subject and become different principals here by another claim.
        """
        return json.dumps(_lasting(self._read().claims), sort_keys=True)

    def _read(self) -> JobToken:
        # A rename brings another inode, and a write in place another time: most calls cost one stat.
        try:
            status = self._path.stat()
        except OSError as exc:
            raise self._missing(exc.strerror) from exc
        mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._seen is not None and self._seen[0] == mark:
            return self._seen[1]
        data = private_files.find_file(self._path, most=limits.MAX_TOKEN + 1, follow=True)
        if data is None:
            raise self._missing("it is gone")
        try:
            found = parse_job_token(data.decode("ascii").strip())
        except (BrokerError, UnicodeDecodeError) as exc:
            raise ConfigurationError(
                f"{self._path} does not hold a token", why="a token is one JWT in its compact form"
            ) from exc
        self._seen = (mark, found)
        return found

    def _missing(self, why: str | None) -> ConfigurationError:
        return ConfigurationError(
            f"there is no token in {self._path}", why=why, next="set BROKER_TOKEN_FILE to the job's token"
        )


def _lasting(claims: Json) -> Json:
    return {
        name: _lasting(value) if isinstance(value, dict) else value
        for name, value in claims.items()
        if name not in _CHANGING
    }


def find_token(folder: Path) -> TokenFile | None:
    """The token that somebody put into a profile, as a launcher does for a rank; None if there is none."""
    return TokenFile(folder / TOKEN) if (folder / TOKEN).exists() else None


class ActionsToken:
    """The endpoint from which a job of GitHub Actions gets its OpenID Connect tokens.

    Source: GitHub Docs, "OpenID Connect reference", "Methods for requesting the OIDC token".
    """

    minted: Final = False

    def __init__(self, *, url: str, bearer: str) -> None:
        self._url = url
        self._bearer = bearer
        self._held: JobToken | None = None

    def __repr__(self) -> str:
        return "ActionsToken()"

    @property
    def where(self) -> str:
        """GitHub Actions."""
        return "GitHub Actions"

    def job(self) -> str:
        """A digest of the endpoint, which is another one for each job."""
        return hashlib.sha256(self._url.encode()).hexdigest()

    def read(self, *, audience: str, now: int) -> JobToken:
        """A token for ``audience``; asked for anew when the last one is about to end."""
        held = self._held
        if held is None or held.claims.get("aud") != audience or _ends(held) <= now + ACTIONS_MARGIN * 1000:
            held = self._held = self._ask(audience)
        return held

    def _ask(self, audience: str) -> JobToken:
        import urllib3

        # What urllib3 says of a failure may hold the whole URL, and the URL names the job: only the kind
        # of failure is kept, and never the request token (I11).
        try:
            with urllib3.PoolManager(retries=False) as pool:
                answer = pool.request(
                    "GET",
                    self._checked_url(audience),
                    headers={"Authorization": f"Bearer {self._bearer}", "Accept": "application/json"},
                    preload_content=False,
                    redirect=False,
                    retries=False,
                    timeout=urllib3.Timeout(connect=ACTIONS_TIMEOUT, read=ACTIONS_TIMEOUT),
                )
                data = answer.read(MAX_ACTIONS_ANSWER + 1, decode_content=True)
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
            raise Unreachable("GitHub Actions gives no token", why=type(exc).__name__) from exc
        if answer.status != 200 or len(data) > MAX_ACTIONS_ANSWER:
            raise Unreachable(
                "GitHub Actions gives no token",
                why=f"its endpoint answered {answer.status}",
                next="the job needs the permission id-token: write",
            )
        return self._parse(data)

    def _parse(self, data: bytes) -> JobToken:
        try:
            return parse_job_token(str(parse_json_object(data).get("value")))
        except BrokerError as exc:
            raise Unreachable("what GitHub Actions gave is not a token") from exc

    def _checked_url(self, audience: str) -> str:
        try:
            parts = urlsplit(self._url)
            loopback = parts.hostname in ("127.0.0.1", "::1", "localhost")
        except ValueError as exc:
            raise ConfigurationError("ACTIONS_ID_TOKEN_REQUEST_URL is not a URL") from exc
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
            raise ConfigurationError("ACTIONS_ID_TOKEN_REQUEST_URL is not an https URL")
        query = "&".join(part for part in (parts.query, urlencode({"audience": audience})) if part)
        return parts._replace(query=query, fragment="").geturl()


def _ends(held: JobToken) -> int:
    return held.expires or 0


def find_actions(environ: Mapping[str, str]) -> ActionsToken | None:
    """The endpoint that GitHub Actions names to a job that may ask for tokens; None elsewhere."""
    url, bearer = (environ.get(f"ACTIONS_ID_TOKEN_REQUEST_{name}") for name in ("URL", "TOKEN"))
    return ActionsToken(url=url, bearer=bearer) if url and bearer else None


# -- what the processes of a job share ------------------------------------------------------------------


def find_places(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the processes of a job may share a folder: on this machine and, if it can be, in memory.

    Where the environment names the user's own such folder, no other is looked at.
    """
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return (Path(runtime) / "broker",)
    shared = (Path("/dev/shm"), Path(environ.get("TMPDIR") or "/tmp"))  # noqa: S108 - in a folder of our own
    return tuple(place / f"broker-{os.geteuid()}" for place in shared)


def find_state(places: Sequence[Path], *parts: str) -> Path | None:
    """A private folder of this job, in the first place where it can be had; None when there is none.

    Args:
        places: Folders that may be made (mode 0700) below one that exists; in each, the job gets one of
            its own.
        parts: What tells the job from others: server, log, and the job's own words.
    """
    name = hashlib.sha256(canonical_bytes(list(parts))).hexdigest()[:32]
    for place in places:
        try:
            _own_folder(place)
            _own_folder(place / name)
        except OSError:
            continue
        return place / name
    return None


def _own_folder(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    # In a shared place such as /dev/shm somebody else may have made it first.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{path} is not a private folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written")


def job_key(state: Path | None) -> PrivateKey:
    """The key of this job: the one that its processes share, made by the first of them.

    Without a folder it is made for this process alone, and is gone with it.

    Raises:
        ConfigurationError: The folder cannot be used any more.
    """
    if state is None:
        return PrivateKey.generate()
    with private_files.locked(state / ".lock"):
        return find_key(state / KEY) or make_key(state / KEY)


def find_key(path: Path) -> PrivateKey | None:
    """The private key in a file; None when there is no file.

    Raises:
        ConfigurationError: It is malformed, or other users may read it.
    """
    data = private_files.find_file(path, private=True)
    if data is None:
        return None
    try:
        return PrivateKey.from_jwk(parse_json_object(data))
    except BrokerError as exc:
        raise ConfigurationError(f"{path} is not a private key", why=exc.what) from exc


def make_key(path: Path) -> PrivateKey:
    """A new private key, in a file that only its owner may read.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    key = PrivateKey.generate()
    write_key(path, key)
    return key


def write_key(path: Path, key: PrivateKey) -> None:
    """Write a private key as a JWK that only its owner may read (mode 0600).

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    private_files.write_file(path, canonical_bytes(key.to_jwk()) + b"\n")
