"""Witnesses over HTTP: other people's servers, which cosign tree heads and say what they saw before.

A witness is asked over https (plain http on this machine alone), without redirects, in bounded size and
time. What it answers is handed on as it is: whether it is a signature that counts is for the rules.

**Source**: C2SP tlog-witness, "add-checkpoint".
"""

from __future__ import annotations

import ssl
import time
from typing import Final
from urllib.parse import urlsplit

import urllib3

from broker import jwks, limits
from broker.errors import ConfigurationError, Unavailable
from broker.ports import WitnessAnswer

_CONNECT_SECONDS: Final = 3.0
_READ_SECONDS: Final = 5.0
_CHUNK: Final = 8 * limits.KIB


class HttpWitness:
    """One witness; safe to share between threads. Nothing is sent before the first request.

    Args:
        url: The submission prefix, as the policy file has it.

    Raises:
        ConfigurationError: It is not https://HOST[:PORT][/PATH]; http is for this machine only.
    """

    def __init__(self, url: str) -> None:
        self._url: Final = f"{check_witness_url(url)}/add-checkpoint"
        self._pool: urllib3.PoolManager | None = None

    def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        """What the witness answers to a tree head with its proof.

        Args:
            body: The request as the specification has it.

        Raises:
            Unavailable: No answer, a redirect, or more than ``limits.MAX_WITNESS_ANSWER`` bytes.
        """
        deadline = time.monotonic() + limits.WITNESS_SECONDS
        try:
            answer = self._open_pool().request(
                "POST",
                self._url,
                body=body,
                headers={"Content-Type": "text/plain", "User-Agent": "model-access-broker"},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                data = _read(answer, deadline)
            finally:
                answer.close()
        except urllib3.exceptions.HTTPError as exc:
            raise _silent(type(exc).__name__) from exc
        if 300 <= answer.status < 400:
            raise _silent("it redirects")
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return WitnessAnswer(status=answer.status, kind=kind, body=data)

    def _open_pool(self) -> urllib3.PoolManager:
        # Late: the system's authorities are read where they are needed.
        if self._pool is None:
            timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
            context = ssl.create_default_context()
            self._pool = urllib3.PoolManager(timeout=timeout, retries=False, ssl_context=context)
        return self._pool


def check_witness_url(url: str) -> str:
    """A witness's submission prefix in its one form, without a slash at its end.

    Raises:
        ConfigurationError: It is something else.
    """
    try:
        parts = urlsplit(url)
        fits = parts.port is None or parts.port > 0
    except ValueError as exc:
        raise ConfigurationError("a witness's URL is not a URL") from exc
    plain = url.isascii() and url.isprintable() and " " not in url
    if not fits or not plain or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError("a witness's URL is https://HOST[:PORT][/PATH]")
    if parts.scheme != "https" and not (parts.scheme == "http" and jwks.is_loopback(url)):
        raise ConfigurationError("a witness's URL is https; http is for this machine only")
    return url.rstrip("/")


def _read(answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    data = bytearray()
    while chunk := answer.read1(_CHUNK, decode_content=False):
        data += chunk
        if len(data) > limits.MAX_WITNESS_ANSWER:
            raise _silent(f"what it answered is larger than {limits.MAX_WITNESS_ANSWER} bytes")
        if time.monotonic() > deadline:
            raise _silent("it took too long to answer")
    return bytes(data)


def _silent(why: str) -> Unavailable:
    return Unavailable("the witness does not answer", why=why)
