"""The keys of foreign issuers, fetched from where they publish them and remembered for a while.

An issuer's keys are found in this order: the static set of its row, without any network; its
``jwks_uri``; what OpenID Connect discovery says at its URL. What is fetched comes over https (plain http
from this machine alone), without redirects, in bounded size and time.

How long keys count, so that neither a stranger's tokens nor an issuer's outage decide it (I15, I17):

* They are asked for anew after ``limits.JWKS_TTL``, and earlier when a token names a key that is not among
  them, for that reason at most once in ``limits.JWKS_COOLDOWN``. A key that its issuer withdrew is
  therefore gone ten minutes later at the latest.
* There is one fetch for an issuer at a time. Whoever needs it waits a few seconds, and then makes do with
  what there is. At most ``limits.ISSUER_WAITERS`` requests wait at once; the others do not.
* While the issuer does not answer, what was fetched at most ``limits.JWKS_STALE`` ago is used. After
  that, or for a key that nobody here has seen, the answer is Unavailable.

A row whose URL, ``jwks_uri``, ``ca`` or kind changed begins anew, with nothing remembered.

**Source**: OpenID Connect Discovery 1.0 section 4; RFC 7517 section 5; SPIFFE Federation section 5.2.1
(``https_web``); RFC 9325.
"""

from __future__ import annotations

import ssl
import threading
import time
from dataclasses import dataclass, replace
from typing import Final

import urllib3

from broker import jwks, limits
from broker.canonical import Json, parse_json_object
from broker.errors import BrokerError, Unavailable
from broker.jwks import ForeignKey
from broker.model import Issuer

WELL_KNOWN: Final = "/.well-known/openid-configuration"
_CONNECT_SECONDS: Final = 3.0
_READ_SECONDS: Final = 5.0
_WAIT_SECONDS: Final = 5.0
"""How long a request waits for a fetch, its own or another's."""
_NOT_YET: Final = "it has not answered yet"
_CHUNK: Final = 64 * limits.KIB
_MILLISECONDS: Final = 1000


class IssuerKeys:
    """Keys by issuer; safe to share between threads. Nothing is fetched before the first :meth:`keys`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[str, _Source] = {}
        self._seats = threading.BoundedSemaphore(limits.ISSUER_WAITERS)

    def keys(self, issuer: Issuer, kid: str | None, *, now: int) -> tuple[ForeignKey, ...]:
        """The issuer's keys; see :class:`broker.ports.IssuerKeys` and the module's text."""
        if issuer.jwks:
            try:
                return jwks.parse_jwks(issuer.jwks, use=jwks.use_for(issuer.kind))
            except BrokerError as exc:
                raise _no_keys("its static key set cannot be used") from exc
        return self._source(issuer).find(kid, now)

    def _source(self, issuer: Issuer) -> _Source:
        # An issuer has one place here however often its row changes, so nothing grows with use.
        where = _Where(url=issuer.url, jwks_uri=issuer.jwks_uri, ca=issuer.ca, kind=issuer.kind)
        with self._lock:
            source = self._sources.get(issuer.name)
            if source is None or source.where != where:
                source = self._sources[issuer.name] = _Source(where, self._seats)
            return source


# -- what is remembered -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Where:
    """All that decides which keys are fetched, and from whom."""

    url: str
    jwks_uri: str
    ca: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the last fetches brought. Times are milliseconds since 1970, None is never."""

    keys: tuple[ForeignKey, ...] = ()
    fetched: int | None = None
    tried: int | None = None
    failure: str | None = None
    """Why the last fetch failed, None when it did not."""

    def is_due(self, kid: str | None, now: int) -> bool:
        """Whether to ask the issuer now."""
        tried = _age(self.tried, now)
        if _age(self.fetched, now) >= limits.JWKS_TTL:
            return tried >= limits.JWKS_RETRY
        return not self.names(kid) and tried >= limits.JWKS_COOLDOWN

    def names(self, kid: str | None) -> bool:
        """Whether the key is among them; a token that names none means any."""
        return kid is None or any(key.kid == kid for key in self.keys)


def _age(since: int | None, now: int) -> float:
    """Seconds, whichever way the clock was set meanwhile."""
    return float("inf") if since is None else abs(now - since) / _MILLISECONDS


