"""What a server says of itself before anybody has asked for anything: its issuer, its log, its stores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from broker.canonical import Json
from broker.client.log_key import Shown, find_keys
from broker.client.session import Session
from broker.client.settings import Profile, check_store_host
from broker.client.workload import ActionsToken
from broker.errors import ConfigurationError, IntegrityFailure, Unreachable
from broker.jose import PrivateKey
from broker.ledger import note

METADATA: Final = "/.well-known/oauth-authorization-server"


@dataclass(frozen=True, kw_only=True)
class ServerMetadata:
    """The parts of RFC 8414 metadata that a client uses; nothing of it is signed."""

    issuer: str
    origin: str
    vkey: str
    store_hosts: tuple[str, ...]


def fetch_metadata(session: Session) -> ServerMetadata:
    """What the session's server says of itself.

    Raises:
        Unreachable: What answers is not a broker.
        IntegrityFailure: The log's key is not a verifier key of the log that it names.
    """
    answer = session.get_public(METADATA).json()
    origin, vkey = _log(answer.get("broker_log"))
    issuer, hosts = answer.get("issuer"), answer.get("store_hosts")
    if not isinstance(issuer, str) or not issuer:
        raise Unreachable("the server does not say which issuer it is", why="is the URL that of a broker?")
    return ServerMetadata(
        issuer=issuer,
        origin=origin,
        vkey=vkey,
        store_hosts=tuple(check_store_host(host) for host in (hosts if isinstance(hosts, list) else [])),
    )


def _log(found: Json | Any) -> tuple[str, str]:
    if not isinstance(found, dict) or not all(isinstance(found.get(n), str) for n in ("origin", "vkey")):
        raise Unreachable("the server does not say which log it keeps", why="is the URL that of a broker?")
    try:
        named = note.parse_vkey(found["vkey"]).name
    except ConfigurationError as exc:
        raise IntegrityFailure("the server's log key is not a verifier key", why=exc.what) from exc
    if named != found["origin"]:
        raise IntegrityFailure("the server's log key is of another origin than its log")
    return found["origin"], found["vkey"]


def _is_kin(pinned: str, signing: str, shown: Shown) -> bool:
    """Whether one of two keys of a log leads to the other: its key was changed, or is being changed.

    Which one is believed is for :class:`~broker.client.trust.LogMemory`, that sees what they signed.
    """
    return shown.follow(pinned).key.vkey == signing or shown.follow(signing).key.vkey == pinned


def complete_profile(profile: Profile) -> Profile:
    """A profile that names only server and log, with the rest as the server tells it.

    Raises:
        IntegrityFailure: The server keeps another log than the one that is pinned; or a token would be
            asked for in its name, and its issuer is not its URL (RFC 8414 section 3.3).
        Unreachable: It does not answer, or is not a broker.
    """
    if profile.issuer:
        return profile
    session = Session(server=profile.server, key=PrivateKey.generate())
    try:
        found = fetch_metadata(session)
        same = found.vkey == profile.vkey or (
            found.origin == profile.origin and _is_kin(profile.vkey, found.vkey, find_keys(session))
        )
    finally:
        session.close()
    if not same:
        raise IntegrityFailure(
            f"the server at {profile.server} keeps another log than the one that is pinned",
            why=f"it names {found.origin}, and BROKER_LOG_VKEY another key",
            next="ask an administrator for the log's key; do not take it from this server",
        )
    if isinstance(profile.source, ActionsToken) and found.issuer.rstrip("/") != profile.server:
        # The issuer becomes the audience of a token that this server then gets, and nothing of what it says
        # is signed: by its own choice of a name it would get a token that is good somewhere else.
        raise IntegrityFailure(
            f"the server at {profile.server} says that it is another issuer",
            why="a job of GitHub Actions gets a token for whatever issuer it names",
            next="set BROKER_URL to the issuer's URL, or name both in the config.toml of BROKER_PROFILE_DIR",
        )
    return replace(profile, issuer=found.issuer, store_hosts=found.store_hosts)
