"""What ``admin doctor`` looks at, on the server, with its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import urllib3

from broker import wiring
from broker.config import Settings, load_settings
from broker.errors import BrokerError, ConfigurationError, StoreUnavailable
from broker.runtime import SystemClock, SystemEntropy
from broker.web.cosigner import examine as ask_witnesses

if TYPE_CHECKING:
    from broker.ports import ObjectStore, Presigner

_BODY: Final = b"model-access-broker probe: 32 b."
_OTHER: Final = b"something else of 32 bytes: no!!"
_CREATE: Final = {"If-None-Match": "*"}
_SECONDS: Final = 60
_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=30.0)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found; ``error`` is set when it failed."""

    check: str
    detail: str
    error: BrokerError | None = None

    @property
    def ok(self) -> bool:
        """Whether it held."""
        return self.error is None


def examine() -> Iterator[Finding]:
    """Check after check; one that the rest depends on ends the examination when it fails."""
    settings: list[Settings] = []
    house: list[Any] = []
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("settings", lambda: _load(settings)),
        ("schema", lambda: _check_schema(settings[0])),
        ("keys, mode, ledger", lambda: _join(settings[0], house)),
        ("ledger tail", lambda: _check_tail(house[0])),
        ("witnesses", lambda: ask_witnesses(house[0])),
        ("store answers", lambda: _check_store(house[0])),
    )
    for name, step in steps:
        found = _try(name, step)
        yield found
        if not found.ok:
            return
    yield from check_contract(house[0].store, house[0].presigner)


def _try(name: str, step: Callable[[], str]) -> Finding:
    try:
        return Finding(check=name, detail=step())
    except BrokerError as exc:
        return Finding(check=name, detail=f"{exc.what}{f': {exc.why}' if exc.why else ''}", error=exc)


def _load(held: list[Settings]) -> str:
    held.append(load_settings())
    return f"mode {held[0].mode}, {', '.join(held[0].public_urls)}"


def _check_schema(settings: Settings) -> str:
    from broker.db.engine import open_engine
    from broker.db.migrate import current_revision, head_revision

    engine = open_engine(settings.database_url.get_secret_value())
    try:
        current, newest = current_revision(engine), head_revision()
    finally:
        engine.dispose()
    if current != newest:
        raise ConfigurationError(
            "the database's schema is not this version's",
            why=f"it is at {current or 'nothing'}, this version needs {newest}",
            next="broker admin migrate",
        )
    return f"revision {current}"


def _join(settings: Settings, held: list[Any]) -> str:
    held.append(wiring.build_house(settings))
    return f"log {held[0].log.origin}"


def _check_tail(house: Any) -> str:
    with house.ledger.view() as view:
        return f"{view.tail().size} entries"


def _check_store(house: Any) -> str:
    house.store.check()
    return ", ".join(house.store_hosts)


# -- the store's contract -----------------------------------------------------------------------------------


def check_contract(store: ObjectStore, presigner: Presigner) -> Iterator[Finding]:
    """Try what the broker relies on with presigned URLs: they do what they were signed for and nothing else.

    Args:
        store: The store, for looking and for removing the probes.
        presigner: Makes URLs as clients get them.
    """
    probe = _Probe(store, presigner)
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("store: a PUT creates", probe.check_create),
        ("store: a PUT never replaces", probe.check_no_replace),
        ("store: a PUT needs its condition", probe.check_condition),
        ("store: a PUT has its signed length", probe.check_length),
        ("store: a part dies with its upload", probe.check_part),
        ("store: a GET gives its range", probe.check_range),
        ("store: a GET gives no other range", probe.check_other_range),
    )
    try:
        for name, check in checks:
            yield _try(name, check)
    finally:
        probe.remove()


class _Probe:
    """Objects of a name that nothing else has."""

    def __init__(self, store: ObjectStore, presigner: Presigner) -> None:
        self._store, self._presigner = store, presigner
        self._clock, entropy = SystemClock(), SystemEntropy()
        self._name = f"doctor/{entropy.random_bytes(8).hex()}"
        self._spare = f"{self._name}-refused"
        self._pool = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)

    def remove(self) -> None:
        """Leave nothing behind."""
        for name in (self._name, self._spare):
            self._store.delete(name)
        self._pool.clear()

    def _put_url(self, name: str) -> str:
        now = self._clock.now()
        return self._presigner.put(name, content_length=len(_BODY), expires=_SECONDS, now=now)[0]

    def _get_url(self, byte_range: str) -> str:
        now = self._clock.now()
        return self._presigner.get(
            self._name, byte_range=byte_range, grant="g_doctor", expires=_SECONDS, now=now
        )[0]

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None = None
    ) -> tuple[int, bytes]:
        try:
            answer = self._pool.request(method, url, headers=headers, body=body, redirect=False)
        except urllib3.exceptions.HTTPError as exc:
            # The library's message has the URL with its signature: only the kind is kept (I11).
            raise StoreUnavailable(
                "the object store does not answer at the address that clients use", why=type(exc).__name__
            ) from exc
        return answer.status, answer.data

    def _refused(self, status: int, what: str) -> str:
        if status < 400:
            raise ConfigurationError(
                f"the object store takes {what}",
                why=f"it answered {status}",
                next="use a store that checks presigned URLs in full",
            )
        return f"refused with {status}"

    def check_create(self) -> str:
        status, _ = self._send("PUT", self._put_url(self._name), _CREATE, _BODY)
        if status != 200:
            raise ConfigurationError("the object store refuses a presigned PUT", why=f"it answered {status}")
        return "created"

    def check_no_replace(self) -> str:
        status, _ = self._send("PUT", self._put_url(self._name), _CREATE, _OTHER)
        return self._refused(status, "a PUT over an object that is there")

    def check_condition(self) -> str:
        status, _ = self._send("PUT", self._put_url(self._spare), {}, _BODY)
        return self._refused(status, "a PUT without its signed condition")

    def check_length(self) -> str:
        status, _ = self._send("PUT", self._put_url(self._spare), _CREATE, _BODY + b"more")
        return self._refused(status, "a PUT of another length than was signed")

    def check_part(self) -> str:
        upload = self._store.create_upload(self._spare)
        url, _ = self._presigner.upload_part(
            self._spare,
            upload_id=upload,
            part_number=1,
            content_length=len(_BODY),
            expires=_SECONDS,
            now=self._clock.now(),
        )
        self._store.abort_upload(self._spare, upload)
        return self._refused(self._send("PUT", url, {}, _BODY)[0], "a part of an upload that was dropped")

    def check_range(self) -> str:
        status, data = self._send("GET", self._get_url("bytes=0-15"), {"Range": "bytes=0-15"})
        if status != 206 or data != _BODY[:16]:
            raise ConfigurationError(
                "the object store does not give the range that was signed", why=f"it answered {status}"
            )
        return "16 bytes of 32"

    def check_other_range(self) -> str:
        for headers in ({"Range": "bytes=0-31"}, {}):
            status, _ = self._send("GET", self._get_url("bytes=0-15"), headers)
            shown = self._refused(status, "another range than was signed")
        return shown