class _Source:
    """The keys at one place, and the one fetch that may be under way."""

    def __init__(self, where: _Where, seats: threading.Semaphore) -> None:
        self.where: Final = where
        self._seats = seats
        self._lock = threading.Lock()
        self._known = _Known()
        self._flight: threading.Event | None = None

    def find(self, kid: str | None, now: int) -> tuple[ForeignKey, ...]:
        flight = self._take_off(kid, now)
        landed = flight is None or self._wait(flight)
        known = self._known
        if _age(known.fetched, now) >= limits.JWKS_STALE:
            raise _no_keys(known.failure or _NOT_YET)
        if not known.names(kid) and (known.failure is not None or not landed):
            # It may be a new key: whose token it is can try again, which a refusal would not tell them.
            raise _no_keys(known.failure or _NOT_YET)
        return known.keys

    def _wait(self, flight: threading.Event) -> bool:
        """Whether the fetch ended while this request had a seat to wait on."""
        # I17: strangers choose who waits, and each of them holds a thread of the server.
        if not self._seats.acquire(blocking=False):
            return flight.is_set()
        try:
            return flight.wait(_WAIT_SECONDS)
        finally:
            self._seats.release()

    def _take_off(self, kid: str | None, now: int) -> threading.Event | None:
        """The fetch that this caller should wait for, begun if need be; None when what is known will do."""
        with self._lock:
            if not self._known.is_due(kid, now):
                return None
            if self._flight is None:
                self._flight = threading.Event()
                # A thread of its own: an issuer that answers byte by byte holds this one, and nobody else.
                threading.Thread(
                    target=self._fetch, args=(now, self._flight), name="issuer-keys", daemon=True
                ).start()
            return self._flight

    def _fetch(self, now: int, flight: threading.Event) -> None:
        known = replace(self._known, tried=now, failure="the fetch ended without an outcome")
        try:
            known = _Known(keys=_fetch_keys(self.where), fetched=now, tried=now)
        except BrokerError as exc:
            # Only our own refusals of an issuer say more than what is wrong with its documents.
            known = replace(known, failure=(isinstance(exc, Unavailable) and exc.why) or exc.what)
        finally:
            with self._lock:
                self._known, self._flight = known, None
            flight.set()


def _no_keys(why: str) -> Unavailable:
    return Unavailable("the keys of the token's issuer are not to be had", why=why)


# -- fetching -----------------------------------------------------------------------------------------------


def _fetch_keys(where: _Where) -> tuple[ForeignKey, ...]:
    url = where.jwks_uri or _discover(where)
    found = _fetch(jwks.parse_issuer_url(url, query=True), ca=where.ca, most=limits.MAX_JWKS)
    return jwks.parse_jwks(found, use=jwks.use_for(where.kind))


def _discover(where: _Where) -> str:
    """The ``jwks_uri`` of an issuer's discovery document, which must be of exactly this issuer.

    Source: OpenID Connect Discovery 1.0 sections 4.1 and 4.3.
    """
    base = jwks.parse_issuer_url(where.url)
    found = _fetch(f"{base.removesuffix('/')}{WELL_KNOWN}", ca=where.ca, most=limits.MAX_DISCOVERY)
    if found.get("issuer") != where.url:
        raise _no_keys("its discovery document is of another issuer")
    url = found.get("jwks_uri")
    if not isinstance(url, str):
        raise _no_keys("its discovery document names no jwks_uri")
    # Only an issuer on this machine may send the broker to this machine.
    if jwks.is_loopback(jwks.parse_issuer_url(url, query=True)) and not jwks.is_loopback(base):
        raise _no_keys("its discovery document points to this machine")
    return url


def _fetch(url: str, *, ca: str, most: int) -> Json:
    """The JSON object at a URL: 200, no redirect, at most ``most`` bytes, in ``limits.ISSUER_SECONDS``."""
    deadline = time.monotonic() + limits.ISSUER_SECONDS
    timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
    # A pool of its own: fetches are rare, and connections of different authorities must not be shared.
    with urllib3.PoolManager(timeout=timeout, retries=False, ssl_context=_tls(ca)) as pool:
        try:
            answer = pool.request(
                "GET",
                url,
                headers={"Accept": "application/json", "User-Agent": "model-access-broker"},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                if answer.status != 200:
                    raise _no_keys(f"it answered {answer.status}")
                data = _read(answer, most, deadline)
            finally:
                answer.close()
        except urllib3.exceptions.HTTPError as exc:
            raise _no_keys(type(exc).__name__) from exc
    return parse_json_object(data)


def _read(answer: urllib3.BaseHTTPResponse, most: int, deadline: float) -> bytes:
    data = bytearray()
    while chunk := answer.read1(_CHUNK, decode_content=False):
        data += chunk
        if len(data) > most:
            raise _no_keys(f"what it answered is larger than {most} bytes")
        if time.monotonic() > deadline:
            raise _no_keys("it took too long to answer")
    return bytes(data)


def _tls(ca: str) -> ssl.SSLContext:
    """Verifies certificate and host name, by the issuer's own authorities when its row has some."""
    try:
        return ssl.create_default_context(cadata=ca or None)
    except (ssl.SSLError, ValueError, TypeError) as exc:
        raise _no_keys("the authorities in its ca cannot be read") from exc
