"""Webhooks: batches of entries, POSTed and signed.

A receiver has a batch when it answers 2xx within the time limit; anything else is a failure. It is asked
over https (plain http on this machine alone), without redirects, and nothing of its answer is used.

**Source**: Standard Webhooks 1.0 (webhook-id, webhook-timestamp, webhook-signature; ``v1``, HMAC-SHA256).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import ssl
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import urllib3

from broker import jwks, limits
from broker.canonical import canonical_bytes, format_time
from broker.errors import ConfigurationError, RateLimited, Unavailable
from broker.outbox import Forwarded
from broker.ports import Clock

EVENT_TYPE: Final = "ledger.entries"
_PREFIX: Final = "whsec_"
_MIN_SECRET: Final = 24
_MAX_SECRET: Final = 64
_MAX_SECRETS: Final = 4
_CONNECT_SECONDS: Final = 5.0
_CHUNK: Final = 8 * limits.KIB
_GONE: Final = 410
_BUSY: Final = frozenset({429, 502, 503, 504})
_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class WebhookReceiver:
    """Implements ``outbox.Receiver`` with one POST for each delivery.

    Args:
        url: See :func:`check_webhook_url`.
        secrets: See :func:`parse_secrets`; each one signs.
        origin: The log's name, in each message.
        format: What the events are: ``ocsf`` or ``jsonl``.
        context: For TLS.
        clock: For the timestamp of each try.
        timeout: Seconds that one delivery may take.

    Raises:
        ConfigurationError: The URL is none that is asked.
    """

    def __init__(
        self,
        url: str,
        *,
        secrets: Sequence[bytes],
        origin: str,
        format: str,
        context: ssl.SSLContext,
        clock: Clock,
        timeout: float,
    ) -> None:
        self._url: Final = check_webhook_url(url)
        self._secrets: Final = tuple(secrets)
        self._origin: Final = origin
        self._format: Final = format
        self._clock: Final = clock
        self._timeout: Final = timeout
        connect = min(_CONNECT_SECONDS, timeout)
        limit = urllib3.Timeout(connect=connect, read=timeout, total=timeout)
        self._pool: Final = urllib3.PoolManager(timeout=limit, retries=False, ssl_context=context)

    @property
    def unsure(self) -> int:
        """0: it answers."""
        return 0

    def deliver(self, messages: Sequence[Forwarded]) -> None:
        """POST these as one message; its id is the same for the same entries, each time.

        Raises:
            RateLimited: It is busy, and says for how long.
            Unavailable: No answer in time, or another one than 2xx.
            ConfigurationError: It is gone (410).
        """
        body = webhook_body(messages, origin=self._origin, format=self._format)
        headers = sign(message_id(messages), self._clock.now() // 1000, body, self._secrets)
        status, retry_after = self._post(body, headers)
        if 200 <= status < 300:
            return
        if status == _GONE:
            raise ConfigurationError(
                "the receiver says that it is gone (410)",
                next="take the destination out of the settings, or correct its url",
            )
        if status in _BUSY and retry_after:
            raise RateLimited(f"the receiver answers {status}", retry_after=retry_after)
        redirects = "it redirects" if 300 <= status < 400 else None
        raise Unavailable(f"the receiver answers {status}", why=redirects)

    def doubtful(self) -> int | None:
        """None: what it answered for, it has."""
        return None

    def close(self) -> bool:
        """Close every connection."""
        self._pool.clear()
        return True

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, int]:
        deadline = time.monotonic() + self._timeout
        try:
            answer = self._pool.request(
                "POST",
                self._url,
                body=body,
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": "model-access-broker",
                    **headers,
                },
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except urllib3.exceptions.HTTPError as exc:
            # I11: the library's text has the URL, which may have a secret in its path.
            raise Unavailable("the receiver does not answer", why=_cause(exc)) from exc
        _read_away(answer, deadline)
        return answer.status, _retry_after(answer)


def check_webhook_url(url: str) -> str:
    """The URL that is POSTed to.

    Raises:
        ConfigurationError: It is not https://HOST[:PORT]/PATH[?QUERY]; http is for this machine only.
    """
    try:
        parts = urlsplit(url)
        fits = parts.port is None or parts.port > 0
    except ValueError as exc:
        raise ConfigurationError("a webhook's URL is not a URL") from exc
    plain = url.isascii() and url.isprintable() and " " not in url
    if not fits or not plain or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ConfigurationError("a webhook's URL is https://HOST[:PORT]/PATH[?QUERY]")
    if parts.scheme != "https" and not (parts.scheme == "http" and jwks.is_loopback(url)):
        raise ConfigurationError("a webhook's URL is https; http is for this machine only")
    return url


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """The secrets of a file: one a line, ``whsec_`` and 24 to 64 bytes in base64; at most 4.

    Several are for a change of secret: each message carries a signature by each of them.

    Raises:
        ConfigurationError: There is none, or one is something else. Nothing of it is repeated (I11).

    **Source**: Standard Webhooks 1.0, "Signature scheme".
    """
    found = []
    for word in text.split():
        try:
            secret = base64.b64decode(word.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError) as exc:
            raise _no_secret() from exc
        if not word.startswith(_PREFIX) or not _MIN_SECRET <= len(secret) <= _MAX_SECRET:
            raise _no_secret()
        found.append(secret)
    if not 0 < len(found) <= _MAX_SECRETS:
        raise _no_secret()
    return tuple(found)


def message_id(messages: Sequence[Forwarded]) -> str:
    """The id of a message: of which entries it is, and of which log; the same for every try."""
    return f"entries_{messages[0].index}_{messages[-1].index}_{messages[-1].leaf_hash.hex()[:32]}"


def webhook_body(messages: Sequence[Forwarded], *, origin: str, format: str) -> bytes:
    """The bytes of a message: ``type``, ``timestamp`` (the newest entry's) and ``data`` with the events."""
    head = canonical_bytes({"type": EVENT_TYPE, "timestamp": format_time(messages[-1].time)})[:-1]
    data = canonical_bytes({"origin": origin, "format": format})[:-1]
    events = b",".join(message.body for message in messages)
    return head + b',"data":' + data + b',"events":[' + events + b"]}}"


def sign(id: str, timestamp: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The three headers of a message.

    Args:
        id: Without full stops.
        timestamp: Of this try, in seconds.
        body: Exactly as it is sent.
        secrets: Each one signs.

    **Source**: Standard Webhooks 1.0, "Webhook headers".
    """
    signed = b"%s.%d.%s" % (id.encode("ascii"), timestamp, body)
    signatures = [
        "v1," + base64.b64encode(hmac.digest(secret, signed, "sha256")).decode("ascii") for secret in secrets
    ]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _read_away(answer: urllib3.BaseHTTPResponse, deadline: float) -> None:
    """Read a small answer, so that the connection can be used again; leave any other."""
    size = 0
    try:
        while chunk := answer.read1(_CHUNK, decode_content=False):
            size += len(chunk)
            if size > limits.MAX_FORWARD_ANSWER or time.monotonic() > deadline:
                answer.close()
                return
    except urllib3.exceptions.HTTPError:
        answer.close()  # the status line was there: that is the answer
    else:
        answer.release_conn()


def _retry_after(answer: urllib3.BaseHTTPResponse) -> int:
    """Seconds, 0 where it says none. A date is not understood, and so the usual pause is made."""
    given = answer.headers.get("Retry-After", "").strip()
    return min(int(given), limits.MAX_FORWARD_RETRY_AFTER) if _SECONDS.fullmatch(given) else 0


def _cause(exc: BaseException) -> str:
    """The kind of failure, and the reason that a certificate was not believed; no URL."""
    reason = exc.args[0] if exc.args and isinstance(exc.args[0], ssl.SSLError) else None
    found = getattr(reason, "verify_message", None)
    return f"{type(exc).__name__}: {found}" if found else type(exc).__name__


def _no_secret() -> ConfigurationError:
    return ConfigurationError(
        f"a webhook's secret is {_PREFIX} and {_MIN_SECRET} to {_MAX_SECRET} bytes in base64",
        why=f"one in each line, {_MAX_SECRETS} at most",
    )
